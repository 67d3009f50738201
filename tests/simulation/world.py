"""A whole deployment of one partition, simulated from a seed: the real pipeline, core and Lua scripts.

Kafka, the network, the clocks and the lives of processes are fakes driven by one seeded generator, so a seed
that fails replays exactly. Between any two actions a fault may strike (`faults.py`); `judge.py` looks on.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from random import Random
from typing import Any

from eventproc.effects import Death, Finalize, Finalized, Offsets
from eventproc.errors import Fenced
from eventproc.settings import Settings
from eventproc.store.scripts import Call, ScriptSet, decode
from tests.simulation.faults import FAULTS, Foreign, make_final_elsewhere
from tests.simulation.judge import Judge, Violation
from tests.simulation.memory_store import MemoryStore, ReplyError
from tests.simulation.worker import Crash, SimulatedWorker
from tests.simulation.workload import OURS, Document, workload

__all__ = ["FAULTS", "Violation", "World", "simulate"]

TOPIC = "events"
HOSTS = ("a", "b")
LEASE_MS = 3_000
TICKS_MS = (1, 3, 10, 60)
REST_TURNS = 30_000
#: How many events a history has, and how often: many short ones, and a few in which much piles up.
SIZES = ((0.75, (6, 22)), (0.94, (23, 60)), (0.995, (61, 150)), (1.0, (300, 600)))


class FakeClock:
    """Time that moves only when the world says so; `jump_ms` is how far the wall clock was set."""

    def __init__(self, steady: FakeClock | None = None) -> None:
        self._steady = steady or self
        self.now_ms = 1_000
        self.jump_ms = 0

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self._steady.now_ms + self.jump_ms

    def sleep_ms(self, ms: float) -> None:
        self.now_ms += int(ms)


@dataclass(slots=True)
class FakeRecord:
    """One record of the log."""

    place: int
    body: bytes | None
    at_ms: int

    def offset(self) -> int:
        return self.place

    def key(self) -> bytes | None:
        return b"k"

    def value(self) -> bytes | None:
        return self.body

    def timestamp(self) -> tuple[int, int]:
        return (1, self.at_ms)

    def headers(self) -> None:
        return None


@cache
def _settings() -> Settings:
    return Settings(redis_url="redis://none", gap_timeout_ms=300, max_seq_jump=1000, lease_ms=LEASE_MS)  # type: ignore[arg-type]


def _choose_settings(rng: Random) -> dict[str, Any]:
    choice = rng.choice
    return {
        "max_attempts": choice((2, 2, 3)),
        "batch_max": choice((2, 5, 20)),
        "max_replay_records": choice((40, 1000)),
        "max_parked_per_user": choice((6, 100)),
        "max_users": choice((2, 100)),
        "locking": choice(("event", "event", "partition")),
        "late_policy": choice(("dlq", "dlq", "skip")),
        "misrouted": choice(("process", "dlq")),
        "on_redis_empty": choice(("group", "group", "earliest")),
        "retry_backoff_ms": choice((5, 400)),
        "retry_backoff": choice(("linear", "linear", "exponential")),
        "order_max_len": choice((0, 0, 0, 3)),
        "gaps_max_len": choice((1000, 1000, 1000, 2)),
        "dlq_max_len": choice((100_000, 3)),
        "inflight_ttl_ms": choice((30_000, 30_000, 2_000)),
    }


def _choose_size(rng: Random) -> int:
    roll = rng.random()
    low, high = next(span for most, span in SIZES if roll < most)
    return rng.randint(low, high)


class World:
    """See the module's text. `run()` raises Violation; the seed is in the message.

    `events`, `faults` and `overrides` (of settings) are chosen by the seed unless given; only the kinds of
    fault in `only` strike.
    """

    def __init__(
        self,
        seed: int,
        *,
        events: int = 0,
        faults: int = 0,
        only: Iterable[str] = FAULTS,
        overrides: dict[str, Any] | None = None,
    ) -> None:
        self.seed = seed
        rng = self.random = Random(seed)
        self.clock = FakeClock()
        self.redis_clock = FakeClock(self.clock)
        self.store = MemoryStore(self.redis_clock)
        self.chosen = _choose_settings(rng) | (overrides or {})
        self.settings = _settings().model_copy(update=self.chosen)
        self.scripts = ScriptSet(self.settings, TOPIC, 0)
        self.slow_handlers = rng.random() < 0.2
        self.concurrency = rng.choice((0, 0, 4))  # of an async handler, or one of batches
        self.batches = self.concurrency > 0 and seed % 3 == 0  # not drawn: it moves nothing else
        self.events = events or _choose_size(rng)
        self.users = min(len(OURS), rng.choice((2, 5, 9)))
        self.faults_left = faults or rng.randint(3, 10)
        self.fault_rate = min(0.04, self.faults_left / (8.0 * self.events))
        self.only = tuple(only)
        self.counts: dict[str, int] = defaultdict(int)
        self.counts["async"] = int(self.concurrency > 0)
        self.counts["batches"] = int(self.batches)
        self.history: list[str] = []
        self._missed = ""  # a fault that has found nothing to hit yet, and for how many actions
        self._missed_for = 0

        self.log: list[FakeRecord] = []
        self.documents: list[tuple[FakeRecord, Document]] = []  # what of the log is an event
        self.end = 0
        self.to_write = deque(workload(rng, self.events, self.users))
        self.committed = -1
        self.dead_letters: set[int] = set()  # origins of what is in the DLQ topic

        self.redis_away = False
        self.kafka_away = False
        self.wire: list[Call] = []  # calls that will still be carried out, and whose replies nobody gets
        self.snapshots: list[Any] = []
        self.restore_in = 0  # actions until the last snapshot is what Redis has; 0: no such
        self.foreign: list[Foreign] = []
        self.elsewhere = b"events:1:1:other"  # the lock of another partition's worker
        self.taken_elsewhere: set[str] = set()  # ids that another partition's worker has locked
        self.final_elsewhere: dict[str, list[str | int]] = {}  # those of them that it has made final
        self.forgiven = 0  # offsets below are not judged: their effects were flushed away
        self.offered = 0  # the highest position that came with a claim, which may still be on its way
        self.was_reset = False

        self.judge = Judge(self)
        self.dead: set[int] = set()
        self.others: list[SimulatedWorker] = []
        self._lives = 0
        self.worker = self.start(HOSTS[0])

    # --- lives ------------------------------------------------------------------------------------

    def start(self, host: str, *, force: bool = False, death: Death | None = None) -> SimulatedWorker:
        """A new worker process."""
        self._lives += 1
        return SimulatedWorker(self, self._lives, host, force, death)

    def _death(self, worker: SimulatedWorker, why: str) -> Death | None:
        """What the next start is to record; a worker that ended by itself has nothing running."""
        ran = worker.runs() if why.startswith("crash") else []
        if ran:
            self.judge.died(ran)
            return Death(f"d{worker.number}", ran, why)
        return worker.death if not worker.lives else None  # it was recorded with the claim

    def bury(self, worker: SimulatedWorker, why: str) -> None:
        """The worker is dead; its supervisor starts another one (not always, beside the main one)."""
        self.history.append(f"{why} {worker.number}")
        self.dead.add(worker.number)
        death = self._death(worker, why)
        if worker is self.worker:
            self.worker = self.start(worker.host, death=death)
        elif worker in self.others:
            self.others.remove(worker)
            if self.random.random() < 0.3:
                self.others.append(self.start(worker.host, death=death))

    # --- a history --------------------------------------------------------------------------------

    def run(self) -> None:
        """Play the history, then let everything come to rest, then judge it."""
        try:
            for _ in range(60 * (self.events + 100)):
                if not (self.to_write or self.faults_left > 0 or self._missed or self.restore_in):
                    break
                self._act()
            self._settle()
            self._rest()
            self.judge.end()
        except Violation as error:
            raise Violation(f"seed {self.seed}: {error}; last: {self.history[-12:]}") from error

    def _act(self) -> None:
        rng = self.random
        if self.restore_in:
            self.restore_in -= 1
            if not self.restore_in:
                self._restore()
        if self._missed:
            self._missed_for += 1
            self.strike(self._missed)
        elif self.faults_left > 0 and rng.random() < self.fault_rate:
            self.faults_left -= 1
            self._missed_for = 0
            self.strike(rng.choice(self.only))
        roll = rng.random()
        if roll < 0.14:
            if self.to_write:
                self._append()
        elif roll < 0.24:
            self.clock.now_ms += TICKS_MS[int(rng.random() * len(TICKS_MS))]
        elif roll < 0.26:
            if self.wire and not self.redis_away:
                self._execute_late()
        else:
            worker = self.worker
            if self.others and rng.random() < 0.3:
                worker = rng.choice(self.others)
            self.guarded(worker, self._act_of, worker)

    def strike(self, kind: str) -> None:
        """One fault, now or soon."""
        self._missed = ""
        self.history.append(kind)
        hit: list[bool | None] = []
        self.guarded(self.worker, lambda: hit.append(FAULTS[kind](self, self.worker)))
        if hit == [False]:
            self.history.pop()
            self._missed = kind if self._missed_for < 100 else ""
        else:
            self.counts[f"fault:{kind}"] += 1

    def _restore(self) -> None:
        """Redis fails over."""
        self.history.append("restore")
        self.counts["restored"] += 1
        self.store.restore(self.snapshots[-1])
        make_final_elsewhere(self)
        self.judge.redis_lost_writes()

    def guarded(self, worker: SimulatedWorker, act: Callable[..., None], *arguments: Any) -> None:
        """Do something of a worker, which may be its end."""
        try:
            act(*arguments)
        except Fenced:
            self.counts["ends:fenced"] += 1
            self.bury(worker, "fenced")
        except Crash:
            self.counts["ends:crash"] += 1
            self.bury(worker, "crashed")

    def _act_of(self, worker: SimulatedWorker) -> None:
        if worker.asleep:
            worker.asleep -= 1
            return
        redis, kafka = not self.redis_away, not self.kafka_away
        actions: list[Callable[[], None]] = [worker.turn] * 2 if worker.is_due() else []
        if worker.tasks:
            actions.append(worker.end_tasks)
        if worker.requests and redis:
            actions += [lambda: self.execute(worker)] * 2
        if worker.replies:
            actions += [worker.take_reply] * 2
        if worker.fetch_at >= 0 and kafka and worker.fetch_at < self.end:
            actions.append(lambda: self.fetch(worker))
        if worker.produced and kafka:
            actions.append(lambda: self.deliver(worker))
        if (worker.end_asked or worker.offsets_asked) and kafka:
            actions.append(lambda: self.answer(worker))
        if worker.commits.under_way >= 0 and kafka:
            actions.append(lambda: worker.commits.answer(refused=False))
        if not actions:
            self.clock.now_ms += 1
            return
        worker.touched = True
        actions[int(self.random.random() * len(actions))]()

    # --- actions ----------------------------------------------------------------------------------

    def _append(self) -> None:
        written = self.to_write.popleft()
        if self.random.random() < 0.04:
            self.end += self.random.randrange(1, 4)  # markers and aborted records: offsets without a record
        record = FakeRecord(self.end, written.body, self.clock.wall_ms())
        self.log.append(record)
        self.end += 1
        if written.document is not None:
            self.documents.append((record, written.document))

    def fetch(self, worker: SimulatedWorker) -> None:
        """Records for the worker, or, where the log ends without any, its position."""
        pipeline = worker.pipeline
        if worker.fetch_at < 0 or not pipeline.wants_records():
            return
        n = self.random.choice((1, 3, 20))
        first = bisect_left(self.log, worker.fetch_at, key=lambda record: record.place)
        batch = self.log[first : first + n]
        if batch:
            pipeline.on_records(list(batch), self.clock.now_ms)
            worker.fetch_at = batch[-1].place + 1
        elif worker.fetch_at < self.end:
            worker.fetch_at = self.end
            pipeline.on_position(self.end)

    def execute(self, worker: SimulatedWorker) -> None:
        """Redis carries out the worker's first request, or dies in the middle of it."""
        request, call = worker.requests[0]
        die_at, worker.die_at = worker.die_at, -1
        try:
            raw = self.store.execute(call, fail_at=None if die_at < 0 else die_at)
        except ReplyError as error:
            if die_at < 0:
                raise Violation(f"{call.script}: {error}") from error
            self.counts[f"died:{call.script}"] += 1
            return  # it stays the first to be sent again
        worker.requests.popleft()
        reply = decode(request, raw)
        worker.replies.append((request, call, reply))
        if isinstance(request, Finalize) and isinstance(reply, Finalized) and reply.status == "ok":
            self.judge.floor(reply.floor)
            self.judge.gaps_written(request)

    def _execute_late(self) -> None:
        call = self.wire.pop(0)
        self.counts[f"late:{call.script}"] += 1
        self.store.execute(call)

    def deliver(self, worker: SimulatedWorker, *, lost: bool = False) -> None:
        """Kafka has a dead letter; when the acknowledgement is lost, it may not even have that."""
        entry = worker.produced.popleft()
        if not lost or self.random.random() < 0.5:
            self.dead_letters.add(entry.offset)
        worker.pipeline.on_delivered(entry, "lost" if lost else None, self.clock.now_ms)

    def answer(self, worker: SimulatedWorker) -> None:
        """Kafka tells its offsets."""
        if worker.end_asked:
            worker.end_asked = False
            worker.answers.append(self.end)
            worker.pipeline.on_end_offset(self.end)
        if worker.offsets_asked:
            worker.offsets_asked = False
            worker.pipeline.on_offsets(Offsets(0, self.end, self.committed))

    def serve(self, worker: SimulatedWorker) -> None:
        """One of each that is there for the worker to get."""
        worker.turn()
        if worker.tasks:
            worker.end_tasks()
        self.answer(worker)
        if worker.requests:
            self.execute(worker)
        if worker.replies:
            worker.take_reply()
        if worker.produced:
            self.deliver(worker)
        if worker.commits.under_way >= 0:
            worker.commits.answer(refused=False)

    def field(self, key: str, name: str) -> bytes | None:
        """One field of a hash in Redis."""
        return self.store.hashes((key,), (name,))[0][0]

    # --- rest -------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """No more faults, and one worker: not always the one that was thought to be the owner."""
        rng = self.random
        self.faults_left = 0
        while self.to_write:
            self._append()
        self.end += rng.choice((0, 0, 2))
        self.redis_away = self.kafka_away = False
        if self.restore_in:
            self._restore()
            self.restore_in = 0
        for foreign in self.foreign:
            foreign.remove(self.store)
        for id in self.taken_elsewhere:
            if self.store.command("MGET", f"inflight:{id}") == [self.elsewhere]:
                self.store.command("DEL", f"inflight:{id}")
        while self.wire:
            self._execute_late()
        if self.others and rng.random() < 0.3:
            self.worker, dead = rng.choice(self.others), self.worker
            self.others.append(dead)
        self.dead.update(other.number for other in self.others if other is not self.worker)
        self.others.clear()
        self.worker.crash_after = self.worker.crash_in_run = self.worker.die_at = -1
        self.worker.asleep = 0

    def _rest(self) -> None:
        quiet = 0
        for _ in range(REST_TURNS):
            worker, log_read = self.worker, self.worker.fetch_at
            self.guarded(worker, self.serve, worker)
            if worker is self.worker:
                self.guarded(worker, self.fetch, worker)
            worker = self.worker
            if self._is_at_rest(worker):
                return
            waited_for = worker.tasks or worker.requests or worker.replies or worker.produced
            busy = waited_for or worker.fetch_at != log_read
            quiet = 0 if busy else quiet + 1
            if quiet:
                self.clock.now_ms += 7 if quiet < 3 else self._idle_ms(worker)
        self._stuck()

    def _is_at_rest(self, worker: SimulatedWorker) -> bool:
        pipeline = worker.pipeline
        # its own commit: a zombie's may have come after it, which nothing stops
        if not (pipeline.owned and pipeline.floor == self.end == pipeline.acked_floor == worker.commits.done):
            return False
        return self.field(self.scripts.keyspace.partition, "offset") == str(self.end).encode()

    def _idle_ms(self, worker: SimulatedWorker) -> int:
        """How long nothing will happen, about."""
        due = worker.pipeline.next_deadline_ms() if worker.pipeline.owned else -1
        return max(7, min(due - self.clock.now_ms, 500)) if due >= 0 else 100

    def _stuck(self) -> None:
        pipeline = self.worker.pipeline
        buffer = pipeline.buffer
        raise Violation(
            f"stuck: owned {pipeline.owned} standby for {pipeline.ownership.standby_for!r} "
            f"floor {pipeline.floor} acked {pipeline.acked_floor} "
            f"committed {self.worker.commits.done} end {self.end} "
            f"position {buffer.position} parked {buffer.parked} "
            f"due {pipeline.next_deadline_ms()} wants {pipeline.wants_records()}"
        )


def simulate(seed: int, **options: Any) -> dict[str, int]:
    """Run one seed; the counts of what happened in it."""
    world = World(seed, **options)
    world.run()
    return world.counts
