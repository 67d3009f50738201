"""A simulated worker process: the real pipeline in what worker.py is to it, with queues for a network."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eventproc._reorder import ReorderBuffer
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
from eventproc.gaps import GapKeeper
from eventproc.handlers import Outcome, Runner
from eventproc.pipeline import Pipeline
from eventproc.store.scripts import Call
from tests.simulation import transitions
from tests.simulation.workload import PARTITIONS

if TYPE_CHECKING:
    from tests.simulation.world import World

STALL_MS = 1000  # as in worker.py


class Crash(Exception):
    """The simulated process dies here."""


class Meter:
    """Counts by name, so that tests see what a history exercised."""

    def __init__(self, counts: dict[str, int]) -> None:
        self._counts = counts

    def inc(self, metric: str, n: int = 1, label: str = "") -> None:
        self._counts[f"{metric}{{{label}}}" if label else metric] += n

    def observe(self, metric: str, values: object) -> None:
        pass


class Committer:
    """The consumer's side of commits: one is under way, the newest offset wins, a refused one is repeated."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._wanted = -1
        self.under_way = -1
        self.done = -1  # the last one that Kafka has taken

    def commit(self, offset: int) -> None:
        self._world.judge.commit(offset)
        self._wanted = offset
        self._send()

    def answer(self, refused: bool) -> None:
        """Kafka has taken the commit, or not."""
        if not refused:
            self._world.committed = self.done = self.under_way
        self.under_way = -1
        self._send()

    def _send(self) -> None:
        if self.under_way < 0 and self._wanted != self.done:
            self.under_way = self._wanted


class JudgedGapKeeper(GapKeeper):
    """Shows the gaps that it closes because their time has passed."""

    def __init__(self, buffer: ReorderBuffer, judge: Callable[[list[Gap]], None]) -> None:
        super().__init__(buffer)
        self._judge = judge

    def close_read(self) -> list[Gap]:
        gaps = super().close_read()
        self._judge(gaps)
        return gaps


