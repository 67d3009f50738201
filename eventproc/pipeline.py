"""One partition as a state machine: given records, replies, results and the time, it says what to do next.

It does no I/O and reads no clock. `step` answers with requests (`effects`); whoever carries them out
brings the replies back through the `on_…` methods. At most one load, one acquire and one finalize call
are under way, so that the next batch is prepared while Redis works, and Redis sees calls in order.

The way of an entry (CONTRACT section 4):

    on_records ─ buffer ─ ready ─► _waiting ─ acquire ─► lanes ─ run ─► _done ─ finalize ─► settled
                    │ parked                    │ final: duplicate, conflict        └► DLQ produce ─► settled
                    └ below, jumped, occupied ─► look up ─ late, stale ─────────────► _done
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from random import Random
from typing import Protocol

from eventproc._reorder import Arrivals, ReorderBuffer
from eventproc.effects import (
    Acquire,
    Acquired,
    Claimed,
    Commit,
    Entry,
    FetchEnd,
    Final,
    Finalize,
    Finalized,
    Gap,
    GapReason,
    LoadUsers,
    Offsets,
    Produce,
    Reason,
    Record,
    Refusal,
    Release,
    Request,
    Run,
    Seek,
    UserEffects,
    UserState,
    Verdict,
)
from eventproc.errors import Fenced, Reject
from eventproc.handlers import NOT_RUN, Outcome, describe_failure
from eventproc.intake import Intake
from eventproc.lanes import Lanes
from eventproc.metrics import Counter, Histogram
from eventproc.ownership import Ownership
from eventproc.settings import Settings

HEARTBEAT_MS = 1000  # ownership and revision are checked that often when idle
FLOOR_ONLY_MS = 100  # a floor that rises without effects is written that often under load
LOCKED_RETRY_MS = 50
FOREIGN_RETRY_MS = 5000
PRODUCE_RETRY_MS = 200
PAUSE_COUNTS_MS = 1000  # not reading for longer stops the gap timers
MAX_LATENCY_MS = 86_400_000  # producers' timestamps may be anything
RUN_SLICE_MS = 50  # a run gives the loop back after about that long


_Report = tuple[str, int]  # user, number


class Meter(Protocol):
    """Where figures go; a `metrics.Page`."""

    def inc(self, metric: Counter, n: int = 1, label: str = "") -> None: ...
    def observe(self, metric: Histogram, values: Iterable[float]) -> None: ...


@dataclass(slots=True)
class _Aside:
    """A user whose effects Redis refuses, because of `key`."""

    key: str
    entries: list[Entry] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)
    waiting: list[Entry] = field(default_factory=list)
    retrying: bool = False


class Pipeline:
    """The state machine of one partition; see the module's text.

    `partitions` is the topic's number of partitions, `owner` this worker's token; `warn(event, **fields)`
    takes what an operator should read.
    """

    def __init__(
        self,
        settings: Settings,
        partition: int,
        partitions: int,
        owner: str,
        *,
        meter: Meter,
        random: Random,
        warn: Callable[..., None],
        may_take: Callable[[str], bool] = lambda owner: False,
        force: bool = False,
    ) -> None:
        self._settings = settings
        self._partition = partition
        self._meter = meter
        self._random = random
        self._warn = warn
        self._intake = Intake(settings, partition, partitions)
        self._by_event = settings.locking == "event"
        self.ownership = Ownership(settings, partition, owner, may_take, force)
        self.draining = False
        self.drained = False
        self._suspended = False
        self._reset(0)

    def _reset(self, position: int) -> None:
        """Forget everything: the state is read back from Redis and Kafka."""
        s = self._settings
        self.buffer = ReorderBuffer(
            position=position,
            gap_timeout_ms=s.gap_timeout_ms,
            max_seq_jump=s.max_seq_jump,
            max_parked_per_user=s.max_parked_per_user,
            max_parked=s.max_parked,
            max_parked_bytes=s.max_parked_bytes,
            max_users=s.max_users,
        )
        self.acked_floor = position  # the last floor that Redis acknowledged
        self.foreign: dict[str, str] = {}  # user -> key of the wrong type in its way
        self._lanes = Lanes()
        self._ids: dict[str, Entry] = {}  # ids from look-up to final
        self._id_waiters: dict[str, list[Entry]] = {}
        self._unknown: list[str] = []
        self._loading: LoadUsers | None = None
        self._waiting: deque[Entry] = deque()  # for acquire
        self._acquiring: Acquire | None = None
        self._running: Run | None = None
        self._run_ms = 0.0  # of one handler run, smoothed
        self._done: deque[Entry] = deque()  # for finalize
        self._gaps: deque[Gap] = deque()
        self._finalizing: Finalize | None = None
        self._asides: dict[str, _Aside] = {}
        self._has_next: set[str] = set()  # users whose next: key exists
        self._settled: list[int] = []
        self._held: set[int] = set()  # settled too early: the call that did it was refused in part
        self._to_produce: list[Entry] = []
        self._producing: dict[int, Entry] = {}  # by offset, until Kafka has acknowledged
        self._inflight: dict[str, int] = {}  # user -> released entries that are not final
        self._reports: dict[str, int] = {}  # user -> number of the latest report that its gap is due
        self._reported = count(1)
        self._due: list[_Report] = []  # gaps past their deadline
        self._probing: list[_Report] | None = None  # those for which the partition's end is asked
        self._barriers: list[tuple[int, list[_Report]]] = []  # and those that wait until it is read
        self._deferred: dict[str, GapReason] = {}  # to be closed once nothing of the user is in flight
        self._closing: dict[str, list[Entry]] = {}  # user -> arrivals below, while its closing is written
        self._release: Release | None = None
        self._released = False
        self._committed = -1
        self._committed_ms = 0
        self._finalized_ms = 0
        self._idle_reading_ms: int | None = None
        self._paused = False

    # --- what the worker asks ---------------------------------------------------------------------

    @property
    def owned(self) -> bool:
        """Whether the partition is ours."""
        return self.ownership.owned

    @property
    def wants_records(self) -> bool:
        """Whether records may be read: not while Redis, the handler or the floor is far behind."""
        limit = 4 * self._settings.batch_max
        return (
            self.ownership.owned
            and not self.draining
            and len(self._waiting) + len(self._done) + self._lanes.ready() < limit
            and self.buffer.position - self.buffer.floor() < self._settings.max_replay_records
        )

    @property
    def paused(self) -> bool:
        """Whether reading has stood still for long enough to stop the gap timers."""
        return self._paused

    @property
    def floor(self) -> int:
        """Lowest offset that is not final, as far as is known here."""
        if self._settled:
            self.buffer.settle(self._settled)
            self._settled = []
        floor = self.buffer.floor()
        return min(floor, min(self._held)) if self._held else floor

    @property
    def idle(self) -> bool:
        """Nothing is under way; what is parked only waits for its gap."""
        return not (
            self._unknown
            or self._loading
            or self._waiting
            or self._acquiring
            or self._running
            or self._done
            or self._gaps
            or self._finalizing
            or self._to_produce
            or self._producing
            or not self._lanes.is_idle()
        )

    def next_deadline_ms(self) -> int:
        """When `step` is due although nothing happens, monotonic; -1 = no such time."""
        times = [self._lanes.next_due_ms(), self.buffer.next_deadline_ms()]
        return min((t for t in times if t >= 0), default=-1)

    # --- what happens -----------------------------------------------------------------------------

    def step(self, now_ms: int) -> list[Request]:
        """What to do next, in this order."""
        if not self.ownership.owned:
            request = self.ownership.step(now_ms)
            return [request] if request is not None else []
        requests: list[Request] = []
        if self.draining:
            self._drain_step(now_ms, requests)
        else:
            self._lanes.fire(now_ms)
            self._watch_reading(now_ms)
            self._expire(now_ms, requests)
            self._load(requests)
        # finalize before acquire: what it writes to the gap ledger decides look-ups behind it
        self._finalize(now_ms, requests)
        if not self.draining:
            self._acquire(now_ms, requests)
        self._produce(requests)
        self._commit(now_ms, requests)
        if not self.draining:
            self._run(now_ms, requests)
        return requests

    def drain(self) -> None:
        """Come to an end: start nothing, finish what ran, drop the locks of the rest."""
        self.draining = True

    def suspend(self) -> None:
        """Redis or Kafka is away: gap timers stand still."""
        self._suspended = True

    def resume(self, now_ms: int) -> None:
        """They are back, or this process was stopped until now: every full gap timeout starts anew."""
        self._suspended = False
        self.buffer.restart_timers(now_ms)
        self._due.clear()
        self._reports.clear()
        self._barriers.clear()
        self._probing = None
        self._deferred = {user: why for user, why in self._deferred.items() if why != "timeout"}

    def on_offsets(self, offsets: Offsets) -> None:
        """Reply to FetchOffsets."""
        self.ownership.on_offsets(offsets)

    def on_claimed(self, reply: Claimed, now_ms: int) -> list[Request]:
        """Reply to Claim; ConfigError if there is nowhere to start from."""
        start = self.ownership.on_claimed(reply, now_ms)
        if start < 0:
            return []
        self._reset(start)
        self._finalized_ms = now_ms
        if reply.offset != start:
            self.acked_floor = -1  # to be written at once
        return [Seek(start)]

    def on_records(self, records: list[Record], now_ms: int) -> None:
        """Records of the partition, in offset order."""
        batch = self._intake.take(records, now_ms)
        meter = self._meter
        meter.inc("records_consumed", len(records))
        if batch.tombstones:
            meter.inc("events", batch.tombstones, "tombstone")
        if batch.misrouted:
            meter.inc("events", len(batch.misrouted), "misrouted")
            self._warn(
                "misrouted",
                records=len(batch.misrouted),
                user=batch.misrouted[0].user,
                offset=batch.misrouted[0].offset,
                remedy="produce with partitioner=murmur2_random and the userId as the key",
            )
        if batch.entries:
            self._take(
                self.buffer.push(batch.users, batch.seqs, batch.offsets, batch.sizes, batch.entries, now_ms),
                now_ms,
            )
            over = self.buffer.overfull()
            if over:
                self._close(over, "overflow")
        if batch.end >= 0:
            self.buffer.advance(batch.end)

    def on_position(self, position: int) -> None:
        """The reader stands at `position`, past markers that are no records."""
        self.buffer.advance(position)

    def on_end_offset(self, end: int) -> None:
        """Reply to FetchEnd."""
        if self._probing is not None:
            self._barriers.append((end, self._probing))
            self._probing = None

    # --- users ------------------------------------------------------------------------------------

    def _load(self, requests: list[Request]) -> None:
        if self._unknown and self._loading is None:
            n = 2 * self._settings.batch_max
            self._loading = LoadUsers(self._unknown[:n])
            del self._unknown[:n]
            requests.append(self._loading)

    def on_loaded(self, request: LoadUsers, states: list[UserState], now_ms: int) -> None:
        """Reply to LoadUsers."""
        if request is not self._loading:
            return
        self._loading = None
        users: list[str] = []
        expected: list[int] = []
        adopt: list[bool] = []
        with_baseline = self.ownership.baseline >= 0
        for user, state in zip(request.users, states, strict=True):
            if state.foreign:
                self._set_foreign(user, state.foreign)
                self._lanes.later(now_ms + FOREIGN_RETRY_MS, partial(self._unknown.append, user))
                continue
            self.foreign.pop(user, None)
            if state.next:
                self._has_next.add(user)
            users.append(user)
            expected.append(max(state.last + 1, state.next, 1))
            adopt.append(with_baseline and not state.last and not state.next)
        self._take(self.buffer.load(users, expected, adopt, now_ms), now_ms)

    # --- arrivals ---------------------------------------------------------------------------------

    def _take(self, arrivals: Arrivals, now_ms: int) -> None:
        if arrivals.unknown:
            self._unknown.extend(arrivals.unknown)
        for user in arrivals.evicted:
            self._has_next.discard(user)
        # first what is to run: a copy of it further down the batch must not be looked up before it
        if arrivals.ready:
            self._take_ready(arrivals.ready, now_ms)
        for item in arrivals.jumped:
            entry: Entry = item
            entry.reason = "seq_jump"
            entry.error = (
                f"seq {entry.seq} is more than max_seq_jump ({self._settings.max_seq_jump}) above "
                f"the expected {self.buffer.expected(entry.user)}"
            )
            self._look(entry)
        for item, existing in arrivals.occupied:
            self._take_occupied(item, existing)
        for item in arrivals.below:
            entry = item
            stash = self._closing.get(entry.user) if self._closing else None
            if stash is not None:
                stash.append(entry)
            else:
                self._look(entry)

    def _take_ready(self, entries: list[Entry], now_ms: int) -> None:
        ids = self._ids
        inflight = self._inflight
        waiting = self._waiting if self._by_event else None
        held = []
        for entry in entries:
            if entry.letter:
                self._done.append(entry)
                continue
            if entry.look:
                self._look(entry)
                continue
            if entry.arrived_ms != now_ms:
                held.append(now_ms - entry.arrived_ms)
            if entry.seq:
                inflight[entry.user] = inflight.get(entry.user, 0) + 1
            if entry.id in ids:
                self._await_id(entry)
                continue
            ids[entry.id] = entry
            if waiting is not None or not entry.seq:
                self._waiting.append(entry)
            else:
                self._lanes.enter(entry)
        if held:
            self._meter.observe("hold_ms", held)

    def _take_occupied(self, entry: Entry, existing: Entry) -> None:
        if entry.id == existing.id:
            self._duplicate(entry)
            return
        entry.reason = "stale"
        entry.error = f"seq {entry.seq} is taken by {existing.id} at offset {existing.offset}"
        self._look(entry)

    def _look(self, entry: Entry) -> None:
        """Ask whether the id is final; it takes no lock and is not run."""
        entry.look = True
        other = self._ids.get(entry.id)
        if other is None:
            self._ids[entry.id] = entry
            self._waiting.append(entry)
        elif other.user == entry.user and other.seq == entry.seq:
            self._duplicate(entry)
        else:
            self._id_waiters.setdefault(entry.id, []).append(entry)

    def _await_id(self, entry: Entry) -> None:
        """The id is under way already; what comes of it decides."""
        other = self._ids[entry.id]
        if not entry.seq and not other.seq and other.user == entry.user:
            self._duplicate(entry)
            return
        self._lanes.block(entry)
        self._id_waiters.setdefault(entry.id, []).append(entry)

    def _free_id(self, entry: Entry) -> None:
        """The entry's id is not under way any more: whoever waits for it may look it up."""
        if self._ids.get(entry.id) is not entry:
            return
        del self._ids[entry.id]
        waiters = self._id_waiters.pop(entry.id, None)
        if not waiters:
            return
        first = waiters.pop(0)
        self._ids[first.id] = first
        self._waiting.append(first)
        if waiters:
            self._id_waiters[first.id] = waiters

    # --- acquire ----------------------------------------------------------------------------------

    def _acquire(self, now_ms: int, requests: list[Request]) -> None:
        if self._acquiring is not None or not self._waiting:
            return
        n = self._settings.batch_max
        if self._run_ms:  # no more than runs within half the lock's life
            n = min(n, int(self._settings.inflight_ttl_ms / 2 / self._run_ms))
        n = max(1, n) - max(0, self._lanes.ready() - self._settings.batch_max)
        if n <= 0:
            return
        waiting = self._waiting
        entries = [waiting.popleft() for _ in range(min(n, len(waiting)))]
        self._acquiring = Acquire(self.ownership.epoch, self.ownership.owner, entries)
        self._meter.observe("acquire_batch_events", (len(entries),))
        requests.append(self._acquiring)

    def on_acquired(self, request: Acquire, reply: Acquired, now_ms: int) -> None:
        """Reply to Acquire. Raises Fenced."""
        if request is not self._acquiring:
            return
        self._acquiring = None
        if self._lost(reply.status):
            return
        enter = self._lanes.enter
        for i, (entry, verdict) in enumerate(zip(request.entries, reply.verdicts, strict=True)):
            if verdict == Verdict.GRANTED:
                entry.granted_ms = now_ms
                enter(entry)
                continue
            if verdict == Verdict.FINAL:
                self._final(entry, reply.finals.get(i, Final()))
            elif verdict == Verdict.LOCKED:
                self._again(entry, now_ms + LOCKED_RETRY_MS)
            elif verdict == Verdict.FOREIGN:
                self._set_foreign(entry.user, reply.foreign.get(i, f"a key of {entry.id}"))
                self._again(entry, now_ms + FOREIGN_RETRY_MS)
                continue
            else:
                self._below(entry, late=verdict == Verdict.LATE)
            if self.foreign and entry.user in self.foreign and entry.user not in self._asides:
                del self.foreign[entry.user]

    def _again(self, entry: Entry, due_ms: int) -> None:
        if not entry.look:
            self._lanes.block(entry)
        self._lanes.later(due_ms, partial(self._waiting.append, entry))

    def _below(self, entry: Entry, late: bool) -> None:
        """The id was looked up and is not final (CONTRACT 4.3, 4.5, 4.8)."""
        if entry.reason in ("seq_jump", "misrouted"):
            entry.status = "failed"
        else:
            entry.status = "skipped"
            if not entry.error:
                entry.error = (
                    f"seq {entry.seq} was given up on before it arrived"
                    if late
                    else f"seq {entry.seq} was taken by another event"
                )
                entry.reason = "late" if late else "stale"
            if self._settings.late_policy == "skip":
                entry.reason = ""
        self._done.append(entry)

    def _final(self, entry: Entry, final: Final) -> None:
        """The id is final already (CONTRACT 4.4, 4.7)."""
        here = final.partition == self._partition and final.offset == entry.offset
        same = not final.status or (final.user == entry.user and final.seq == entry.seq)
        conflict = replay = False
        if same and here and final.reason:
            # this very record, dead-lettered before a restart: its copy may never have reached the topic
            replay = True
            entry.status, entry.reason = final.status, _reason(final.reason)
            entry.attempts, entry.error = final.attempts, final.error
        elif same:
            entry.reason = ""
        else:
            conflict = True
            entry.reason = "id_conflict"
            entry.error = (
                f"id {entry.id} is final as {final.status} for user {final.user}, seq {final.seq or 'none'}"
            )
        if entry.seq and not entry.look:
            entry.passed = True  # in its turn it moves its user on
            if not replay and not conflict:
                self._meter.inc("events", 1, "duplicate")
            self._free_id(entry)
            self._lanes.enter(entry)
            return
        self._free_id(entry)
        if conflict:
            self._done.append(self._conflict_letter(entry))
        elif replay:
            self._to_produce.append(entry)
        else:
            self._duplicate(entry)
        if not entry.look:
            self._lanes.drop(entry)

    def _conflict_letter(self, entry: Entry) -> Entry:
        """What is dead-lettered of a record whose id belongs to another event."""
        return replace(
            entry,
            id=self._intake.position_id(entry.offset),
            letter=True,
            look=False,
            passed=False,
            held=False,
            status="",
            reason="id_conflict",
        )

    def _duplicate(self, entry: Entry) -> None:
        self._meter.inc("events", 1, "duplicate")
        self._settle(entry.offset)

    # --- run --------------------------------------------------------------------------------------

    def _run(self, now_ms: int, requests: list[Request]) -> None:
        lanes = self._lanes
        if self._running is not None or not lanes.ready():
            return
        n = self._settings.batch_max
        if self._run_ms:
            n = max(1, min(n, int(RUN_SLICE_MS / self._run_ms)))
        entries = lanes.take(n)
        oldest_ms = now_ms - self._settings.inflight_ttl_ms // 2
        if self._asides or (self._by_event and any(e.granted_ms < oldest_ms for e in entries)):
            entries = self._hold_back(entries, oldest_ms)
        if entries:
            self._running = Run(entries)
            requests.append(self._running)

    def _hold_back(self, entries: list[Entry], oldest_ms: int) -> list[Entry]:
        """Leave out what may not run now: users set aside, and locks too old to last through a run."""
        free: list[Entry] = []
        behind: set[str | int] = set()
        for entry in entries:
            aside = self._asides.get(entry.user) if entry.seq else None
            if aside is not None:
                aside.waiting.append(entry)
            elif entry.lane in behind:
                self._lanes.enter(entry)
            elif entry.granted_ms and entry.granted_ms < oldest_ms and not entry.passed:
                behind.add(entry.lane)
                self._lanes.block(entry)
                self._waiting.append(entry)
            else:
                free.append(entry)
        return free

    def on_ran(self, request: Run, outcomes: list[Outcome], took_ms: float, now_ms: int) -> None:
        """The handler ran: what came of each entry, and how long all took."""
        if request is not self._running:
            return
        self._running = None
        done = self._done.append
        not_run: list[Entry] = []
        passed = 0
        for entry, outcome in zip(request.entries, outcomes, strict=True):
            if outcome is None:
                if entry.passed:
                    passed += 1
                    done(entry)
                    if entry.reason == "id_conflict":
                        done(self._conflict_letter(entry))
                    continue
                entry.attempts += 1
                entry.status = "processed"
                done(entry)
            elif outcome is NOT_RUN:
                not_run.append(entry)
            else:
                assert isinstance(outcome, BaseException)
                self._failed(entry, outcome, now_ms)
        for entry in not_run:
            self._lanes.enter(entry)
        runs = len(outcomes) - len(not_run) - passed
        if runs:
            self._meter.inc("handler_runs", runs)
            each_ms = took_ms / runs
            self._run_ms = each_ms if not self._run_ms else 0.8 * self._run_ms + 0.2 * each_ms
            self._meter.observe("handler_ms", [each_ms] * runs)

    def _failed(self, entry: Entry, error: BaseException, now_ms: int) -> None:
        entry.attempts += 1
        s = self._settings
        if isinstance(error, Reject) or entry.attempts >= s.max_attempts:
            entry.status = "failed"
            entry.reason = "rejected" if isinstance(error, Reject) else "handler"
            entry.error = error.reason if isinstance(error, Reject) else describe_failure(error)
            self._done.append(entry)
            return
        self._meter.inc("retries")
        if s.retry_backoff == "linear":
            pause_ms: float = s.retry_backoff_ms * entry.attempts
        else:
            pause_ms = s.retry_backoff_ms * 2 ** (entry.attempts - 1) * (0.5 + self._random.random() / 2)
        self._lanes.block(entry)
        due_ms = now_ms + int(min(pause_ms, s.retry_backoff_max_ms))
        self._lanes.later(due_ms, partial(self._lanes.enter, entry))

    # --- finalize ---------------------------------------------------------------------------------

    def _finalize(self, now_ms: int, requests: list[Request]) -> None:
        if self._finalizing is not None:
            return
        batch, groups = self._collect()
        floor = self.floor
        if not batch and not groups:
            waited_ms = now_ms - self._finalized_ms
            idle = self.idle or self.draining
            risen = floor != self.acked_floor and (idle or waited_ms >= FLOOR_ONLY_MS)
            if not risen and waited_ms < HEARTBEAT_MS:
                return
        else:
            self._meter.observe("finalize_batch_events", (len(batch),))
        owner = self.ownership
        self._finalized_ms = now_ms
        self._finalizing = Finalize(
            owner.epoch,
            owner.owner,
            owner.rev + 1,
            floor,
            self.buffer.unfinalized() + len(self._held),
            groups=groups,
            loose=[e for e in batch if not e.letter and (e.look or not e.seq)],
            letters=[e for e in batch if e.letter],
        )
        requests.append(self._finalizing)

    def _collect(self) -> tuple[list[Entry], list[UserEffects]]:
        """Take the next batch off `_done` and `_gaps`; offsets that it makes final are settled."""
        groups: dict[str, UserEffects] = {}
        for _ in range(min(len(self._gaps), self._settings.batch_max)):
            gap = self._gaps.popleft()
            aside = self._asides.get(gap.user)
            if aside is not None and not aside.retrying:
                aside.gaps.append(gap)
                continue
            group = groups.get(gap.user)
            if group is None:
                group = groups[gap.user] = UserEffects(gap.user, gap.user in self._has_next)
            group.gaps.append(gap)
        batch: list[Entry] = []
        done = self._done
        settled = self._settled
        held = self._held
        for _ in range(min(len(done), self._settings.batch_max)):
            entry = done.popleft()
            ordered = entry.seq and not entry.look and not entry.letter
            if ordered:
                user = entry.user
                if self._asides:
                    aside = self._asides.get(user)
                    if aside is not None and not aside.retrying:
                        aside.entries.append(entry)
                        continue
                group = groups.get(user)
                if group is None:
                    group = groups[user] = UserEffects(user, user in self._has_next)
                group.entries.append(entry)
            batch.append(entry)
            if not entry.reason:
                if entry.offset in held:
                    held.discard(entry.offset)
                else:
                    settled.append(entry.offset)
        return batch, list(groups.values())

    def on_finalized(self, request: Finalize, reply: Finalized, now_ms: int, wall_ms: int) -> None:
        """Reply to Finalize. Raises Fenced."""
        if request is not self._finalizing:
            return
        self._finalizing = None
        if self._lost(reply.status):
            return
        self.ownership.rev = request.rev
        self.acked_floor = reply.floor
        index = 0
        latencies: list[float] = []
        refused = reply.refused
        for at, group in enumerate(request.groups):
            if at in reply.foreign:
                self._set_aside(group, group.entries, reply.foreign[at], now_ms)
                index += len(group.entries)
                continue
            foreign: list[Entry] = []
            ahead = bool(group.gaps)  # whether next: tells more than the list
            moved = ahead
            for entry in group.entries:
                why = refused.get(index) if refused else None
                index += 1
                if why == Refusal.FOREIGN:
                    foreign.append(entry)
                    continue
                moved = True
                ahead = why is not None or entry.passed or entry.status != "processed"
                if why is None:
                    self._applied(entry, wall_ms, latencies)
                else:
                    self._refuse(entry, why)
                self._leave(entry)
            if moved:
                (self._has_next.add if ahead else self._has_next.discard)(group.user)
            if group.gaps:
                self._gap_written(group, now_ms)
            if foreign:
                self._set_aside(None, foreign, f"a key of {foreign[0].id}", now_ms)
            elif self._asides and group.user in self._asides:
                self._rejoin(group.user)
            if self._deferred and group.user in self._deferred and not self._inflight.get(group.user):
                self._close([group.user], self._deferred.pop(group.user))
        for entry in (*request.loose, *request.letters):
            why = refused.get(index) if refused else None
            if why is None:
                self._applied(entry, wall_ms, latencies)
            elif why == Refusal.FOREIGN:
                self._hold(entry)
                self._lanes.later(now_ms + FOREIGN_RETRY_MS, partial(self._done.append, entry))
                self._set_foreign(entry.user, f"a key of {entry.id}")
            else:
                self._refuse(entry, why)
            index += 1
        if latencies:
            self._meter.observe("latency_ms", latencies)

    def _applied(self, entry: Entry, wall_ms: int, latencies: list[float]) -> None:
        if entry.passed:
            if entry.status and entry.reason:
                self._to_produce.append(entry)
            return
        if self._ids.get(entry.id) is entry:
            self._free_id(entry)
        if entry.status:
            self._meter.inc("events", 1, entry.status)
            latencies.append(min(max(0, wall_ms - entry.timestamp), MAX_LATENCY_MS))
        elif entry.reason == "invalid":
            self._meter.inc("events", 1, "invalid")
        if entry.reason:
            self._meter.inc("dead_letters", 1, entry.reason)
            self._to_produce.append(entry)

    def _leave(self, entry: Entry) -> None:
        """A sequenced entry is final: one less of its user is in flight."""
        user = entry.user
        left = self._inflight[user] - 1
        if left:
            self._inflight[user] = left
        else:
            del self._inflight[user]
        self.buffer.finish([user])

    def _refuse(self, entry: Entry, why: Refusal) -> None:
        """Another worker made the id final meanwhile."""
        self._free_id(entry)
        if why == Refusal.FINAL:
            self._meter.inc("events", 1, "duplicate")
            if entry.reason:
                self._settle(entry.offset)
            return
        self._hold(entry)
        entry.error = f"id {entry.id} became final under another user or seq"
        self._done.append(self._conflict_letter(entry))

    def _hold(self, entry: Entry) -> None:
        """The offset is not final after all."""
        if not entry.reason:
            self._held.add(entry.offset)

    # --- users set aside --------------------------------------------------------------------------

    def _set_foreign(self, user: str, key: str) -> None:
        if self.foreign.get(user) != key:
            self.foreign[user] = key
            self._meter.inc("foreign_keys")
            self._warn(
                "foreign_key", user=user, key=key, remedy="delete or rename the key; the user waits for it"
            )

    def _set_aside(self, group: UserEffects | None, entries: list[Entry], key: str, now_ms: int) -> None:
        user = group.user if group is not None else entries[0].user
        self._set_foreign(user, key)
        aside = self._asides.get(user)
        if aside is None:
            aside = self._asides[user] = _Aside(key)
        aside.key, aside.retrying = key, False
        for entry in entries:
            self._hold(entry)
        aside.entries[:0] = entries
        if group is not None:
            aside.gaps[:0] = group.gaps
        self._lanes.later(now_ms + FOREIGN_RETRY_MS, partial(self._retry_aside, user))

    def _retry_aside(self, user: str) -> None:
        aside = self._asides.get(user)
        if aside is None:
            return
        aside.retrying = True
        self._done.extendleft(reversed(aside.entries))
        self._gaps.extendleft(reversed(aside.gaps))
        aside.entries, aside.gaps = [], []

    def _rejoin(self, user: str) -> None:
        """The user's effects were taken: its waiting events may run."""
        aside = self._asides.pop(user)
        self.foreign.pop(user, None)
        for entry in aside.waiting:
            self._lanes.enter(entry)

    # --- gaps -------------------------------------------------------------------------------------

    def _watch_reading(self, now_ms: int) -> None:
        """Time in which nothing is read does not count for gaps (CONTRACT 4.2)."""
        if self.wants_records:
            self._idle_reading_ms = None
            if self._paused:
                self._paused = False
                self.resume(now_ms)
            return
        if self._idle_reading_ms is None:
            self._idle_reading_ms = now_ms
        elif now_ms - self._idle_reading_ms >= PAUSE_COUNTS_MS:
            self._paused = True
        self._unstick()

    def _unstick(self) -> None:
        """A gap that holds the floor at max_replay_records is closed early, the oldest first."""
        if self.buffer.position - self.buffer.floor() < self._settings.max_replay_records:
            return
        holder = self.buffer.floor_gap()
        if holder is not None:
            self._close([holder[0]], "overflow")

    def _expire(self, now_ms: int, requests: list[Request]) -> None:
        if self._suspended or self._paused:
            return
        for user in self.buffer.due(now_ms):
            # it may be another gap than the one reported before, which then needs an end of its own
            self._reports[user] = number = next(self._reported)
            self._due.append((user, number))
            if self._deferred.get(user) == "timeout":
                del self._deferred[user]
        if self._due and self._probing is None:
            self._probing, self._due = self._due, []
            requests.append(FetchEnd())
        while self._barriers and self.buffer.position >= self._barriers[0][0]:
            reports = self._barriers.pop(0)[1]
            self._close([user for user, number in reports if self._reports.get(user) == number], "timeout")

    def _close(self, users: list[str], reason: GapReason) -> None:
        """Give up these users' gaps; nothing beyond is run before that is written."""
        free = []
        for user in users:
            if self._inflight.get(user):
                # what is in flight lies below the gap: were the gap written first and the worker died,
                # it would come back below the expected seq
                self._deferred[user] = reason
            else:
                free.append(user)
        # a gap that has changed since it was due has a deadline of its own
        for user, first, last, adopt in self.buffer.close(free, only_due=reason == "timeout"):
            why: GapReason = "reset" if adopt else reason
            self._deferred.pop(user, None)
            self._reports.pop(user, None)
            self._closing[user] = []
            self._gaps.append(Gap(user, first, last, why))
            self._meter.inc("gaps_closed", 1, why)

    def _gap_written(self, group: UserEffects, now_ms: int) -> None:
        late = self._closing.pop(group.user, [])
        self._take(self.buffer.open([group.user], now_ms), now_ms)
        for entry in late:
            self._look(entry)

    # --- dead letters and commits -----------------------------------------------------------------

    def _produce(self, requests: list[Request]) -> None:
        for entry in self._to_produce:
            self._producing[entry.offset] = entry
            requests.append(Produce(entry))
        self._to_produce.clear()

    def on_delivered(self, entry: Entry, error: str | None, now_ms: int) -> None:
        """Kafka has the dead letter, or `error` tells why it has not: then it is sent again."""
        if self._producing.get(entry.offset) is not entry:
            return
        del self._producing[entry.offset]
        if error is None:
            self._settle(entry.offset)
        else:
            self._warn("dead_letter_not_acknowledged", offset=entry.offset, error=error)
            self._lanes.later(now_ms + PRODUCE_RETRY_MS, partial(self._to_produce.append, entry))

    def _settle(self, offset: int) -> None:
        if offset in self._held:
            self._held.discard(offset)
        else:
            self._settled.append(offset)

    def _commit(self, now_ms: int, requests: list[Request]) -> None:
        if self.acked_floor <= self._committed:
            return
        if self.idle or self.draining or now_ms - self._committed_ms >= self._settings.commit_interval_ms:
            self._committed = self.acked_floor
            self._committed_ms = now_ms
            requests.append(Commit(self.acked_floor))

    # --- the end ----------------------------------------------------------------------------------

    def _drain_step(self, now_ms: int, requests: list[Request]) -> None:
        self._lanes.fire(now_ms)  # dead letters that must be sent again
        if self._acquiring is not None or self._running is not None:
            return
        if self._release is None and not self._released:
            left = [*self._lanes.entries(), *self._waiting]
            for aside in self._asides.values():
                left += aside.entries + aside.waiting
            self._release = Release(
                self.ownership.epoch, self.ownership.owner, [e for e in left if e.granted_ms and not e.passed]
            )
            requests.append(self._release)
        busy = self._finalizing or self._done or self._to_produce or self._producing
        self.drained = self._released and not busy and self.floor == self.acked_floor == self._committed

    def on_released(self, request: Release) -> None:
        """Reply to Release."""
        if request is self._release:
            self._released = True

    def _lost(self, status: str) -> bool:
        """What a reply says of the ownership; True: everything was thrown away and is claimed anew."""
        if status == "ok":
            return False
        if status == "fenced":
            raise Fenced(
                f"partition {self._settings.kafka_topic}/{self._partition} has been taken by another owner "
                f"(epoch {self.ownership.epoch} is over)"
            )
        self._meter.inc("rewinds")
        self._warn("rewound", floor=self.acked_floor, remedy="none: what Redis has lost is processed again")
        self.ownership.lost(self.acked_floor)
        self._reset(self.acked_floor)
        return True


def _reason(text: str) -> Reason:
    return text  # type: ignore[return-value]
