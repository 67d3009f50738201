"""A whole deployment of one partition, simulated from a seed: the real pipeline, core and Lua scripts.

Kafka, the network, the clock and the deaths of processes are fakes driven by one seeded generator, so a
seed that fails replays exactly. Between any two actions a fault may strike.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import defaultdict, deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import orjson

from eventproc.effects import (
    Acquire,
    Acquired,
    Claim,
    Claimed,
    Commit,
    Death,
    Ended,
    Entry,
    FetchEnd,
    FetchOffsets,
    Finalize,
    Finalized,
    Gap,
    LoadUsers,
    Offsets,
    Produce,
    Release,
    Renew,
    Renewed,
    Run,
    Seek,
    StoreReply,
    StoreRequest,
)
from eventproc.errors import Fenced, Reject
from eventproc.event import Event
from eventproc.handlers import Runner
from eventproc.pipeline import Pipeline
from eventproc.settings import Settings
from eventproc.store.scripts import ScriptSet, decode
from tests.simulation.memory_store import MemoryStore, ReplyError

TOPIC = "events"
FAULTS = (
    "crash",
    "crash_in_turn",
    "lost_reply",
    "script_error",
    "rewind",
    "flush",
    "outage",
    "zombie",
    "lost_ack",
    "stall",
    "refetch",
)


class FakeClock:
    """Time that moves only when the world says so."""

    def __init__(self) -> None:
        self.now_ms = 1_000

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return 1_700_000_000_000 + self.now_ms

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


@dataclass(slots=True)
class RunOf:
    """One run of the handler."""

    worker: int
    user: str
    seq: int
    id: str
    attempt: int
    ok: bool


def _place(pair: tuple[FakeRecord, dict[str, Any]]) -> int:
    return pair[0].place


class NoMeter:
    """Counts by name, so that tests see what a history exercised."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def inc(self, metric: str, n: int = 1, label: str = "") -> None:
        self._counts[f"{metric}{{{label}}}" if label else metric] += n

    def observe(self, metric: str, values: object) -> None:
        pass


class Violation(AssertionError):
    """The world is not as it should be."""


