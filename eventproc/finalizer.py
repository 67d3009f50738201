"""From outcomes to effects: batches for the finalize call, and what its reply makes of them.

An entry comes here once it has run, was judged, or is final already; a gap, once it was given up. They
leave when Redis has taken them: settled, or on their way to the DLQ topic.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Protocol

from eventproc._entry import group_by_user, latencies, settle_groups
from eventproc._reorder import ReorderBuffer
from eventproc.asides import Asides
from eventproc.effects import Entry, Finalize, Finalized, Gap, Refusal, UserEffects
from eventproc.lanes import Lanes
from eventproc.metrics import Counter, Histogram
from eventproc.ownership import Ownership
from eventproc.settler import Settler

FLOOR_ONLY_MS = 100  # a floor that rises without effects is written that often under load
FOREIGN_RETRY_MS = 5000
HEARTBEAT_MS = 1000  # ownership and revision are checked that often when idle
MAX_LATENCY_MS = 86_400_000


class Meter(Protocol):
    """Where figures go; a `metrics.Page`."""

    def inc(self, metric: Counter, n: int = 1, label: str = "") -> None: ...
    def observe(self, metric: Histogram, values: Iterable[float]) -> None: ...


@dataclass
class Written:
    """What a finalize call led to: entries whose ids are free, users whose gap closing is recorded, entries
    that may run because their user is not set aside any more, and those that were final already: how, is to
    be looked up."""

    freed: list[Entry] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    rejoined: list[Entry] = field(default_factory=list)
    final: list[Entry] = field(default_factory=list)


@dataclass
class Batch:
    """What one call is made of; `entries` are all that are in it."""

    entries: list[Entry] = field(default_factory=list)
    groups: dict[str, UserEffects] = field(default_factory=dict)
    loose: list[Entry] = field(default_factory=list)
    letters: list[Entry] = field(default_factory=list)


class Finalizer:
    """Collects effects; at most one finalize call is under way.

    `conflict(entry)` dead-letters a record whose id belongs to another event.
    """

    def __init__(
        self,
        batch_max: int,
        buffer: ReorderBuffer,
        lanes: Lanes,
        settler: Settler,
        asides: Asides,
        ownership: Ownership,
        meter: Meter,
        conflict: Callable[[Entry], None],
        now_ms: int,
    ) -> None:
        self._batch_max = batch_max
        self._buffer = buffer
        self._lanes = lanes
        self._settler = settler
        self._asides = asides
        self._ownership = ownership
        self._meter = meter
        self._conflict = conflict
        self.done: deque[Entry] = deque()
        self.acked_floor = buffer.position  # the last floor that Redis acknowledged
        self.has_next: set[str] = set()  # users whose next: key exists
        self.sparse: set[str] = set()  # users whose order list may lack a seq
        self._gaps: deque[Gap] = deque()
        self._under_way: Finalize | None = None
        self._sent_ms = now_ms

    def forget(self, user: str) -> None:
        """The user is loaded anew when it comes again."""
        self.has_next.discard(user)
        self.sparse.discard(user)

    def busy(self) -> bool:
        """Whether something is to be written, or being written."""
        return bool(self.done or self._gaps or self._under_way)

    @property
    def sent_rev(self) -> int:
        """Revision of the last call, answered or not."""
        return self._under_way.rev if self._under_way is not None else self._ownership.rev

    def add_gaps(self, gaps: list[Gap]) -> None:
        """These gaps were given up."""
        self._gaps += gaps
        for gap in gaps:
            self._meter.inc("gaps_closed", 1, gap.reason)

    def step(self, now_ms: int, idle: Callable[[], bool]) -> Finalize | None:
        """The next call, if there is something to write, or it is time to see whether we still own it."""
        if self._under_way is not None:
            return None
        batch = self._collect() if self.done or self._gaps else Batch()
        floor = self._settler.floor()
        if batch.entries or batch.groups:
            self._meter.observe("finalize_batch_events", (len(batch.entries),))
        else:
            waited_ms = now_ms - self._sent_ms
            risen = floor != self.acked_floor and (waited_ms >= FLOOR_ONLY_MS or idle())
            if not risen and waited_ms < HEARTBEAT_MS:
                return None
        self._sent_ms = now_ms
        self._under_way = Finalize(
            self._ownership.epoch,
            self._ownership.owner,
            self._ownership.rev + 1,
            floor,
            self._settler.unfinalized(),
            groups=list(batch.groups.values()),
            loose=batch.loose,
            letters=batch.letters,
        )
        return self._under_way

    def _collect(self) -> Batch:
        """Take the next batch; the offsets that it makes final are settled."""
        batch = Batch()
        for _ in range(min(len(self._gaps), self._batch_max)):
            gap = self._gaps.popleft()
            if not self._asides.holds_gap(gap):
                batch.groups[gap.user] = UserEffects(gap.user, gap.user in self.has_next, (gap,))
        done = self.done
        entries = batch.entries
        if len(done) <= self._batch_max:
            entries += done
            done.clear()
        else:
            entries += [done.popleft() for _ in range(self._batch_max)]
        if self._asides:
            entries[:] = [entry for entry in entries if not self._holds(entry)]
        settled: list[int] = []
        group_by_user(entries, batch.groups, self.has_next, self.sparse, settled, batch.loose, batch.letters)
        self._settler.settle_all(settled)
        return batch

    def _holds(self, entry: Entry) -> bool:
        """Whether the entry is kept back behind what its user has set aside."""
        in_order = bool(entry.seq) and not entry.look and not entry.letter
        return in_order and self._asides.holds_entry(entry)

    def takes(self, request: Finalize) -> bool:
        """Whether this is the call under way; it is not any more then."""
        if request is not self._under_way:
            return False
        self._under_way = None
        return True

    def on_finalized(self, request: Finalize, reply: Finalized, now_ms: int, wall_ms: int) -> Written:
        """Redis has taken the call, or all of it but what it refused."""
        self._ownership.rev = request.rev
        self.acked_floor = reply.floor
        written = Written()
        counts = dict.fromkeys(("processed", "failed", "skipped"), 0)
        applied: list[Entry] = []  # simply processed
        finished: list[str] = []
        self.sparse.update([request.groups[at].user for at in reply.not_dense])
        if reply.refused or reply.foreign or self._asides:
            others = request.starts()
        else:
            others = settle_groups(request.groups, self.has_next, finished, applied)
        for at, first in others:
            group = request.groups[at]
            foreign = reply.foreign.get(at)
            finished += self._take_group(group, first, reply.refused, foreign, counts, written, now_ms)
            if group.gaps and group.user not in self._asides:
                written.opened.append(group.user)
        first = sum([len(group.entries) for group in request.groups])
        for index, entry in enumerate((*request.loose, *request.letters), first):
            self._take_single(entry, reply.refused.get(index), counts, written, now_ms)
        written.freed += applied
        counts["processed"] += len(applied)
        self._buffer.finish(finished)
        self._observe(counts, latencies(applied, wall_ms, MAX_LATENCY_MS))
        return written

    def _take_group(
        self,
        group: UserEffects,
        first: int,
        refused: dict[int, Refusal],
        foreign_key: str | None,
        counts: dict[str, int],
        written: Written,
        now_ms: int,
    ) -> list[str]:
        """What came of one user's effects; `first` is the index of its first entry in the call. Answers the
        user once for each entry that is final."""
        applied = group.entries
        if foreign_key is not None:
            left = [i for i in range(len(applied)) if refused.get(first + i) == Refusal.FOREIGN]
            cut = left[0] if left else 0
            applied, stopped = applied[:cut], applied[cut:]
            self._set_aside(group, stopped, [] if applied else group.gaps, foreign_key, now_ms)
        ahead = bool(group.gaps)  # whether next: tells more than the list
        sparse = ahead or foreign_key is not None
        for index, entry in enumerate(applied, first):
            why = refused.get(index) if refused else None
            sparse = sparse or why is not None or entry.passed or entry.status != "processed"
            if why is None:
                self._applied(entry, counts, written)
                ahead = entry.status != "processed"
            else:
                self._refuse(entry, why, written)
                ahead = True
        if sparse:
            self.sparse.add(group.user)
        if ahead:
            self.has_next.add(group.user)
        elif applied:
            self.has_next.discard(group.user)
        if foreign_key is None and self._asides and group.user in self._asides:
            written.rejoined += self._asides.rejoin(group.user)
        return [group.user] * len(applied)

    def _take_single(
        self, entry: Entry, why: Refusal | None, counts: dict[str, int], written: Written, now_ms: int
    ) -> None:
        """What came of an entry outside its user's order."""
        if why == Refusal.FOREIGN:
            self._settler.hold(entry)
            entry.lock_expiry_ms = 0  # the call has dropped it
            self._lanes.later(now_ms + FOREIGN_RETRY_MS, partial(self.done.append, entry))
            self._asides.name(entry.user, f"a key of {entry.id}", entry.offset)
            return
        if why is None:
            self._applied(entry, counts, written)
        else:
            self._refuse(entry, why, written)
        if self._asides.foreign:
            self._asides.clear(entry.user, entry.offset)

    def _applied(self, entry: Entry, counts: dict[str, int], written: Written) -> None:
        if entry.passed:
            # its letter settles the offset, so it comes after what moves its user on
            if entry.reason == "id_conflict":
                self._conflict(entry)
            elif entry.status and entry.reason:
                self._settler.dead_letter(entry)
            return
        written.freed.append(entry)
        if entry.status:
            counts[entry.status] += 1
        elif entry.reason == "invalid":
            self._meter.inc("events", 1, "invalid")
        if entry.reason:
            self._meter.inc("dead_letters", 1, entry.reason)
            self._settler.dead_letter(entry)

    def _refuse(self, entry: Entry, why: Refusal, written: Written) -> None:
        """Another worker made the id final meanwhile."""
        written.freed.append(entry)
        if why == Refusal.FINAL and entry.offset < self.acked_floor:  # Redis knows that it is processed
            self._meter.inc("events", 1, "duplicate")
            return
        self._settler.hold(entry)
        if why == Refusal.FINAL:
            written.final.append(entry)
        else:
            entry.error = f"id {entry.id} became final under another user or seq"
            self._conflict(entry)

    def _set_aside(
        self, group: UserEffects, entries: list[Entry], gaps: Sequence[Gap], key: str, now_ms: int
    ) -> None:
        self._asides.name(group.user, key)
        for entry in entries:
            self._settler.hold(entry)
            entry.lock_expiry_ms = 0  # the call has dropped it
        self._asides.refuse(group.user, entries, gaps)
        self._lanes.later(now_ms + FOREIGN_RETRY_MS, partial(self._retry_aside, group.user))

    def _retry_aside(self, user: str) -> None:
        entries, gaps = self._asides.retry(user)
        self.done.extendleft(reversed(entries))
        self._gaps.extendleft(reversed(gaps))

    def _observe(self, counts: dict[str, int], latencies_ms: list[int]) -> None:
        for status, n in counts.items():
            if n:
                self._meter.inc("events", n, status)
        if latencies_ms:
            self._meter.observe("latency_ms", latencies_ms)