class SimulatedWorker:
    """One life of a worker on `host`; `force`: it was started with --takeover.

    `death` is what its supervisor tells of the life before.
    """

    def __init__(self, world: World, number: int, host: str, force: bool, death: Death | None) -> None:
        self.world = world
        self.number = number
        self.host = host
        self.death = death
        self.requests: deque[tuple[StoreRequest, Call]] = deque()
        self.replies: deque[tuple[StoreRequest, Call, StoreReply]] = deque()
        self.produced: deque[Entry] = deque()
        self.commits = Committer(world)
        self.fetch_at = -1
        self.end_asked = False
        self.offsets_asked = False
        self.answers: list[int] = []  # end offsets that were told
        self.crash_after = -1  # requests of a step that are still carried out; -1: all
        self.crash_in_run = -1  # runs that are still made
        self.running = -1  # offset on which a sync handler runs
        self._dying = False  # that handler has killed it
        self.tasks: dict[Entry, Outcome] = {}  # on which an async handler runs, and what will come of each
        self.strays: set[Entry] = set()  # what ran when everything was thrown away
        self.suspects: set[int] = set()  # offsets that Redis has told to be
        self.slow_run = False  # the next run outlasts its locks
        self.die_at = -1  # command at which the script of its next call dies; -1: none
        self.lives = 0  # times it has claimed the partition
        self.asleep = 0  # actions that it misses: it is stopped
        self.touched = True  # something has happened to it since its last turn
        self._looped_ms = world.clock.now_ms
        self._handler_ms = 0
        self._away = False
        self._keeper: object = None
        self.pipeline = Pipeline(
            world.settings,
            0,
            PARTITIONS,
            f"{host}:1:x/0/{number}",
            meter=Meter(world.counts),
            random=world.random,
            warn=lambda event, **fields: None,
            may_take=self._may_take,
            force=force,
            death=death,
            concurrency=world.concurrency,
            batches=world.batches,
        )
        self.runner = Runner(self._handle, 0, world.clock, self._mark)

    def runs(self) -> list[int]:
        """Offsets on which handlers run, as its supervisor sees them when it is dead."""
        return sorted([entry.offset for entry in self.tasks] + [self.running] * (self.running >= 0))

    def has_jumped(self, offset: int, id: str) -> bool:
        """Whether the record is being dead-lettered for a seq far beyond what was expected then."""
        entry = self.pipeline._ids._ids.get(id)
        return entry is not None and entry.offset == offset and entry.reason == "seq_jump"

    def _mark(self, since_ms: int, offset: int) -> None:
        if not self._dying:
            self.running = offset

    def _may_take(self, owner: str) -> bool:
        """A supervisor knows which workers of its own host are dead, and nothing of others."""
        host, number = owner.split(":")[0], int(owner.rsplit("/", 1)[1])
        return host == self.host and number in self.world.dead

    def _handle(self, event: Event) -> None:
        world = self.world
        if self._dying:
            raise Crash
        fail = event.payload.get("fail")
        ok = not (fail is True or (isinstance(fail, int) and event.attempt <= fail))
        world.judge.run(self, event)
        if event.payload.get("kill") or (self.crash_in_run == 0 and not world.concurrency):
            self._dying = not world.concurrency  # an async one kills later, beside others
            raise Crash
        self.crash_in_run -= self.crash_in_run > 0
        if world.slow_handlers:
            world.clock.now_ms += world.random.choice((0, 0, 1, 30))
        if event.payload.get("reject"):
            raise Reject("no")
        if not ok:
            raise ValueError("fails")

    # --- a turn of the loop -----------------------------------------------------------------------

    def is_due(self) -> bool:
        """Whether a turn may lead to anything."""
        return self.touched or self.world.clock.now_ms != self._looped_ms

    def turn(self) -> None:
        """What happened to this process and its servers, then everything the pipeline asks for."""
        self._watch()
        self.touched = False
        for request in self.pipeline.step(self.world.clock.now_ms):
            if self.crash_after >= 0:
                self.crash_after -= 1
                if self.crash_after < 0:
                    raise Crash
            self.touched = True
            self._carry_out(request)

    def _watch(self) -> None:
        world, now = self.world, self.world.clock.now_ms
        stalled = now - self._looped_ms - self._handler_ms > STALL_MS
        self._looped_ms, self._handler_ms = now, 0
        away = world.redis_away or world.kafka_away
        if away and not self._away:
            self.pipeline.suspend()
        elif (self._away or stalled) and not away:
            self.pipeline.resume(now)
        self._away = away
        if self.pipeline._gap_keeper is not self._keeper:  # a new one, with nothing in it
            self._keeper = JudgedGapKeeper(self.pipeline.buffer, self._judge_gaps)
            self.pipeline._gap_keeper = self._keeper

    def _judge_gaps(self, gaps: list[Gap]) -> None:
        for gap in gaps:
            self.world.judge.gap_closed(self, gap)

    def _carry_out(self, request: Any) -> None:
        world = self.world
        if isinstance(request, Run):
            world.judge.begun(self, request)
            (self._begin if world.concurrency else self._run)(request)
        elif isinstance(request, Produce):
            self.produced.append(request.entry)
        elif isinstance(request, Commit):
            self.commits.commit(request.offset)
        elif isinstance(request, FetchEnd):
            self.end_asked = True
        elif isinstance(request, FetchOffsets):
            self.offsets_asked = True
        elif isinstance(request, Seek):
            self.fetch_at = request.offset
        else:
            if isinstance(request, Claim):
                world.offered = max(world.offered, request.offset)
            world.judge.asked(self, request)
            transitions.asked(world.counts, request)
            self.requests.append((request, world.scripts.encode(request)))

    def _run(self, request: Run) -> None:
        world, begun_ms = self.world, self.world.clock.now_ms
        crashes = self.crash_in_run >= 0
        if self.slow_run:
            self.slow_run = False
            self._outlast(request.entries)
        outcomes = self.runner.run(request.entries)
        world.judge.raise_of_runs()
        if crashes or self._dying:
            raise Crash
        took_ms = world.clock.now_ms - begun_ms
        self._handler_ms += took_ms
        transitions.ran(world.counts, request, outcomes)
        self.pipeline.on_ran(request, outcomes, took_ms or 0.1, world.clock.now_ms)

    def _outlast(self, entries: list[Entry]) -> None:
        """The first handler takes twice as long as its lock lives; the keeper renews the locks meanwhile."""
        world, ownership = self.world, self.pipeline.ownership
        held = [entry for entry in entries if entry.granted_ms and not entry.passed]
        for _ in range(6):
            world.clock.now_ms += world.settings.inflight_ttl_ms // 3
            if not world.redis_away:
                renew = Renew(ownership.epoch, ownership.owner, held)
                transitions.answered(world.counts, renew, world.store.perform(world.scripts, renew))

    # --- async handlers ---------------------------------------------------------------------------

    def _begin(self, request: Run) -> None:
        """What comes of them is known, but not told before they end."""
        for entry in request.entries:
            [self.tasks[entry]] = self.runner.run([entry])
        self.world.judge.raise_of_runs()

    def end_tasks(self) -> None:
        """Some of the handlers that run end, in any order; all of a batch, or none. Raises Crash."""
        world = self.world
        if self.slow_run:
            self.slow_run = False
            self._outlast_tasks()
        ended: list[Ended] = []
        n = world.random.randint(0, len(self.tasks))
        if n and world.batches:
            n = len(self.tasks)
        for entry in world.random.sample(list(self.tasks), n):
            outcome = self.tasks[entry]
            if isinstance(outcome, Crash) or self.crash_in_run == 0:
                raise Crash
            self.crash_in_run -= self.crash_in_run > 0
            assert outcome is None or isinstance(outcome, BaseException)
            if not world.batches:  # a batch that kills later was running on all of it
                del self.tasks[entry]
            transitions.ended(world.counts, entry, outcome, thrown_away=entry in self.strays)
            ended.append(Ended(entry, outcome, 0.1))
        if ended:
            if world.batches:
                self.tasks.clear()
            self.touched = True
            self.pipeline.on_ended(ended, world.clock.now_ms)

    def _outlast_tasks(self) -> None:
        """They take twice as long as their locks live, while the loop goes on."""
        world = self.world
        for _ in range(6):
            world.clock.now_ms += world.settings.inflight_ttl_ms // 3
            self.turn()
            while self.requests and not world.redis_away:
                world.execute(self)
            while self.replies:
                self.take_reply()

    # --- replies ----------------------------------------------------------------------------------

    def take_reply(self) -> None:
        """Hand the first reply to the pipeline. Raises Fenced."""
        request, _, reply = self.replies.popleft()
        pipeline, now = self.pipeline, self.world.clock.now_ms
        owned = pipeline.owned
        transitions.answered(self.world.counts, request, reply)
        if isinstance(request, Finalize):
            assert isinstance(reply, Finalized)
            pipeline.on_finalized(request, reply, now, self.world.clock.wall_ms())
            # what is final has run well, even if Redis loses that
            self.suspects = {offset for offset in self.suspects if offset >= pipeline.acked_floor}
        elif isinstance(request, Acquire):
            assert isinstance(reply, Acquired)
            pipeline.on_acquired(request, reply, now)
        elif isinstance(request, LoadUsers):
            assert isinstance(reply, list)
            pipeline.on_loaded(request, reply, now)
        elif isinstance(request, Claim):
            assert isinstance(reply, Claimed)
            self.lives += reply.status == "ok"
            self.suspects.update(reply.suspects)
            for then in pipeline.on_claimed(reply, now):
                self._carry_out(then)
        elif isinstance(request, Release):
            pipeline.on_released(request)
        elif isinstance(request, Renew):
            assert isinstance(reply, Renewed)
            pipeline.on_renewed(request, reply, now)
        if owned and not pipeline.owned:
            self.strays.update(self.tasks)


__all__ = ["Crash", "Fenced", "SimulatedWorker"]
