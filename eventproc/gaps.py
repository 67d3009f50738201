"""When a gap may be given up (CONTRACT 4.2): past its deadline, and the log read up to where it ended then.

Closing has three steps: the buffer gives the gap up (`Gap`), the closing is written to Redis, and only then
is what lies beyond released.
"""

from __future__ import annotations

from itertools import count

from eventproc._reorder import ReorderBuffer
from eventproc.effects import Entry, Gap, GapReason

_Report = tuple[str, int]  # user, number


class GapKeeper:
    """Decides which gaps are closed, and keeps what arrives for a user while its closing is written."""

    def __init__(self, buffer: ReorderBuffer) -> None:
        self._buffer = buffer
        self._reports: dict[str, int] = {}  # user -> number of the latest report that its gap is due
        self._reported = count(1)
        self._due: list[_Report] = []  # gaps past their deadline
        self._probing: list[_Report] | None = None  # those for which the partition's end is asked
        self._barriers: list[tuple[int, list[_Report]]] = []  # and those that wait until it is read
        # users whose gap is to be closed once nothing of theirs is in flight: due, and read up to the end;
        self._deferred_due: dict[str, None] = {}
        # or early, for which reason, if the user's expected seq is the same then
        self._deferred_early: dict[str, tuple[GapReason, int]] = {}
        self._closing: dict[str, list[Entry]] = {}  # user -> arrivals below meanwhile

    def expire(self, now_ms: int) -> bool:
        """Take up what is due; True: the partition's end is to be asked for."""
        for user in self._buffer.due(now_ms):
            # it may be another gap than the one reported before, which then needs an end of its own
            self._reports[user] = number = next(self._reported)
            self._due.append((user, number))
            self._deferred_due.pop(user, None)
        if not self._due or self._probing is not None:
            return False
        self._probing, self._due = self._due, []
        return True

    def on_end_offset(self, end: int) -> None:
        """The partition ended there."""
        if self._probing is not None:
            self._barriers.append((end, self._probing))
            self._probing = None

    def close_read(self) -> list[Gap]:
        """Close the due gaps whose end has been read."""
        gaps: list[Gap] = []
        while self._barriers and self._buffer.position >= self._barriers[0][0]:
            reports = self._barriers.pop(0)[1]
            users = [user for user, number in reports if self._reports.get(user) == number]
            gaps += self.close(users, "timeout")
        return gaps

    def close(self, users: list[str], reason: GapReason) -> list[Gap]:
        """Give up these users' gaps; those of users with something in flight, once it is final.

        What is in flight lies below the gap: were the gap written first and the worker died, it would
        come back below the expected seq.
        """
        free = []
        for user in users:
            if not self._buffer.in_flight(user):
                free.append(user)
            elif reason == "timeout":
                self._deferred_due[user] = None
            else:
                self._deferred_early[user] = (reason, self._buffer.expected(user))
        gaps = []
        # a gap that has changed since it was due has a deadline of its own
        for user, first, last, adopt in self._buffer.close(free, only_due=reason == "timeout"):
            self._deferred_due.pop(user, None)
            self._deferred_early.pop(user, None)
            self._reports.pop(user, None)
            self._closing[user] = []
            gaps.append(Gap(user, first, last, "reset" if adopt else reason))
        return gaps

    def close_deferred(self) -> list[Gap]:
        """Something became final: close the gaps for which that was waited for."""
        gaps: list[Gap] = []
        in_flight = self._buffer.in_flight
        for user in [user for user in self._deferred_early if not in_flight(user)]:
            reason, expected = self._deferred_early.pop(user)
            if self._buffer.expected(user) == expected:  # else there is room again, or is soon
                gaps += self.close([user], reason)
        # a gap may have been filled in part; what is left of it has no other deadline
        due = [user for user in self._deferred_due if not in_flight(user)]
        for user in due:
            del self._deferred_due[user]
        return gaps + self.close(due, "timeout")

    def holds(self, entry: Entry) -> bool:
        """Keep an arrival below the expected seq while its user's closing is written: the ledger, which
        decides what it is, is not complete."""
        late = self._closing.get(entry.user)
        if late is None:
            return False
        late.append(entry)
        return True

    def written(self, user: str) -> list[Entry]:
        """The closing is written: the arrivals that were kept."""
        return self._closing.pop(user, [])

    def restart(self, now_ms: int) -> None:
        """Time so far does not count: every full gap timeout starts anew."""
        self._buffer.restart_timers(now_ms)
        self._due.clear()
        self._reports.clear()
        self._barriers.clear()
        self._probing = None
        self._deferred_due.clear()
