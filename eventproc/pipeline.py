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
from collections.abc import Callable
from copy import copy
from functools import partial
from operator import attrgetter
from random import Random

from eventproc._entry import all_sequenced, grant, oldest_grant, take_outcomes
from eventproc._reorder import Arrivals, ReorderBuffer
from eventproc.asides import Asides
from eventproc.breaker import Breaker
from eventproc.effects import (
    Acquire,
    Acquired,
    Claimed,
    Commit,
    Death,
    Ended,
    Entry,
    FetchEnd,
    Final,
    Finalize,
    Finalized,
    LoadUsers,
    Offsets,
    Record,
    Release,
    Renew,
    Renewed,
    Request,
    Run,
    Seek,
    UserState,
    Verdict,
)
from eventproc.errors import Fenced, Reject
from eventproc.finalizer import FOREIGN_RETRY_MS, Finalizer, Meter
from eventproc.gaps import GapKeeper
from eventproc.handlers import NOT_RUN, RUN_SLICE_MS, Outcome, describe_failure
from eventproc.inflight_ids import InflightIds
from eventproc.intake import Intake
from eventproc.lanes import Lanes
from eventproc.ownership import Ownership
from eventproc.settings import Settings
from eventproc.settler import Settler
from eventproc.suspects import Suspects

LOCKED_RETRY_MS = 50
SHORTEST_RUN_MS = 0.001  # it is divided by the smoothed time of a run, which would come to nothing
PAUSE_COUNTS_MS = 1000  # not reading for longer stops the gap timers
COMMIT_AGAIN_MS = 10_000  # no fence keeps a zombie's commit from taking Kafka's offset back