class SimulatedWorker:
    """What worker.py does around the pipeline, with queues where the network is."""

    def __init__(self, world: World, number: int, force: bool, death: Death | None) -> None:
        self.world = world
        self.number = number
        self.requests: deque[StoreRequest] = deque()
        self.replies: deque[tuple[StoreRequest, StoreReply]] = deque()
        self.produced: deque[tuple[Entry, bool]] = deque()
        self.fetch_at = -1
        self.end_asked = False
        self.offsets_asked = False
        self.crash_after = -1
        self.pipeline = Pipeline(
            world.settings,
            0,
            1,
            f"host:1:x/0/{number}",
            meter=NoMeter(world.counts),
            random=world.random,
            warn=lambda event, **fields: None,
            may_take=lambda owner: world.is_dead(owner),
            force=force,
            death=death,
            concurrency=world.concurrency,
        )
        self.tasks: list[Entry] = []  # on which an async handler runs
        self.answers: list[int] = []
        self._watched: object = None
        self.runner = Runner(self._handle, 0, world.clock, lambda since, offset: None)

    def _handle(self, event: Event) -> None:
        world = self.world
        fail = event.payload.get("fail")
        ok = not (fail is True or (isinstance(fail, int) and event.attempt <= fail))
        world.runs.append(RunOf(self.number, event.user_id, event.seq or 0, event.id, event.attempt, ok))
        if event.payload.get("reject"):
            raise Reject("no")
        if not ok:
            raise ValueError("fails")

    def _judge_gaps(self, gaps: list[Gap]) -> list[Gap]:
        """Looks at each gap that is closed because its time has passed."""
        for gap in gaps:
            self.world.judge_gap(self, gap.user, gap.first, gap.last)
        return gaps

    def turn(self) -> None:
        self._end_tasks()
        now = self.world.clock.now_ms
        keeper = self.pipeline._gap_keeper
        if keeper is not self._watched:
            self._watched, close_read = keeper, keeper.close_read
            keeper.close_read = lambda: self._judge_gaps(close_read())  # type: ignore[method-assign]
        for request in self.pipeline.step(now):
            if self.crash_after >= 0:
                self.crash_after -= 1
                if self.crash_after < 0:
                    raise Crash
            self._carry_out(request)

    def _end_tasks(self) -> None:
        """Some of the async handlers that run end, in any order."""
        if not self.tasks or self.world.random.random() < 0.5:
            return
        self.world.random.shuffle(self.tasks)
        for _ in range(self.world.random.randint(0, len(self.tasks))):
            entry = self.tasks.pop()
            [outcome] = self.runner.run([entry])
            assert outcome is None or isinstance(outcome, BaseException)
            self.pipeline.on_ended([Ended(entry, outcome, 0.1)], self.world.clock.now_ms)

    def _begin(self, entries: list[Entry]) -> None:
        self.tasks += entries
        if len({entry.lane for entry in self.tasks}) < len(self.tasks) or len(self.tasks) > 4:
            raise Violation(f"run together: {[(entry.lane, entry.seq) for entry in self.tasks]}")
        beside = [entry.offset for entry in self.tasks if entry.offset in self.pipeline.suspects]
        if beside and len(self.tasks) > 1:
            raise Violation(f"suspects {beside} do not run alone: {[entry.offset for entry in self.tasks]}")

    def _carry_out(self, request: Any) -> None:
        world = self.world
        if isinstance(request, Run) and world.concurrency:
            self._begin(request.entries)
        elif isinstance(request, Run):
            outcomes = self.runner.run(request.entries)
            self.pipeline.on_ran(request, outcomes, 0.1, world.clock.now_ms)
        elif isinstance(request, Produce):
            self.produced.append((request.entry, False))
        elif isinstance(request, Commit):
            world.commit(request.offset)
        elif isinstance(request, FetchEnd):
            self.end_asked = True
        elif isinstance(request, FetchOffsets):
            self.offsets_asked = True
        elif isinstance(request, Seek):
            self.fetch_at = request.offset
        else:
            self.requests.append(request)

    def take_reply(self) -> None:
        request, reply = self.replies.popleft()
        pipeline, now = self.pipeline, self.world.clock.now_ms
        if isinstance(request, Finalize):
            assert isinstance(reply, Finalized)
            pipeline.on_finalized(request, reply, now, self.world.clock.wall_ms())
        elif isinstance(request, Acquire):
            assert isinstance(reply, Acquired)
            pipeline.on_acquired(request, reply, now)
        elif isinstance(request, LoadUsers):
            assert isinstance(reply, list)
            pipeline.on_loaded(request, reply, now)
        elif isinstance(request, Claim):
            assert isinstance(reply, Claimed)
            for then in pipeline.on_claimed(reply, now):
                self._carry_out(then)
        elif isinstance(request, Release):
            pipeline.on_released(request)
        elif isinstance(request, Renew):
            assert isinstance(reply, Renewed)
            pipeline.on_renewed(request, reply, now)


class Crash(Exception):
    """The simulated process dies here."""


