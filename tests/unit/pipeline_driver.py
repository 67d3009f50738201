"""Drives one pipeline by hand: a test plays Kafka, Redis, the handler and the clock, one request at a time.

Redis is the real Lua scripts on the in-memory store. What kinds of requests are in `held` stay in `todo`
until a test frees them; everything else is carried out in order, at once, whenever the driver settles.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
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
    LoadUsers,
    Offsets,
    Produce,
    Release,
    Renew,
    Request,
    Run,
    Seek,
)
from eventproc.errors import Reject
from eventproc.event import Event
from eventproc.handlers import Runner
from eventproc.pipeline import Pipeline
from eventproc.settings import Settings
from eventproc.store.scripts import ScriptSet
from tests.simulation.memory_store import MemoryStore

TOPIC = "events"
START_MS = 1_000
WALL_MS = 1_700_000_000_000


class ManualClock:
    """Time that moves only when a test says so."""

    def __init__(self) -> None:
        self.now_ms = START_MS

    def monotonic_ms(self) -> int:
        return self.now_ms

    def wall_ms(self) -> int:
        return WALL_MS + self.now_ms

    def sleep_ms(self, ms: float) -> None:
        self.now_ms += int(ms)


@dataclass(slots=True)
class LogRecord:
    """One record of the partition."""

    place: int
    body: bytes | None
    name: bytes | None = None
    at_ms: int = WALL_MS

    def offset(self) -> int:
        return self.place

    def key(self) -> bytes | None:
        return self.name

    def value(self) -> bytes | None:
        return self.body

    def timestamp(self) -> tuple[int, int]:
        return (1, self.at_ms)

    def headers(self) -> None:
        return None


class Figures:
    """A meter that counts by name and label."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def inc(self, metric: str, n: int = 1, label: str = "") -> None:
        self.counts[f"{metric}.{label}" if label else metric] += n

    def observe(self, metric: str, values: object) -> None:
        pass


def event(user: str, seq: int = 0, id: str = "", **payload: Any) -> bytes:
    """A record's value; its id is `<user>-<seq>` unless given."""
    if seq:
        payload["seq"] = seq
    document = {"id": id or f"{user}-{seq}", "userId": user, "type": "t", "payload": payload}
    return orjson.dumps(document)


def finalize_of(requests: list[Request]) -> Finalize:
    """The one finalize call among them."""
    [found] = [request for request in requests if isinstance(request, Finalize)]
    return found


