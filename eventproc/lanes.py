"""Lanes: who may run next, so that each user's events run strictly in order (CONTRACT 4.1, 4.6).

A lane is a user, or one unsequenced event. Entries of a free lane run in the order in which they come.
A lane is blocked while its lowest entry has to wait: for its lock, for its id, for a retry. Then it holds
its entries by seq, and only its head may move.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from itertools import count

from eventproc.effects import Entry

Lane = str | int


class Lanes:
    """Entries whose turn has come (`runnable`), and those behind a blocked head."""

    def __init__(self) -> None:
        self.runnable: deque[Entry] = deque()
        self._blocked: dict[Lane, list[Entry]] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._count = count()

    def enter(self, entry: Entry) -> None:
        """The entry may run, as soon as nothing of its lane is ahead of it."""
        if self._blocked and entry.lane in self._blocked:
            self._insert(entry, go=True)
            self._move(entry.lane)
        else:
            self.runnable.append(entry)

    def block(self, entry: Entry) -> None:
        """The entry has to wait, and so has all of its lane behind it, until `enter`."""
        self._insert(entry, go=False)

    def drop(self, entry: Entry) -> None:
        """The entry is done with although it never ran; what stood behind it may move."""
        if not entry.held:
            return
        entry.held = False
        self._blocked[entry.lane].remove(entry)
        self._move(entry.lane)

    def put_back(self, entries: list[Entry]) -> None:
        """Entries taken from the front of `runnable` that did not run; in their order."""
        free = []
        for entry in entries:
            if entry.lane in self._blocked:
                self.enter(entry)
            else:
                free.append(entry)
        self.runnable.extendleft(reversed(free))

    def later(self, due_ms: int, then: Callable[[], None]) -> None:
        """Call `then` at the given monotonic time."""
        heapq.heappush(self._timers, (due_ms, next(self._count), then))

    def fire(self, now_ms: int) -> None:
        """Call what is due."""
        while self._timers and self._timers[0][0] <= now_ms:
            heapq.heappop(self._timers)[2]()

    def next_due_ms(self) -> int:
        """When the next timer is due, -1 if there is none."""
        return self._timers[0][0] if self._timers else -1

    def blocked(self, lane: Lane) -> bool:
        """Whether the lane's head has to wait."""
        return lane in self._blocked

    def waiting(self) -> list[Entry]:
        """Every entry of a blocked lane."""
        return [entry for entries in self._blocked.values() for entry in entries]

    def is_idle(self) -> bool:
        """Nothing runs, nothing waits."""
        return not self.runnable and not self._blocked and not self._timers

    def _insert(self, entry: Entry, go: bool) -> None:
        entry.go = go
        if entry.held:
            return
        entry.held = True
        entries = self._blocked.setdefault(entry.lane, [])
        at = len(entries)
        while at and entries[at - 1].seq > entry.seq:
            at -= 1
        entries.insert(at, entry)

    def _move(self, lane: Lane) -> None:
        entries = self._blocked[lane]
        ready = 0
        while ready < len(entries) and entries[ready].go:
            entries[ready].held = False
            ready += 1
        self.runnable.extend(entries[:ready])
        del entries[:ready]
        if not entries:
            del self._blocked[lane]