@dataclass
class World:
    """See the module's text. `run()` raises Violation; the seed is in the message."""

    seed: int
    events: int = 200
    users: int = 5
    faults: int = 10
    only: tuple[str, ...] = FAULTS
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rng = self.random = random.Random(self.seed)
        self.clock = FakeClock()
        self.store = MemoryStore(self.clock)
        choices: dict[str, Any] = {
            "gap_timeout_ms": 300,
            "max_seq_jump": 1000,
            "max_attempts": 2,
            "batch_max": rng.choice((2, 5, 20)),
            "max_replay_records": rng.choice((40, 1000)),
            "max_parked_per_user": rng.choice((6, 100)),
            "max_users": rng.choice((2, 100)),
            "locking": rng.choice(("event", "event", "partition")),
            "late_policy": rng.choice(("dlq", "dlq", "skip")),
            "retry_backoff_ms": rng.choice((5, 400)),
            "redis_url": "redis://none",
        }
        self.settings = Settings(**(choices | self.overrides))
        self.concurrency = rng.choice((0, 0, 4))  # of an async handler
        self.scripts = ScriptSet(self.settings, TOPIC, 0)
        self.counts: dict[str, int] = defaultdict(int)
        self.counts["async"] = int(self.concurrency > 0)
        self.log: list[FakeRecord] = []
        self.documents: list[tuple[FakeRecord, dict[str, Any]]] = []  # what of the log is an event
        self.end = 0
        self.to_write = deque(self._workload())
        self.committed = -1
        self.dead_letters: list[int] = []  # origins
        self.runs: list[RunOf] = []
        self.zombies: list[SimulatedWorker] = []
        self.dead: set[int] = set()
        self.workers = 0
        self.worker = self._start(force=False)
        self.faults_left = self.faults
        self.snapshots: list[Any] = []
        self.checked_floor = 0
        self.forgiven = 0  # offsets below are not judged: their effects were flushed away
        self.down = False
        self.history: list[str] = []

    # --- what is written --------------------------------------------------------------------------

    def _workload(self) -> list[bytes | None]:
        rng = self.random
        records: list[bytes | None] = []
        seqs = dict.fromkeys(range(self.users), 0)
        plain: list[tuple[str, str, int]] = []
        late: list[bytes] = []
        for n in range(self.events):
            user = rng.randrange(self.users)
            seqs[user] += 1
            seq, id, name = seqs[user], f"e{n}", f"u{user}"
            payload: dict[str, Any] = {"seq": seq}
            kind = rng.random()
            if kind < 0.05:
                payload["fail"] = rng.choice((True, 1))
            elif kind < 0.06:
                payload["reject"] = True
            body = orjson.dumps({"id": id, "userId": name, "type": "t", "payload": payload})
            if kind > 0.98:
                continue  # never comes
            if kind > 0.96:
                late.append(body)
                continue
            records.append(body)
            plain.append((id, name, seq))
            odd = rng.random()
            again_id, again_user, again_seq = rng.choice(plain)
            if odd < 0.05:
                records.append(self._event(again_id, again_user, again_seq))  # twice
            elif odd < 0.06:
                records.append(self._event(f"x{n}", again_user, again_seq))  # its seq is taken
            elif odd < 0.07:
                seqs[user] += 1
                records.append(self._event(again_id, name, seqs[user]))  # its id is taken
            elif odd < 0.08:
                records.append(self._event(f"j{n}", name, seqs[user] + 5000))
            elif odd < 0.09:
                records.append(rng.choice((b"{bad", b"[]", b'{"id":"list"}')))
            elif odd < 0.10:
                records.append(None)
            elif odd < 0.12:
                records.append(self._event(f"n{n}", name, 0))
            elif odd < 0.13:
                records.append(self._event(again_id, name, 0))  # unsequenced, its id is taken
        window = rng.choice((1, 5, 30))
        for at in range(0, len(records), window):
            part = records[at : at + window]
            rng.shuffle(part)
            records[at : at + window] = part
        for body in late:
            records.insert(rng.randrange(len(records) + 1), body)
        return records

    @staticmethod
    def _event(id: str, user: str, seq: int) -> bytes:
        payload = {"seq": seq} if seq else {}
        return orjson.dumps({"id": id, "userId": user, "type": "t", "payload": payload})

    # --- actions ----------------------------------------------------------------------------------

    def _start(self, force: bool, dead: SimulatedWorker | None = None) -> SimulatedWorker:
        self.workers += 1
        ran = [entry.offset for entry in dead.tasks] if dead is not None else []
        death = Death(f"d{self.workers}", ran, "killed") if ran else None
        return SimulatedWorker(self, self.workers, force, death)

    def is_dead(self, owner: str) -> bool:
        return int(owner.rsplit("/", 1)[1]) in self.dead

    def run(self) -> None:
        """Play the history, then let everything come to rest, then judge it."""
        try:
            steps = 0
            while self.to_write or self.faults_left > 0:
                self._act(faulty=True)
                steps += 1
                if steps > 60 * (self.events + 100):
                    break
            self.faults_left = 0
            for record in self.to_write:
                self._append(record)
            self.to_write.clear()
            self.zombies.clear()
            self._rest()
            self.judge()
        except Violation as error:
            raise Violation(f"seed {self.seed}: {error}; last: {self.history[-12:]}") from error

    def _act(self, faulty: bool) -> None:
        rng = self.random
        if faulty and self.faults_left > 0 and rng.random() < 0.01:
            self.faults_left -= 1
            try:
                self._fault(rng.choice(self.only))
            except Fenced:
                self._bury(self.worker, "fenced")
            except Crash:
                self._bury(self.worker, "crash in turn")
            return
        worker = self.worker
        if self.zombies and rng.random() < 0.2:
            worker = rng.choice(self.zombies)
        try:
            self._act_of(worker, rng.random())
        except Fenced:
            self._bury(worker, "fenced")
        except Crash:
            self._bury(worker, "crash in turn")

    def _bury(self, worker: SimulatedWorker, why: str) -> None:
        self.history.append(f"{why} {worker.number}")
        self.dead.add(worker.number)
        if worker in self.zombies:
            self.zombies.remove(worker)
        else:
            self.worker = self._start(force=False, dead=worker)

    def _act_of(self, worker: SimulatedWorker, choice: float) -> None:
        rng, clock = self.random, self.clock
        if choice < 0.18:
            if self.to_write:
                self._append(self.to_write.popleft())
        elif choice < 0.30:
            clock.now_ms += rng.choice((1, 3, 10, 60))
        elif choice < 0.52:
            worker.turn()
        elif choice < 0.70:
            if worker.requests and not self.down:
                self._execute(worker)
        elif choice < 0.84:
            if worker.replies:
                worker.take_reply()
        elif choice < 0.93:
            self._fetch(worker)
        elif choice < 0.97:
            if worker.produced:
                self._deliver(worker, lost=False)
        else:
            if worker.end_asked:
                worker.end_asked = False
                worker.answers.append(self.end)
                worker.pipeline.on_end_offset(self.end)
            if worker.offsets_asked:
                worker.offsets_asked = False
                worker.pipeline.on_offsets(Offsets(0, self.end, self.committed))

    def _append(self, body: bytes | None) -> None:
        if self.random.random() < 0.02:
            self.end += 1  # a transaction marker: an offset without a record
        record = FakeRecord(self.end, body, self.clock.wall_ms())
        self.log.append(record)
        self.end += 1
        if body is not None and body.startswith(b'{"id"') and b"userId" in body:
            self.documents.append((record, orjson.loads(body)))

    def _fetch(self, worker: SimulatedWorker) -> None:
        pipeline = worker.pipeline
        if worker.fetch_at < 0 or not pipeline.wants_records:
            return
        n = self.random.choice((1, 3, 20))
        first = bisect_left(self.log, worker.fetch_at, key=lambda record: record.place)
        batch = self.log[first : first + n]
        now = self.clock.now_ms
        if batch:
            pipeline.on_records(list(batch), now)
            worker.fetch_at = batch[-1].place + 1
        elif worker.fetch_at < self.end:
            worker.fetch_at = self.end
            pipeline.on_position(self.end)

    def _execute(self, worker: SimulatedWorker, *, fail_at: int | None = None) -> None:
        request = worker.requests[0]
        script, keys, args = self.scripts.encode(request)
        try:
            raw = self.store.execute(script, keys, args, fail_at=fail_at)
        except ReplyError as error:
            if fail_at is None:
                raise Violation(f"{script}: {error}") from error
            return  # it stays the first to be sent again
        worker.requests.popleft()
        reply = decode(request, raw)
        worker.replies.append((request, reply))
        if isinstance(request, Finalize) and isinstance(reply, Finalized) and reply.status == "ok":
            self._judge_floor(reply.floor)

    def _deliver(self, worker: SimulatedWorker, lost: bool) -> None:
        entry, _ = worker.produced.popleft()
        self.dead_letters.append(entry.offset)
        worker.pipeline.on_delivered(entry, "lost" if lost else None, self.clock.now_ms)

    def commit(self, offset: int) -> None:
        stored = self._field(f"partition:{TOPIC}:0", "offset")
        lossy = self.zombies or self.forgiven or self.snapshots
        if stored is not None and offset > int(stored) and not lossy:
            raise Violation(f"committed {offset} above the floor {int(stored)} in Redis")
        self.committed = offset

    # --- faults -----------------------------------------------------------------------------------

    def _fault(self, kind: str) -> None:
        self.history.append(kind)
        self.counts[f"fault:{kind}"] += 1
        getattr(self, f"_fault_{kind}")(self.worker)

    def _fault_crash(self, worker: SimulatedWorker) -> None:
        # what is on the wire may still be carried out, before or after the next claim
        for _ in range(self.random.randrange(3)):
            if worker.requests:
                self._execute(worker)
        self._bury(worker, "crash")
        if worker.requests and self.random.random() < 0.5:
            self._ghosts(worker)

    def _ghosts(self, worker: SimulatedWorker) -> None:
        """The next worker claims, and only then do the dead one's last writes arrive."""
        successor = self.worker
        for _ in range(200):
            if successor.pipeline.owned:
                break
            successor.turn()
            self._settle_one(successor)
        while worker.requests:
            self._execute(worker)

    def _settle_one(self, worker: SimulatedWorker) -> None:
        if worker.offsets_asked:
            worker.offsets_asked = False
            worker.pipeline.on_offsets(Offsets(0, self.end, self.committed))
        if worker.requests:
            self._execute(worker)
        if worker.replies:
            worker.take_reply()

    def _fault_crash_in_turn(self, worker: SimulatedWorker) -> None:
        worker.crash_after = self.random.randrange(6)

    def _fault_lost_reply(self, worker: SimulatedWorker) -> None:
        """The connection breaks: whatever is unanswered, carried out or not, is sent again in order."""
        worker.requests.extendleft(reversed([request for request, _ in worker.replies]))
        worker.replies.clear()

    def _fault_script_error(self, worker: SimulatedWorker) -> None:
        if worker.requests and not isinstance(worker.requests[0], LoadUsers):
            self._execute(worker, fail_at=self.random.randrange(30))

    def _fault_rewind(self, worker: SimulatedWorker) -> None:
        """Redis fails over to a replica that lacks recent writes."""
        if self._field(f"partition:{TOPIC}:0", "offset") is None:
            return  # it has nothing to lose
        if not self.snapshots or self.random.random() < 0.3:
            self.snapshots.append(self.store.snapshot())
            self.faults_left += 1 if len(self.snapshots) == 1 else 0
            return
        self.store.restore(self.snapshots[-1])
        self.checked_floor = 0

    def _fault_flush(self, worker: SimulatedWorker) -> None:
        self.store.flush()
        self.snapshots.clear()
        # what was final by then stays lost; what was read and not final is done again
        floors = [worker.pipeline.acked_floor, self.committed, self.checked_floor, self.forgiven]
        self.forgiven = max(floors)

    def _fault_outage(self, worker: SimulatedWorker) -> None:
        self.down = not self.down
        if self.down:
            worker.pipeline.suspend()
            self.faults_left += 1
        else:
            worker.pipeline.resume(self.clock.now_ms)

    def _fault_zombie(self, worker: SimulatedWorker) -> None:
        """The worker is stopped, replaced, and goes on later."""
        self.zombies.append(worker)
        self.worker = self._start(force=True)

    def _fault_lost_ack(self, worker: SimulatedWorker) -> None:
        if worker.produced:
            self._deliver(worker, lost=True)

    def _fault_stall(self, worker: SimulatedWorker) -> None:
        self.clock.now_ms += 5000
        worker.pipeline.resume(self.clock.now_ms)

    def _fault_refetch(self, worker: SimulatedWorker) -> None:
        """A new worker starts while the old one has drained properly."""
        worker.pipeline.drain()
        for _ in range(500):
            if worker.pipeline.drained or not worker.pipeline.owned:
                break
            worker.turn()
            self._settle_one(worker)
            if worker.produced:
                self._deliver(worker, lost=False)
            self.clock.now_ms += 10
            if self.down:
                break
        else:
            if worker.pipeline.owned:
                raise Violation("a drain does not end")
        if worker.pipeline.drained:
            mine = self.scripts.lock(worker.pipeline.ownership.epoch, worker.pipeline.ownership.owner)
            left = [
                key
                for key, (value, _) in self.store.dump().items()
                if key.startswith(b"inflight:") and value == mine.encode()
            ]
            if left and not self.zombies:
                raise Violation(f"locks left by a drain: {left}")
        self._bury(worker, "drained")

    # --- rest and judgement -----------------------------------------------------------------------

    def _rest(self) -> None:
        self.down = False
        self.worker.pipeline.resume(self.clock.now_ms)
        self.worker.crash_after = -1
        for _ in range(30_000):
            worker = self.worker
            try:
                worker.turn()
                self._settle_one(worker)
                self._fetch(worker)
                if worker.produced:
                    self._deliver(worker, lost=False)
                if worker.end_asked:
                    self._act_of(worker, 0.99)
            except Fenced:
                self._bury(worker, "fenced")
                continue
            pipeline = worker.pipeline
            if pipeline.owned and pipeline.floor == self.end == pipeline.acked_floor == self.committed:
                return
            if not worker.requests and not worker.replies:
                self.clock.now_ms += 7
        buffer = self.worker.pipeline.buffer
        raise Violation(
            f"stuck: floor {self.worker.pipeline.floor} acked {self.worker.pipeline.acked_floor} "
            f"committed {self.committed} end {self.end} position {buffer.position} parked {buffer.parked} "
            f"due {self.worker.pipeline.next_deadline_ms()} wants {self.worker.pipeline.wants_records}"
        )

    def _field(self, key: str, name: str) -> bytes | None:
        value: bytes | None = self.store.command("HMGET", key, name)[0]
        return value

    def _judge_floor(self, floor: int) -> None:
        """Every record below the floor is final, and its dead letter is in the topic."""
        first = bisect_left(self.documents, max(self.checked_floor, self.forgiven), key=_place)
        for record, document in self.documents[first:]:
            if record.place >= floor:
                break
            id = document["id"]
            status = self._field(f"event:{id}", "status")
            if status is None:
                raise Violation(f"floor {floor} passed offset {record.place} ({id}), which is not final")
            where = self._field(f"event:{id}", "offset")
            dropped = status == b"skipped" and self.settings.late_policy == "skip"
            here = where is not None and int(where) == record.place and not dropped
            if here and record.place not in self.dead_letters:
                raise Violation(f"floor {floor} passed the dead letter at {record.place}, not produced")
        self.checked_floor = max(self.checked_floor, floor)

    def judge_gap(self, worker: SimulatedWorker, user: str, first: int, last: int) -> None:
        """No gap is closed over a record that was read, or that was there when the end was asked."""
        for record, document in self.documents:
            seq = document["payload"].get("seq", 0)
            if document["userId"] != user or not first <= seq <= last or record.place < self.forgiven:
                continue
            if self._field(f"event:{document['id']}", "reason") == b"seq_jump":
                continue
            read = record.place < worker.pipeline.buffer.position
            asked = any(end <= record.place for end in worker.answers[-4:])
            if read or not asked:
                raise Violation(f"false gap {first}-{last} of {user}: seq {seq} is at {record.place}")

    def judge(self) -> None:
        """Nothing lost, doubled, reordered or unexplained."""
        dump = self.store.dump()
        hashes = {key[6:].decode(): value for key, (value, _) in dump.items() if key.startswith(b"event:")}
        left = [key for key in dump if key.startswith(b"inflight:")]
        if left:
            raise Violation(f"locks left: {left}")
        documents = self.documents
        judged = [(r, d) for r, d in documents if r.place >= self.forgiven]
        for record, document in judged:
            if document["id"] not in hashes:
                raise Violation(f"lost: {document['id']} at {record.place}")
        self._judge_orders(dump, hashes, judged)
        self._judge_runs(hashes)
        good = {record.place for record, _ in documents}
        bad = [r.place for r in self.log if r.body is not None and r.place not in good]
        for place in bad:
            if place >= self.forgiven and place not in self.dead_letters:
                raise Violation(f"invalid record at {place} is not in the DLQ topic")
        for id, value in hashes.items():
            self._judge_hash(id, value, dump)

    def _judge_hash(self, id: str, value: Any, dump: dict[bytes, Any]) -> None:
        status, attempts = value[b"status"], int(value[b"attempts"])
        if status == b"processed" and not 1 <= attempts <= 2:
            raise Violation(f"{id} processed after {attempts} attempts")
        if status != b"processed":
            dropped = status == b"skipped" and self.settings.late_policy == "skip"
            if not dropped and int(value[b"offset"]) not in self.dead_letters:
                raise Violation(f"{id} {status} is not in the DLQ topic")
            if (f"dlq:{id}".encode() in dump) == dropped:
                raise Violation(f"{id} {status}: dlq entry {'there' if dropped else 'missing'}")
        if status == b"skipped" and attempts:
            raise Violation(f"{id} skipped after {attempts} attempts")

    def _judge_orders(self, dump: dict[bytes, Any], hashes: dict[str, Any], judged: list[Any]) -> None:
        for user in {d["userId"] for _, d in judged}:
            order = [int(seq) for seq in dump.get(f"order:{user}".encode(), ([], 0))[0]]
            if any(a >= b for a, b in pairwise(order)):
                raise Violation(f"order of {user} is not increasing: {order}")
            processed = {
                int(value[b"seq"])
                for value in hashes.values()
                if value[b"userId"] == user.encode() and value[b"status"] == b"processed" and b"seq" in value
            }
            if processed != set(order):
                raise Violation(f"order of {user} {order} but processed {sorted(processed)}")
            ledger = self._ledger(dump, user)
            settled = processed | {
                int(value[b"seq"])
                for value in hashes.values()
                if value[b"userId"] == user.encode() and b"seq" in value
            }
            conflicts = {d["payload"].get("seq", 0) for r, d in judged if d["userId"] == user}
            top = max(processed, default=0)
            for seq in range(1, top):
                known = seq in settled or seq in conflicts or any(a <= seq <= b for a, b in ledger)
                if not known and not self.forgiven:
                    raise Violation(f"seq {seq} of {user} is unexplained: {order}, ledger {ledger}")
            following = dump.get(f"next:{user}".encode())
            if following is not None and int(following[0]) <= (order[-1] if order else 0) + 1:
                raise Violation(f"next:{user} {following[0]!r} is not ahead of {order}")

    @staticmethod
    def _ledger(dump: dict[bytes, Any], user: str) -> list[tuple[int, int]]:
        entries = dump.get(f"gaps:{user}".encode(), ([], 0))[0]
        ranges = [entry.split(b":")[0].split(b"-") for entry in entries]
        return [(int(first), int(last)) for first, last in ranges]

    def _judge_runs(self, hashes: dict[str, Any]) -> None:
        """Each event's last run by the owner is in order per user."""
        if self.counts["fault:zombie"] or self.counts["fault:flush"] or self.counts["fault:rewind"]:
            return  # a zombie's runs are its own; after a rewind what was lost is run again
        last: dict[str, dict[int, int]] = defaultdict(dict)
        for n, run in enumerate(self.runs):
            final = hashes.get(run.id, {})
            # in a replay another record of that id may have come first
            own = final.get(b"userId") == run.user.encode() and int(final.get(b"seq", 0)) == run.seq
            if run.seq and run.ok and own and final[b"status"] == b"processed":
                last[run.user][run.seq] = n
        for user, runs in last.items():
            order = [seq for seq, _ in sorted(runs.items(), key=lambda item: item[1])]
            if order != sorted(order):
                raise Violation(f"runs of {user} are out of order: {order}")


def simulate(seed: int, **options: Any) -> dict[str, int]:
    """Run one seed; the counts of what happened in it."""
    world = World(seed, **options)
    world.run()
    return world.counts