class Driver:
    """A worker's surroundings. The handler obeys the payload: `fail` (true, or that many times), `reject`."""

    def __init__(
        self,
        *,
        store: MemoryStore | None = None,
        clock: ManualClock | None = None,
        owner: str = "host:1:a/0/1",
        partition: int = 0,
        partitions: int = 1,
        low: int = 0,
        end: int = 0,
        committed: int = -1,
        may_take: Callable[[str], bool] = lambda owner: False,
        force: bool = False,
        death: Death | None = None,
        concurrency: int = 0,
        batches: bool = False,
        **settings: Any,
    ) -> None:
        self.clock = clock or ManualClock()
        self.store = store or MemoryStore(self.clock)
        self.settings = Settings(**{"redis_url": "redis://none"} | settings)
        self.scripts = ScriptSet(self.settings, TOPIC, partition)
        self.partition = partition
        self.log: list[LogRecord] = []
        self.low, self.end, self.committed = low, end, committed
        self.fetch_at = -1
        self.todo: list[Request] = []
        self.held: set[type] = set()
        self.made: list[Request] = []  # every request, in order
        self.produced: list[int] = []  # offsets
        self.lose_produced = False  # Kafka refuses dead letters
        self.commits: list[int] = []
        self.runs: list[tuple[str, int]] = []  # id, attempt
        self.during: dict[str, Callable[[], None]] = {}  # id -> what happens while it runs
        self.took_ms = 0.1  # what a Run is said to have taken
        self.figures = Figures()
        self.warnings: list[tuple[str, dict[str, Any]]] = []
        self.pipeline = Pipeline(
            self.settings,
            partition,
            partitions,
            owner,
            meter=self.figures,
            random=random.Random(1),
            warn=lambda name, **fields: self.warnings.append((name, fields)),
            may_take=may_take,
            force=force,
            death=death,
            concurrency=concurrency,
            batches=batches,
        )
        self._concurrency = concurrency
        self._batches = batches
        self.tasks: list[Entry] = []  # on which handlers run beside the loop
        self.runner = Runner(self._handle, partition, self.clock, lambda since_ms, offset: None)

    @property
    def counts(self) -> Counter[str]:
        return self.figures.counts

    def _handle(self, given: Event) -> None:
        self.runs.append((given.id, given.attempt))
        meanwhile = self.during.get(given.id)
        if meanwhile is not None:
            meanwhile()
        if "reject" in given.payload:
            raise Reject(given.payload["reject"])
        fail = given.payload.get("fail", 0)
        if fail is True or given.attempt <= fail:
            raise ValueError("it fails")

    # --- what a test does -----------------------------------------------------------------------------

    def own(self) -> Driver:
        """Take the partition."""
        self.settle()
        assert self.pipeline.ownership.owned
        return self

    def write(self, *bodies: bytes | None, at: int = -1) -> list[int]:
        """Append records to the log; their offsets. `at` leaves offsets out, as a compaction does."""
        offsets = []
        for body in bodies:
            self.end = max(self.end, at)
            self.log.append(LogRecord(self.end, body))
            offsets.append(self.end)
            self.end += 1
        return offsets

    def read(self) -> int:
        """Give the pipeline all it has not read, if it wants records; how many it got."""
        pipeline = self.pipeline
        if self.fetch_at < 0 or not pipeline.wants_records():
            return 0
        batch = [record for record in self.log if record.place >= self.fetch_at]
        self.fetch_at = self.end
        pipeline.on_records(list(batch), self.clock.now_ms)
        pipeline.on_position(self.end)
        return len(batch)

    def send(self, *bodies: bytes | None) -> list[int]:
        """Write, read, and let everything happen that can happen now."""
        offsets = self.write(*bodies)
        self.read()
        self.settle()
        return offsets

    def step(self) -> list[Request]:
        """One step; its requests are made, and go to `todo`."""
        requests = self.pipeline.step(self.clock.now_ms)
        self.made += requests
        self.todo += requests
        return requests

    def settle(self) -> None:
        """Step and carry out until nothing more comes of it at this time."""
        for _ in range(10_000):
            fresh = self.step()
            ready = [request for request in self.todo if type(request) not in self.held]
            if not ready and not fresh:
                return
            for request in ready:
                if request in self.todo:
                    self.carry_out(request)
        raise AssertionError(f"it never comes to rest: {self.todo}")

    def hold(self, *kinds: type) -> None:
        """Leave these undone from now on."""
        self.held |= set(kinds)

    def free(self, *kinds: type) -> None:
        """Carry these out again (all kinds if none is named), and settle."""
        self.held -= set(kinds) or self.held
        self.settle()

    def finish(self, *ids: str, error: BaseException | None = None) -> None:
        """The handlers of these end in this order (none named: all that run), then settle.

        Those of a batch end together, and have to be named together.
        """
        ended: list[Ended] = []
        for id in ids or [entry.id for entry in self.tasks]:
            [entry] = [entry for entry in self.tasks if entry.id == id]
            self.tasks.remove(entry)
            [outcome] = self.runner.run([entry])
            assert outcome is None or isinstance(outcome, BaseException)
            ended.append(Ended(entry, error or outcome, self.took_ms))
        for told in [ended] if self._batches else [[one] for one in ended]:
            self.pipeline.on_ended(told, self.clock.now_ms)
        self.settle()

    def running(self) -> list[str]:
        """Ids on which handlers run beside the loop."""
        return [entry.id for entry in self.tasks]

    def pass_ms(self, ms: int) -> None:
        """Let time pass, then settle."""
        self.clock.now_ms += ms
        self.settle()

    def waiting(self, kind: type) -> list[Any]:
        """Undone requests of a kind."""
        return [request for request in self.todo if type(request) is kind]

    def asked(self, kind: type) -> list[Any]:
        """All requests of a kind so far."""
        return [request for request in self.made if type(request) is kind]

    def carry_out(self, request: Request) -> None:
        """Do what is asked, and bring the answer."""
        self.todo = [other for other in self.todo if other is not request]
        pipeline, now_ms = self.pipeline, self.clock.now_ms
        if isinstance(request, Run) and self._concurrency:
            self.tasks += request.entries
        elif isinstance(request, Run):
            outcomes = self.runner.run(request.entries)
            pipeline.on_ran(request, outcomes, self.took_ms, self.clock.now_ms)
        elif isinstance(request, Produce):
            if not self.lose_produced:
                self.produced.append(request.entry.offset)
            pipeline.on_delivered(request.entry, "lost" if self.lose_produced else None, now_ms)
        elif isinstance(request, Commit):
            self.commits.append(request.offset)
            self.committed = request.offset
        elif isinstance(request, FetchEnd):
            pipeline.on_end_offset(self.end)
        elif isinstance(request, FetchOffsets):
            pipeline.on_offsets(Offsets(self.low, self.end, self.committed))
        elif isinstance(request, Seek):
            self.fetch_at = request.offset
        else:
            if isinstance(request, Finalize) and request.rev == self.pipeline.ownership.rev + 1:
                self.check_dense(request)
            self.answer(request, self.store.perform(self.scripts, request))

    def check_dense(self, request: Finalize) -> None:
        """What is said to be dense is, lest a second writer's seq pass for one that is expected."""
        for group in request.groups:
            found = self.contents().get(f"order:{group.user}", [])
            if group.dense and isinstance(found, list):
                assert found == [str(seq) for seq in range(1, len(found) + 1)], f"{group}: {found}"

    def answer(self, request: Request, reply: Any) -> None:
        """Bring Redis's reply."""
        self.todo = [other for other in self.todo if other is not request]
        pipeline, now_ms = self.pipeline, self.clock.now_ms
        if isinstance(request, Finalize):
            assert isinstance(reply, Finalized)
            pipeline.on_finalized(request, reply, now_ms, self.clock.wall_ms())
        elif isinstance(request, Acquire):
            assert isinstance(reply, Acquired)
            pipeline.on_acquired(request, reply, now_ms)
        elif isinstance(request, LoadUsers):
            pipeline.on_loaded(request, reply, now_ms)
        elif isinstance(request, Claim):
            assert isinstance(reply, Claimed)
            for then in pipeline.on_claimed(reply, now_ms):
                self.made.append(then)
                self.carry_out(then)
        elif isinstance(request, Release):
            pipeline.on_released(request)
        elif isinstance(request, Renew):
            pipeline.on_renewed(request, reply, now_ms)

    # --- what is seen ---------------------------------------------------------------------------------

    def contents(self) -> dict[str, Any]:
        """All of Redis, as text."""
        return {key.decode(): _text(value) for key, (value, _) in self.store.dump().items()}

    def hash(self, id: str) -> dict[str, str]:
        """`event:<id>`, empty if there is none."""
        found: dict[str, str] = self.contents().get(f"event:{id}", {})
        return found

    def status(self, id: str) -> str:
        """Its status, `""` if it is not final."""
        return self.hash(id).get("status", "")

    def order(self, user: str) -> list[int]:
        """Seqs in processing order."""
        return [int(seq) for seq in self.contents().get(f"order:{user}", [])]

    def following(self, user: str) -> int:
        """`next:<user>`, 0 if there is none."""
        return int(self.contents().get(f"next:{user}", 0))

    def ledger(self, user: str) -> list[str]:
        """Gaps, as `<from>-<to>:<reason>`."""
        return [entry.rsplit(":", 1)[0] for entry in self.contents().get(f"gaps:{user}", [])]

    def letter(self, id: str) -> dict[str, str]:
        """`dlq:<id>`, empty if there is none."""
        found: dict[str, str] = self.contents().get(f"dlq:{id}", {})
        return found

    def letters(self) -> list[str]:
        """Ids in `dlq:list`."""
        found: list[str] = self.contents().get("dlq:list", [])
        return found

    def locks(self) -> list[str]:
        """Ids that are locked."""
        return sorted(key[9:] for key in self.contents() if key.startswith("inflight:"))

    def stored(self, field: str) -> str:
        """A field of the partition's key."""
        value: str = self.contents()[f"partition:{TOPIC}:{self.partition}"][field]
        return value

    def floor_stored(self) -> int:
        """The position in Redis."""
        return int(self.stored("offset"))

    def ran(self) -> list[str]:
        """Ids in the order of their runs."""
        return [id for id, _ in self.runs]


def _text(value: Any) -> Any:
    if isinstance(value, list):
        return [item.decode() for item in value]
    if isinstance(value, dict):
        return {name.decode(): item.decode() for name, item in value.items()}
    return value.decode(errors="replace")


def final_elsewhere(driver: Driver, id: str, user: str, seq: int = 0, status: str = "processed") -> None:
    """Make an id final in Redis, as another worker would have."""
    words: list[str | int] = ["HSET", f"event:{id}", "status", status, "userId", user, "attempts", 1]
    driver.store.command(*words, *(("seq", seq) if seq else ()))
    driver.store.command("SET", f"dedup:{id}", "1")


def entries_of(requests: list[Any]) -> list[Entry]:
    """All entries of these runs or acquires."""
    return [entry for request in requests for entry in request.entries]
