"""Lanes: who may run next, so that each user's events run strictly in order (CONTRACT 4.1, 4.6).

A lane is a user, or one unsequenced event. It holds the entries whose turn has come or will come, by seq;
only its head may run, and only once nothing keeps it: its lock, its id, a retry. Lanes take turns.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from itertools import count

from eventproc.effects import Entry

Lane = str | int


class Lanes:
    """Entries by lane, and timers for those that have to wait.

    Entries of lanes in which nothing waits stand in one line, in the order in which they came. Once an
    entry has to wait its lane is *kept apart*, in order of seq, until it is empty.

    `one_each`: only the head of a lane is taken, and stays there, blocked, until it is dropped or enters
    again; so every lane is kept apart.
    """

    def __init__(self, one_each: bool = False) -> None:
        self._one_each = one_each
        self._line: deque[Entry] = deque()
        self._apart: dict[Lane, list[Entry]] = {}
        self._ready: OrderedDict[Lane, None] = OrderedDict()  # lanes kept apart whose head may run
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._count = count()
        self._turn = 1  # who has the odd one of two halves

    def ready(self) -> int:
        """How many entries `take` would give, were it asked for all; about, where lanes are kept apart."""
        if not self._ready:
            return len(self._line)
        return len(self._line) + sum([len(self._apart[lane]) for lane in self._ready])

    def count(self, heads: Iterable[Entry]) -> int:
        """How many entries stand in the lanes of these, which are apart."""
        apart = self._apart
        return sum([len(apart[head.lane]) for head in heads])

    def enter(self, entry: Entry) -> None:
        """The entry may run as soon as it is the head of its lane.

        It is blocked, or new and behind all that ever entered its lane; what was taken is put back.
        """
        if not self._one_each and (not self._apart or entry.lane not in self._apart):
            self._line.append(entry)
            return
        entry.go = True
        entries = self._keep_apart(entry.lane)
        if not entry.held:
            self._insert(entries, entry)
        if entries[0].go:
            self._ready[entry.lane] = None

    def enter_all(self, entries: list[Entry]) -> None:
        """`enter` for each."""
        if self._one_each or self._apart:
            for entry in entries:
                self.enter(entry)
        else:
            self._line.extend(entries)

    def block(self, entry: Entry) -> None:
        """The entry has to wait until `enter`, and so has all of its lane behind it."""
        entries = self._keep_apart(entry.lane)
        entry.go = False
        if not entry.held:
            self._insert(entries, entry)
        if not entries[0].go:
            self._ready.pop(entry.lane, None)

    def put_back(self, entries: list[Entry]) -> None:
        """Entries that were taken did not run: they are still ahead of what came to their lane since."""
        for entry in entries:
            self._keep_apart(entry.lane)
            self.enter(entry)

    def drop(self, entry: Entry) -> None:
        """The entry is done with although it stands in its lane still; what stood behind it may move."""
        if not entry.held:
            return
        entries = self._apart[entry.lane]
        entries.remove(entry)
        self._took(entry.lane, entries, [entry])

    def take(self, most: int) -> list[Entry]:
        """Entries to run now, in this order; they are in no lane any more.

        Under load the line is never empty: half belongs to the lanes kept apart, lest a retry waits for ever.
        """
        if self._one_each:
            return self._take_heads(most)
        if not self._ready:
            return self._take_line(most)
        half = (most + self._turn) // 2 if self._line else most
        self._turn = 1 - self._turn
        taken = self._take_apart(half)
        taken += self._take_line(most - len(taken))
        taken += self._take_apart(most - len(taken))
        return taken

    def _take_heads(self, most: int) -> list[Entry]:
        taken: list[Entry] = []
        while self._ready and len(taken) < most:
            lane, _ = self._ready.popitem(last=False)
            head = self._apart[lane][0]
            head.go = False
            taken.append(head)
        return taken

    def _take_line(self, most: int) -> list[Entry]:
        line = self._line
        if len(line) > most:
            return [line.popleft() for _ in range(most)]
        taken = list(line)
        line.clear()
        return taken

    def _take_apart(self, most: int) -> list[Entry]:
        taken: list[Entry] = []
        while self._ready and len(taken) < most:
            lane = next(iter(self._ready))
            entries = self._apart[lane]
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
        return [*self._line, *[entry for entries in self._apart.values() for entry in entries]]

    def is_idle(self) -> bool:
        """Nothing is ready, nothing waits."""
        return not (self._line or self._apart or self._timers)

    def _keep_apart(self, lane: Lane) -> list[Entry]:
        entries = self._apart.get(lane)
        if entries is None:
            entries = self._apart[lane] = [entry for entry in self._line if entry.lane == lane]
            if entries:
                self._line = deque([entry for entry in self._line if entry.lane != lane])
                for entry in entries:
                    entry.held = entry.go = True
                self._ready[lane] = None
        return entries

    @staticmethod
    def _insert(entries: list[Entry], entry: Entry) -> None:
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
            del self._apart[lane]
