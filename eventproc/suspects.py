"""Records that ran when a worker died: each runs alone, and one that kills again and again is dead-lettered
(CONTRACT 4.9).

Redis keeps them with the partition (`claim_partition`), so that they outlive worker and supervisor. Who ran
beside the culprit is cleared by its own run; only a death while nothing else ran is charged to a record.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from eventproc.effects import Entry, Suspect
from eventproc.lanes import Lanes

#: That many deaths while it ran alone, and a record is dead-lettered.
CRASH_DEATHS = 3


class Suspects:
    """The suspects of one partition by offset. `turn` holds those whose turn has come: each is the head of
    its lane and blocks it."""

    def __init__(self) -> None:
        self._known: dict[int, Suspect] = {}
        self.turn: deque[Entry] = deque()

    def __bool__(self) -> bool:
        return bool(self._known)

    def offsets(self) -> list[int]:
        """Where they are, ascending."""
        return sorted(self._known)

    def learn(self, suspects: dict[int, Suspect], start: int) -> None:
        """The partition was claimed, and is read from `start` on; what Redis may have lost is still known."""
        self._known |= suspects
        self.forget_below(start)

    def add(self, offset: int, cause: str) -> None:
        """The record is to run alone for another reason than a death."""
        self._known.setdefault(offset, Suspect(0, cause))

    def __contains__(self, offset: int) -> bool:
        return offset in self._known

    def forget_below(self, floor: int) -> None:
        """What is below is final. One that is final further up is never asked about again."""
        if min(self._known, default=floor) < floor:
            self._known = {offset: it for offset, it in self._known.items() if offset >= floor}

    def single_out(self, entries: list[Entry], lanes: Lanes, condemn: Callable[[Entry], bool]) -> list[Entry]:
        """Of entries that were taken from the lanes, those that may run beside others.

        A suspect waits in `turn`, and its lane behind it, unless it has killed often enough: then it is
        failed, and `condemn` sees to it; false: it has blocked its lane. If something of its lane goes before
        it, it is put back, for that may have to be tried again.
        """
        free: list[Entry] = []
        before: set[str | int] = set()
        behind: set[str | int] = set()
        for entry in entries:
            lane = entry.lane
            if lane in behind:
                lanes.put_back([entry])
            elif entry.passed or entry.offset not in self._known:
                before.add(lane)
                free.append(entry)
            elif lane in before:
                behind.add(lane)
                lanes.put_back([entry])
            elif self._convict(entry):
                if not condemn(entry):
                    behind.add(lane)
            else:
                behind.add(lane)
                lanes.block(entry)
                self.turn.append(entry)
        return free

    def _convict(self, entry: Entry) -> bool:
        suspect = self._known[entry.offset]
        if suspect.deaths < CRASH_DEATHS:
            return False
        entry.status, entry.reason = "failed", "crash"
        entry.attempts = 1 + suspect.deaths  # the first one was not alone
        entry.error = f"{suspect.deaths} workers died while this ran alone; the last one: {suspect.cause}"
        return True