class Pipeline:
    """The state machine of one partition; see the module's text.

    `partitions` is the topic's number of partitions, `owner` this worker's token; `warn(event, **fields)`
    takes what an operator should read. `death` is that of the worker before, if handlers ran then.
    `concurrency` is on how many events the handler may run at a time, one of each user; 0: it runs in the
    worker's own loop. `batches`: it is given all of a Run at once, and the next Run when that has ended.
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
        death: Death | None = None,
        concurrency: int = 0,
        batches: bool = False,
    ) -> None:
        self._settings = settings
        self._partition = partition
        self._meter = meter
        self._random = random
        self._warn = warn
        self._intake = Intake(settings, partition, partitions)
        self._by_event = settings.locking == "event"
        self.ownership = Ownership(settings, partition, owner, may_take, force, death)
        self._breaker = Breaker(settings.dlq_max_ratio, settings.dlq_max_consecutive)
        self._suspects = Suspects()
        self._concurrency = concurrency
        self._batches = batches
        self._most_at_once = max(settings.batch_max, concurrency)
        # read ahead for Redis while the handler runs; more would be out of the processor's cache in its turn
        self._most_ahead = 4 * self._most_at_once if concurrency else 2 * settings.batch_max
        self._tasks: set[Entry] = set()  # on which handlers run beside the loop
        self._strays: set[Entry] = set()  # those from before a rewind, whose results are thrown away
        self.draining = False
        self.drained = False
        self._suspended = False
        self._reset(0)

    def _reset(self, position: int, now_ms: int = 0) -> None:
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
        self._gap_keeper = GapKeeper(self.buffer)
        self._asides = Asides(self._found_foreign)
        self._strays |= self._tasks
        self._tasks = set()
        self._alone = False  # the one that runs is a suspect
        self._behind_tasks = 0  # entries in the lanes of those, themselves included
        self._renewing: Renew | None = None
        self._renewed_ms = now_ms
        self._lanes = Lanes(one_each=self._concurrency > 0)
        self._suspects.turn.clear()
        self._ids = InflightIds()
        self._settler = Settler(self.buffer, self._lanes, self._warn)
        self._finalizer = Finalizer(
            s.batch_max,
            self.buffer,
            self._lanes,
            self._settler,
            self._asides,
            self.ownership,
            self._meter,
            self._conflict,
            now_ms,
        )
        self._done = self._finalizer.done
        self._held: list[Entry] = []  # not dead-lettered, because the breaker is open
        self._unknown: list[str] = []
        self._loading: LoadUsers | None = None
        self._waiting: deque[Entry] = deque()  # for acquire
        self._acquiring: Acquire | None = None
        self._running: Run | None = None
        self._run_ms = 0.0  # of one handler run, smoothed
        self._release: Release | None = None
        self._released = False
        self._committed = -1
        self._committed_ms = 0
        self._idle_reading_ms: int | None = None
        self._paused = False

    # --- what the worker asks ---------------------------------------------------------------------

    @property
    def owned(self) -> bool:
        """Whether the partition is ours."""
        return self.ownership.owned

    def wants_records(self) -> bool:
        """Whether records may be read: not while Redis, the handler or the floor is far behind."""
        return (
            self.ownership.owned
            and not self.draining
            and not self._breaker.open
            and len(self._waiting) + len(self._done) + self._backlog() < self._most_ahead
            and not self.is_full()
        )

    def is_full(self) -> bool:
        """Whether as much is read above the floor as may be read again after a crash."""
        return self.buffer.position - self.buffer.floor() >= self._settings.max_replay_records

    @property
    def paused(self) -> bool:
        """Whether reading has stood still for long enough to stop the gap timers."""
        return self._paused

    @property
    def stopped(self) -> str:
        """Why the breaker is open; empty while it is not."""
        return self._breaker.reason

    @property
    def next_dead_letter(self) -> Entry | None:
        """The event that the open breaker holds."""
        return self._held[0] if self._held else None

    @property
    def foreign(self) -> dict[str, str]:
        """Users that are set aside, and the key of the wrong type in the way of each."""
        return self._asides.foreign

    @property
    def floor(self) -> int:
        """Lowest offset that is not final, as far as is known here."""
        return self._settler.floor()

    @property
    def suspects(self) -> list[int]:
        """Offsets of the records that run alone, because a worker died while they ran."""
        return self._suspects.offsets()

    @property
    def acked_floor(self) -> int:
        """The last floor that Redis acknowledged."""
        return self._finalizer.acked_floor

    def note_end(self, offset: int) -> None:
        """The partition ends there, as far as the last fetch has told."""
        self._settler.end = offset

    def is_idle(self) -> bool:
        """Nothing is under way; what is parked only waits for its gap."""
        return not (
            self._unknown
            or self._loading
            or self._waiting
            or self._acquiring
            or self._running
            or self._finalizer.busy()
            or self._settler.busy()
            or not self._lanes.is_idle()
        )

    def next_deadline_ms(self) -> int:
        """When `step` is due although nothing happens, monotonic; -1 = no such time."""
        gaps_stand_still = self._paused or self._suspended or self.draining
        due_ms = self._lanes.next_due_ms()
        gap_ms = -1 if gaps_stand_still else self.buffer.next_deadline_ms()
        return gap_ms if due_ms < 0 or 0 <= gap_ms < due_ms else due_ms

    # --- what happens -----------------------------------------------------------------------------

    def step(self, now_ms: int) -> list[Request]:
        """What to do next, in this order. Raises nothing."""
        if not self.ownership.owned:
            if self._strays:
                return []  # they end before anything is run anew
            request = self.ownership.step(now_ms)
            return [request] if request is not None else []
        requests: list[Request] = []
        self._lanes.fire(now_ms)
        if self._tasks:
            self._renew(now_ms, requests)
        if not self.draining:
            self._watch_reading(now_ms)
            self._expire(now_ms, requests)
            self._load(requests)
        # finalize before acquire: what it writes to the gap ledger decides look-ups behind it
        self._finalize(now_ms, requests)
        if self.draining:
            self._drain(requests)
        elif not self._breaker.open:
            self._acquire(requests)
        requests += self._settler.produce()
        self._commit(now_ms, requests)
        if not self.draining and not self._breaker.open:
            if self._concurrency:
                self._begin_tasks(now_ms, requests)
            else:
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
        self._gap_keeper.restart(now_ms)

    def close_breaker(self) -> None:
        """Go on: what failed last runs once more, and other dead letters are sent."""
        self._breaker.close()
        held, self._held = self._held, []
        for entry in held:
            if entry.status or entry.letter:
                self._dead_letter(entry)
            else:
                entry.reason, entry.error = "", ""
                self._lanes.enter(entry)

    def on_offsets(self, offsets: Offsets) -> None:
        """Reply to FetchOffsets."""
        self.ownership.on_offsets(offsets)

    def on_claimed(self, reply: Claimed, now_ms: int) -> list[Request]:
        """Reply to Claim; ConfigError if there is nowhere to start from."""
        start = self.ownership.on_claimed(reply, now_ms)
        if start < 0:
            return []
        self._reset(start, now_ms)
        self._suspects.learn(reply.suspects, start)
        if reply.offset != start:
            self._finalizer.acked_floor = -1  # to be written at once
        return [Seek(start)]

    def on_records(self, records: list[Record], now_ms: int) -> None:
        """Records of the partition, in offset order."""
        batch = self._intake.take(records, now_ms)
        self._meter.inc("records_consumed", len(records))
        if batch.tombstones:
            self._meter.inc("events", batch.tombstones, "tombstone")
        if batch.misrouted:
            self._meter.inc("events", len(batch.misrouted), "misrouted")
            self._warn(
                "misrouted",
                records=len(batch.misrouted),
                user=batch.misrouted[0].user,
                offset=batch.misrouted[0].offset,
                remedy="produce with partitioner=murmur2_random and the userId as the key",
            )
        if batch.entries:
            arrivals = self.buffer.push(
                batch.users, batch.seqs, batch.offsets, batch.sizes, batch.entries, now_ms
            )
            self._take(arrivals, now_ms)
        if batch.end >= 0:
            self.buffer.advance(batch.end)

    def on_position(self, position: int) -> None:
        """The reader stands at `position`, past markers that are no records."""
        self.buffer.advance(position)

    def on_end_offset(self, end: int) -> None:
        """Reply to FetchEnd."""
        self._gap_keeper.on_end_offset(end)

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
                self._asides.name(user, state.foreign)
                self._lanes.later(now_ms + FOREIGN_RETRY_MS, partial(self._unknown.append, user))
                continue
            self._asides.clear(user)
            if state.next:
                self._finalizer.has_next.add(user)
            if not state.dense or state.next > state.last + 1:
                self._finalizer.sparse.add(user)
            users.append(user)
            expected.append(max(state.last + 1, state.next, 1))
            adopt.append(with_baseline and not state.last and not state.next)
        self._take(self.buffer.load(users, expected, adopt, now_ms), now_ms)

    # --- arrivals ---------------------------------------------------------------------------------

    def _take(self, arrivals: Arrivals, now_ms: int) -> None:
        self._unknown += arrivals.unknown
        # first what is to run: a copy of it further down the batch must not be looked up before it
        if arrivals.ready:
            self._take_ready(arrivals.ready, now_ms)
        for entry in arrivals.jumped:
            entry.reason = "seq_jump"
            entry.error = (
                f"seq {entry.seq} is more than max_seq_jump ({self._settings.max_seq_jump}) above "
                f"the expected {self.buffer.expected(entry.user)}"
            )
            self._look(entry)
        for entry, existing in arrivals.occupied:
            if entry.id == existing.id:
                self._duplicate(entry)
                continue
            entry.reason = "stale"
            entry.error = f"seq {entry.seq} is taken by {existing.id} at offset {existing.offset}"
            self._look(entry)
        for entry in arrivals.below:
            if not self._gap_keeper.holds(entry):
                self._look(entry)
        for user in arrivals.evicted:
            self._finalizer.forget(user)
        over = self.buffer.overfull()
        if over:
            self._finalizer.add_gaps(self._gap_keeper.close(over, "overflow"))

    def _take_ready(self, entries: list[Entry], now_ms: int) -> None:
        held_ms: list[int] = []
        at = 0
        while True:
            upto = self._ids.take_all(entries, at, now_ms, held_ms)
            self._wait(entries[at:upto] if at or upto < len(entries) else entries)
            if upto == len(entries):
                break
            self._take_other(entries[upto], now_ms, held_ms)
            at = upto + 1
        if held_ms:
            self._meter.observe("hold_ms", held_ms)

    def _wait(self, entries: list[Entry]) -> None:
        """For their locks, or only for their turn where ownership is the lock."""
        if self._by_event:
            self._waiting.extend(entries)
            return
        if all_sequenced(entries):
            self._lanes.enter_all(entries)
            return
        for entry in entries:
            if entry.seq:
                self._lanes.enter(entry)
            else:
                self._waiting.append(entry)

    def _take_other(self, entry: Entry, now_ms: int, held_ms: list[int]) -> None:
        """A letter, what is only looked up, or an id that is under way already."""
        if entry.letter:
            self._dead_letter(entry)
            return
        if entry.look:
            self._look(entry)
            return
        if entry.arrived_ms != now_ms:
            held_ms.append(now_ms - entry.arrived_ms)
        other = self._ids.take(entry)
        assert other is not None
        self._await_id(entry, other)

    def _look(self, entry: Entry) -> None:
        """Ask whether the id is final; it takes no lock and is not run."""
        entry.look = True
        other = self._ids.take(entry)
        if other is None:
            self._waiting.append(entry)
        elif other.user == entry.user and other.seq == entry.seq:
            self._duplicate(entry)
        else:
            self._ids.await_turn(entry)

    def _await_id(self, entry: Entry, other: Entry) -> None:
        """The id is under way already; what comes of it decides."""
        if not entry.seq and not other.seq and other.user == entry.user:
            self._duplicate(entry)
            return
        self._lanes.block(entry)
        self._ids.await_turn(entry)

    def _free_id(self, entry: Entry) -> None:
        waiter = self._ids.free(entry)
        if waiter is not None:
            self._waiting.append(waiter)

    def _duplicate(self, entry: Entry) -> None:
        self._meter.inc("events", 1, "duplicate")
        self._settler.settle(entry.offset)

    # --- acquire ----------------------------------------------------------------------------------

    def _acquire(self, requests: list[Request]) -> None:
        if self._acquiring is not None or not self._waiting:
            return
        n = self._settings.batch_max
        if self._run_ms:  # no more than runs within half the lock's life
            n = min(n, int(self._settings.inflight_ttl_ms / 2 / self._run_ms))
        n = max(1, n) - max(0, self._backlog() - self._most_at_once)
        if n <= 0:
            return
        waiting = self._waiting
        if n >= len(waiting):
            entries = list(waiting)
            waiting.clear()
        else:
            entries = [waiting.popleft() for _ in range(n)]
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
        entries = request.entries
        at = 0
        while True:
            upto = grant(entries, reply.verdicts, at, now_ms, reply.expiry_ms)
            granted = entries[at:upto] if at or upto < len(entries) else entries
            self._lanes.enter_all(granted)
            if self._asides.foreign:
                for entry in granted:
                    self._asides.clear(entry.user, entry.offset)
            if upto == len(entries):
                break
            self._not_granted(upto, entries[upto], reply, now_ms)
            at = upto + 1

    def _not_granted(self, at: int, entry: Entry, reply: Acquired, now_ms: int) -> None:
        verdict = reply.verdicts[at]
        locked = self._by_event and verdict in (Verdict.LATE, Verdict.STALE)
        entry.lock_expiry_ms = reply.expiry_ms if locked else 0
        if verdict == Verdict.FOREIGN:
            self._asides.name(entry.user, reply.foreign.get(at, f"a key of {entry.id}"), entry.offset)
            self._again(entry, now_ms + FOREIGN_RETRY_MS)
            return
        if verdict == Verdict.PROCESSED:
            self._free_id(entry)
            self._lanes.drop(entry)
            self._duplicate(entry)
        elif verdict == Verdict.FINAL:
            self._final(entry, reply.finals.get(at, Final()))
        elif verdict == Verdict.LOCKED:
            self._again(entry, now_ms + LOCKED_RETRY_MS)
        else:
            self._below(entry, late=verdict == Verdict.LATE)
        if self._asides.foreign:
            self._asides.clear(entry.user, entry.offset)

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
                how = "was given up on before it arrived" if late else "was taken by another event"
                entry.error = f"seq {entry.seq} {how}"
                entry.reason = "late" if late else "stale"
            if self._settings.late_policy == "skip":
                entry.reason = ""
        if entry.reason:
            self._dead_letter(entry)
        else:
            self._done.append(entry)

    def _dead_letter(self, entry: Entry) -> None:
        """Finalize what is judged and goes to the DLQ, unless the breaker holds it."""
        if self._admits(entry):
            self._lanes.drop(entry)  # where it was condemned, and held
            self._done.append(entry)
        else:
            self._held.append(entry)

    def _condemn(self, entry: Entry) -> bool:
        """The same for what is found to kill its worker; false: it is held, and its lane waits behind it."""
        self._dead_letter(entry)
        if self._breaker.open:
            self._lanes.block(entry)
        return not self._breaker.open

    def _admits(self, entry: Entry) -> bool:
        was_open = self._breaker.open
        if self._breaker.admits(entry.offset):
            return True
        if not was_open:
            self._warn(
                "dead_letters_stopped",
                why=self._breaker.reason,
                id=entry.id,
                user=entry.user,
                offset=entry.offset,
                reason=entry.reason,
                error=entry.error,
                remedy=f"correct the cause, then `eventproc-supervisor resume --partition {self._partition}`",
            )
        return False

    def _final(self, entry: Entry, final: Final) -> None:
        """The id is final already (CONTRACT 4.4, 4.7)."""
        here = final.partition == self._partition and final.offset == entry.offset
        same = not final.status or (final.user == entry.user and final.seq == entry.seq)
        if same and here and final.reason:
            # this very record, dead-lettered before a restart: its copy may never have reached the topic
            entry.status, entry.reason = final.status, final.reason
            entry.attempts, entry.error = final.attempts, final.error
        elif same:
            entry.status = "processed" if final.status == "processed" else ""
            entry.reason = ""
            further_on = final.partition == self._partition and entry.offset < final.offset
            # what is read and not settled will ask for itself
            if further_on and final.offset < self.buffer.position and self._settler.is_settled(final.offset):
                self._letter_of_copy(entry, final)
        else:
            entry.reason = "id_conflict"
            seq = final.seq or "none"
            entry.error = f"id {entry.id} is final as {final.status} for user {final.user}, seq {seq}"
        if entry.seq and not entry.look:
            entry.passed = True  # in its turn it moves its user on
            if not entry.reason:
                self._meter.inc("events", 1, "duplicate")
            self._free_id(entry)
            self._lanes.enter(entry)
            return
        self._free_id(entry)
        self._lanes.drop(entry)
        if not same:
            self._conflict(entry)
        elif entry.reason:
            self._settler.dead_letter(entry)
        else:
            self._duplicate(entry)

    def _letter_of_copy(self, entry: Entry, final: Final) -> None:
        """Produce the dead letter of a record further on. It was taken for a copy of this one, so nobody has
        asked about it; an earlier life has finalized it, and may not have produced it."""
        if not final.reason:
            return
        letter = copy(entry)
        letter.offset, letter.reason = final.offset, ""
        self._settler.hold(letter)
        letter.status, letter.reason = final.status, final.reason
        letter.attempts, letter.error = final.attempts, final.error
        self._settler.dead_letter(letter)

    def _conflict(self, entry: Entry) -> None:
        """Dead-letter a record whose id belongs to another event, under another id."""
        letter = copy(entry)
        letter.id = self._intake.position_id(entry.offset)
        letter.letter, letter.reason, letter.status = True, "id_conflict", ""
        letter.look = letter.passed = letter.held = False
        self._dead_letter(letter)

    # --- run --------------------------------------------------------------------------------------

    def _run(self, now_ms: int, requests: list[Request]) -> None:
        if self._running is not None:
            return
        if self._suspects.turn:
            self._run_suspect(now_ms, requests)
            return
        if not self._lanes.ready():
            return
        n = self._settings.batch_max
        if self._run_ms:
            n = max(1, min(n, int(RUN_SLICE_MS / self._run_ms)))
        entries = self._leave_out_asides(self._lanes.take(n))
        if self._suspects:
            entries = self._suspects.single_out(entries, self._lanes, self._condemn)
            if not entries:
                self._finalize(now_ms, requests)
                self._run_suspect(now_ms, requests)
                return
        oldest_ms = self._oldest_ms(now_ms)
        if self._by_event and oldest_grant(entries) < oldest_ms:
            entries = self._hold_back(entries, oldest_ms)
        if entries:
            self._running = Run(entries)
            requests.append(self._running)

    def _run_suspect(self, now_ms: int, requests: list[Request]) -> None:
        """One suspect alone (CONTRACT 4.9), once all that has run is written: its death is to cost nobody
        else another run."""
        if self._finalizer.busy() or not self._suspects.turn:
            return
        for free in self._hold_back([self._suspects.turn.popleft()], self._oldest_ms(now_ms)):
            if self._concurrency:
                self._alone = True
                self._tasks.add(free)
                requests.append(Run([free]))
            else:
                self._lanes.drop(free)
                self._running = Run([free])
                requests.append(self._running)

    def _oldest_ms(self, now_ms: int) -> int:
        """When a lock must have been taken to last through a run."""
        return now_ms - self._settings.inflight_ttl_ms // 2

    def _leave_out_asides(self, entries: list[Entry]) -> list[Entry]:
        """Keep back those of users set aside, convicted ones too: what waits of the user goes before."""
        if not self._asides:
            return entries
        free: list[Entry] = []
        for entry in entries:
            if self._asides.holds_back(entry):
                self._lanes.drop(entry)
            else:
                free.append(entry)
        return free

    def _hold_back(self, entries: list[Entry], oldest_ms: int) -> list[Entry]:
        """Leave out what may not run now: users set aside, and locks too old to last through a run."""
        free: list[Entry] = []
        behind: set[str | int] = set()
        for entry in self._leave_out_asides(entries):
            if entry.lane in behind:
                self._lanes.put_back([entry])
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
        entries = request.entries
        not_run: list[Entry] = []
        runs = 0
        counted = 0  # runs that the breaker knows of
        at = 0
        while True:
            upto = take_outcomes(entries, outcomes, at)
            self._done.extend(entries[at:upto] if at or upto < len(entries) else entries)
            runs += upto - at
            if upto == len(entries):
                break
            entry, outcome = entries[upto], outcomes[upto]
            if outcome is None:  # it was passed
                self._done.append(entry)
            elif outcome is NOT_RUN:
                not_run.append(entry)
            else:
                self._breaker.succeeded(runs - counted)
                runs += 1
                counted = runs
                assert isinstance(outcome, BaseException)
                self._failed(entry, outcome, now_ms)
            at = upto + 1
        self._breaker.succeeded(runs - counted)
        if not_run:
            self._lanes.put_back(not_run)
        if runs:
            self._meter.inc("handler_runs", runs)
            each_ms = took_ms / runs
            self._note_run_ms(each_ms)
            self._meter.observe("handler_ms", [each_ms] * runs)

    def _note_run_ms(self, each_ms: float) -> None:
        if self._run_ms:
            self._run_ms = max(0.8 * self._run_ms + 0.2 * each_ms, SHORTEST_RUN_MS)
        else:  # the first that took any time
            self._run_ms = each_ms

    # --- handlers that run beside the loop: async ones, and those of batches ----------------------

    def _backlog(self) -> int:
        """How many entries only wait for the handler; not those behind a retry, or a lock."""
        return self._lanes.ready() + self._behind_tasks

    def _begin_tasks(self, now_ms: int, requests: list[Request]) -> None:
        """Begin as many as may run, one of each lane (CONTRACT section 5)."""
        self._alone = self._alone and bool(self._tasks)
        begun: list[Entry] = []
        most = 0 if self._batches and self._tasks else self._concurrency
        while not self._alone and not self._suspects.turn and len(self._tasks) < most:
            entries = self._lanes.take(most - len(self._tasks))
            if not entries:
                break
            entries = self._leave_out_asides(entries)
            if self._suspects:
                entries = self._suspects.single_out(entries, self._lanes, self._condemn)
            for entry in self._hold_back(entries, self._oldest_ms(now_ms)):
                if entry.passed:
                    self._lanes.drop(entry)
                    self._done.append(entry)
                else:
                    self._tasks.add(entry)
                    begun.append(entry)
        if begun:
            requests.append(Run(begun))
        elif self._done:
            self._finalize(now_ms, requests)
        if self._suspects.turn and not self._tasks:
            self._run_suspect(now_ms, requests)
        self._behind_tasks = self._lanes.count(self._tasks)

    def on_ended(self, ended: list[Ended], now_ms: int) -> None:
        """Handlers have ended, in any order; those from before a rewind count for nothing."""
        took_ms: list[float] = []
        beside = len(self._tasks) > 1  # all of a batch end at once, and none of them was alone
        for it in ended:
            entry = it.entry
            if entry not in self._tasks:
                self._strays.discard(entry)
                continue
            if isinstance(it.error, MemoryError) and beside and entry.offset not in self._suspects:
                # who asks in vain need not be who has taken it all: alone that will be seen
                self._suspects.add(entry.offset, "out of memory")
                self._tasks.discard(entry)
                self._lanes.enter(entry)
                continue
            self._tasks.discard(entry)
            took_ms.append(it.took_ms)
            if it.error is None:
                entry.attempts += 1
                entry.status = "processed"
                self._done.append(entry)
                self._breaker.succeeded(1)
            else:
                self._failed(entry, it.error, now_ms)
            if entry.status:
                self._lanes.drop(entry)
        if took_ms:
            self._meter.inc("handler_runs", len(took_ms))
            self._meter.observe("handler_ms", took_ms)
            each_ms = sum(took_ms) / len(took_ms) / self._concurrency
            self._note_run_ms(each_ms)

    def _renew(self, now_ms: int, requests: list[Request]) -> None:
        """Keep the locks of what runs long; a lock may have lived half its life when the run began."""
        if self._renewing is not None or now_ms - self._renewed_ms < self._settings.inflight_ttl_ms // 6:
            return
        self._renewed_ms = now_ms
        before_ms = now_ms - self._settings.inflight_ttl_ms // 6
        held = [entry for entry in self._tasks if 0 < entry.granted_ms <= before_ms]
        if held:
            held.sort(key=attrgetter("offset"))
            ownership = self.ownership
            self._renewing = Renew(ownership.epoch, ownership.owner, held, self._finalizer.sent_rev)
            requests.append(self._renewing)

    def on_renewed(self, request: Renew, reply: Renewed, now_ms: int) -> None:
        """Reply to Renew. Raises Fenced. A lock that is another's by now is left: finalize sees to it."""
        if request is not self._renewing:
            return
        self._renewing = None
        if self._lost(reply.status):
            return
        for entry in request.entries:
            entry.granted_ms = self._renewed_ms

    def _failed(self, entry: Entry, error: BaseException, now_ms: int) -> None:
        entry.attempts += 1
        s = self._settings
        if isinstance(error, Reject) or entry.attempts >= s.max_attempts:
            entry.status = "failed"
            entry.reason = "rejected" if isinstance(error, Reject) else "handler"
            entry.error = describe_failure(error)
            if self._admits(entry):
                self._done.append(entry)
            else:  # its user waits for it, as for a retry; this run does not count
                entry.attempts -= 1
                entry.status = ""
                self._lanes.block(entry)
                self._held.append(entry)
            return
        self._meter.inc("retries")
        if s.retry_backoff == "linear":
            pause_ms: float = s.retry_backoff_ms * entry.attempts
        else:
            jitter = 0.5 + self._random.random() / 2
            pause_ms = s.retry_backoff_ms * 2.0 ** min(entry.attempts - 1, 60) * jitter
        self._lanes.block(entry)
        due_ms = now_ms + int(min(pause_ms, s.retry_backoff_max_ms))
        self._lanes.later(due_ms, lambda: self._lanes.enter(entry))

    # --- finalize ---------------------------------------------------------------------------------

    def _finalize(self, now_ms: int, requests: list[Request]) -> None:
        finalize = self._finalizer.step(now_ms, self._may_rest)
        if finalize is not None:
            requests.append(finalize)

    def _may_rest(self) -> bool:
        """Whether nothing else makes a call that could carry the floor."""
        return self.draining or self.is_idle()

    def on_finalized(self, request: Finalize, reply: Finalized, now_ms: int, wall_ms: int) -> None:
        """Reply to Finalize. Raises Fenced."""
        if not self._finalizer.takes(request) or self._lost(reply.status):
            return
        if now_ms - self._committed_ms >= COMMIT_AGAIN_MS:
            self._committed = -1  # we are still the owner, and so is ours the commit that counts
        written = self._finalizer.on_finalized(request, reply, now_ms, wall_ms)
        self._waiting += self._ids.free_all(written.freed)
        if self._suspects:
            self._suspects.forget_below(self.acked_floor)
        if written.rejoined:
            self._lanes.put_back(written.rejoined)
        for entry in written.final:
            entry.status, entry.reason, entry.error = "", "", ""
            self._look(entry)
        for user in written.opened:
            late = self._gap_keeper.written(user)
            self._take(self.buffer.open([user], now_ms), now_ms)
            for entry in late:
                self._look(entry)
        self._finalizer.add_gaps(self._gap_keeper.close_deferred())

    def _found_foreign(self, user: str, key: str) -> None:
        self._meter.inc("foreign_keys")
        remedy = "delete or rename the key; the user waits for it"
        self._warn("foreign_key", user=user, redis_key=key, remedy=remedy)

    # --- gaps -------------------------------------------------------------------------------------

    def _watch_reading(self, now_ms: int) -> None:
        """Time in which nothing is read does not count for gaps (CONTRACT 4.2)."""
        if self._breaker.open:
            self._paused = True
            return
        if self.wants_records():
            self._idle_reading_ms = None
            if self._paused:
                self._paused = False
                self._gap_keeper.restart(now_ms)
            return
        if self._idle_reading_ms is None:
            self._idle_reading_ms = now_ms
        elif now_ms - self._idle_reading_ms >= PAUSE_COUNTS_MS:
            self._paused = True
        # a gap that holds the floor at max_replay_records is closed early
        if self.is_full():
            holder = self.buffer.floor_gap()
            if holder is not None:
                self._finalizer.add_gaps(self._gap_keeper.close([holder[0]], "overflow"))

    def _expire(self, now_ms: int, requests: list[Request]) -> None:
        if self._suspended or self._paused:
            return
        if self._gap_keeper.expire(now_ms):
            requests.append(FetchEnd())
        self._finalizer.add_gaps(self._gap_keeper.close_read())

    # --- dead letters and commits -----------------------------------------------------------------

    def on_delivered(self, entry: Entry, error: str | None, now_ms: int) -> None:
        """Kafka has the dead letter, or `error` tells why it has not: then it is sent again."""
        self._settler.delivered(entry, error, now_ms)

    def _commit(self, now_ms: int, requests: list[Request]) -> None:
        if self.acked_floor <= self._committed:
            return
        waited_ms = now_ms - self._committed_ms
        if waited_ms >= self._settings.commit_interval_ms or self.draining or self.is_idle():
            self._committed = self.acked_floor
            self._committed_ms = now_ms
            requests.append(Commit(self.acked_floor))

    # --- the end ----------------------------------------------------------------------------------

    def _drain(self, requests: list[Request]) -> None:
        if self._acquiring is not None or self._running is not None or self._tasks:
            return
        busy = self._finalizer.busy()  # what it is about to set aside has locks, too
        if self._release is None and not busy:
            held = [entry for entry in self._held if not entry.held]  # the others stand in their lanes
            left = [*self._lanes.entries(), *self._waiting, *self._asides.entries(), *held]
            # what was only looked up has a lock, too
            locked = [e for e in left if (e.granted_ms or e.lock_expiry_ms) and not e.passed]
            self._release = Release(self.ownership.epoch, self.ownership.owner, locked)
            requests.append(self._release)
        busy = busy or self._settler.busy()
        # the floor may be below what is committed: an id that was final is not looked up any more
        written = self.floor == self.acked_floor <= self._committed
        self.drained = self._released and not busy and written

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
        self._reset(max(0, self.acked_floor))
        return True
