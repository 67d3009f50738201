"""Lanes: who may run next, so that each user's events run strictly in order (CONTRACT 4.1, 4.6).

A lane is a user, or one unsequenced event. It holds the entries whose turn has come or will come, by seq;
only its head may run, and only once nothing keeps it: its lock, its id, a retry. Lanes take turns.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable
from itertools import count

from eventproc.effects import Entry

Lane = str | int


class Lanes:
    """Entries by lane, and timers for those that have to wait."""

    def __init__(self) -> None:
        self._lanes: dict[Lane, list[Entry]] = {}
        self._ready: OrderedDict[Lane, None] = OrderedDict()  # lanes whose head may run
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._count = count()

    def ready(self) -> int:
        """Entries in lanes whose head may run; about what `take` would give in the end."""
        return sum([len(self._lanes[lane]) for lane in self._ready])

    def enter(self, entry: Entry) -> None:
        """The entry may run as soon as it is the head of its lane."""
        entry.go = True
        lane = entry.lane
        entries = self._lanes.get(lane)
        if entries is None:
            entry.held = True
            self._lanes[lane] = [entry]
            self._ready[lane] = None
            return
        if not entry.held:
            self._insert(entries, entry)
        if entries[0].go:
            self._ready[lane] = None

    def block(self, entry: Entry) -> None:
        """The entry has to wait until `enter`, and so has all of its lane behind it."""
        entry.go = False
        entries = self._lanes.setdefault(entry.lane, [])
        if not entry.held:
            self._insert(entries, entry)
        if not entries[0].go:
            self._ready.pop(entry.lane, None)

    def drop(self, entry: Entry) -> None:
        """The entry is done with although it never ran; what stood behind it may move."""
        if not entry.held:
            return
        entries = self._lanes[entry.lane]
        entries.remove(entry)
        self._took(entry.lane, entries, [entry])

    def take(self, most: int) -> list[Entry]:
        """Entries to run now, in this order; they are in no lane any more."""
        taken: list[Entry] = []
        while self._ready and len(taken) < most:
            lane = next(iter(self._ready))
            entries = self._lanes[lane]
            n, room = 0, most - len(taken)
            while n < len(entries) and n < room and entries[n].go:
                n += 1
            run = entries[:n]
            del entries[:n]
            taken += run
            self._took(lane, entries, run)
            if lane in self._ready:
                self._ready.move_to_end(lane)
        return taken

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

    def entries(self) -> list[Entry]:
        """Everything in all lanes."""
        return [entry for entries in self._lanes.values() for entry in entries]

    def is_idle(self) -> bool:
        """Nothing is ready, nothing waits."""
        return not self._lanes and not self._timers

    def _insert(self, entries: list[Entry], entry: Entry) -> None:
        entry.held = True
        at = len(entries)
        while at and entries[at - 1].seq > entry.seq:
            at -= 1
        entries.insert(at, entry)

    def _took(self, lane: Lane, entries: list[Entry], taken: list[Entry]) -> None:
        for entry in taken:
            entry.held = False
        if entries and entries[0].go:
            self._ready[lane] = None
            return
        self._ready.pop(lane, None)
        if not entries:
            del self._lanes[lane]
