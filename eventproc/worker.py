"""The worker: one partition's pipeline, joined to Kafka, Redis and the handler.

Started by the supervisor as a fork of it, with a `WorkerSpec` on standard input.
"""

from __future__ import annotations

import faulthandler
import gc
import os
import random
import resource
import secrets
import select
import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

from eventproc import crashpoints, logs, spawn
from eventproc.async_runner import AsyncRunner
from eventproc.broker.consumer import PartitionConsumer
from eventproc.broker.producer import ERROR_MAX_CHARS, DeadLetterProducer
from eventproc.clock import Clock, SystemClock
from eventproc.effects import (
    Acquire,
    Acquired,
    Claim,
    Claimed,
    Commit,
    Death,
    Entry,
    FetchEnd,
    FetchOffsets,
    Finalize,
    Finalized,
    LoadUsers,
    Produce,
    Release,
    Renew,
    Renewed,
    Request,
    Run,
    Seek,
    StoreReply,
    StoreRequest,
)
from eventproc.errors import ConfigError, EventprocError, Fenced, Transient
from eventproc.handlers import Handler, Runner, concurrency_of, is_batch, load_handler
from eventproc.keeper import STALL_MS, Keeper
from eventproc.metrics import Board, Page, State
from eventproc.pipeline import Pipeline
from eventproc.settings import Settings
from eventproc.store.channel import Channel

CONSUME_RECORDS = 500
IDLE_WAIT_MS = 100
REPLY_WAIT_MS = 10
FULL_WAIT_MS = 20
TASK_WAIT_MS = 5
PUBLISH_MS = 100
PAUSE_AFTER_MS = 200
OFFSETS_TIMEOUT_S = 5.0
OFFSETS_RETRY_MS = 500
#: Part of shutdown_timeout_s that a worker takes for itself; the rest is the supervisor's.
DRAIN_SHARE = 0.8

AWAY_REMEDY = "none here: the worker goes on by itself once it answers"
REFUSED_REMEDY = "mend in Redis what the error names; the worker goes on by itself then"

#: Where to look when events fail for these reasons; elsewhere the record itself is the cause.
DEAD_LETTER_CAUSES = {
    "handler": "the handler or what it calls",
    "rejected": "what the handler rejects",
    "late": "gap_timeout_ms, if events may come that late",
    "crash": "the handler, which ends its worker or hangs on this event",
}

_CALLS = {Claim: "claim", LoadUsers: "load", Acquire: "acquire", Finalize: "finalize", Release: "release"}


class Worker:
    """Carries out what the pipeline asks for, and brings it what comes back."""

    def __init__(
        self,
        settings: Settings,
        partition: int,
        partitions: int,
        owner: str,
        handler: Handler,
        page: Page,
        clock: Clock,
        *,
        may_take: Callable[[str], bool] = lambda owner: False,
        force: bool = False,
        death: Death | None = None,
        crash: Callable[[crashpoints.Point], None] | None = None,
    ) -> None:
        self._settings = settings
        self._partition = partition
        self._page = page
        self._clock = clock
        self._crash = crash
        self._log = logs.get()
        self._rarely = logs.OnceAMinute(clock)
        concurrency = concurrency_of(handler, settings)
        self.pipeline = Pipeline(
            settings,
            partition,
            partitions,
            owner,
            meter=page,
            random=random.Random(),
            warn=self._warn,
            may_take=may_take,
            force=force,
            death=death,
            concurrency=concurrency,
            batches=is_batch(handler),
        )
        self._consumer = PartitionConsumer(settings, partition, clock)
        self._producer = DeadLetterProducer(settings)
        self._channel = Channel(settings, settings.kafka_topic, partition, clock)
        self._runner = Runner(handler, partition, clock, page.running)
        self._keeper = Keeper(settings, partition, clock)
        self._tasks: AsyncRunner | None = None
        if concurrency:
            self._tasks = AsyncRunner(handler, partition, clock, page.task, concurrency)
        self._stop_asked = False
        self._drain_until_ms = 0
        self._offsets_at_ms = -1  # when to ask for offsets; -1: not asked
        self._end_asked_ms = -1  # since when the partition's end is asked for; -1: it is not
        self._away = False
        self._stalls = 0
        self._in_trouble = False
        self._refused: dict[int, str] = {}  # offsets of dead letters that were not acknowledged, and why
        self._pointers = 0  # counted so far
        self._dead_letter: Entry | None = None  # the last one, not published yet
        self._reading_paused = False
        self._wanted_ms = 0
        self._published_ms = 0
        self._looped_ms = 0
        self._handlers_ms = 0  # time spent in handlers so far
        self._commits = -1
        self._gives_way = False
        self._redis_errors = self._kafka_errors = 0  # counted so far

    def stop(self) -> None:
        """Ask for a drain; may be called by a signal handler, sets a flag only."""
        self._stop_asked = True

    def run(self) -> None:
        """Work until stopped. Raises EventprocError when it cannot go on."""
        if self._tasks is not None:
            self._tasks.start()
        else:
            self._keeper.start()
        self._looped_ms = self._own_ms()
        orderly = False
        try:
            while not self._finished():
                self._turn()
            if self.pipeline.owned and not self._consumer.flush_commits(5):
                self._log.warning("commit_not_acknowledged", offset=self.pipeline.acked_floor)
            self._publish(self._clock.monotonic_ms())
            orderly = True
        except EventprocError as error:
            if isinstance(error, Fenced):
                self._let_end()
            orderly = True
            raise
        finally:
            self._keeper.stop()
            if self._tasks is not None:
                self._tasks.close()
            if orderly:  # and not, say, for lack of memory: then what runs may have killed this worker
                self._page.forget_runs()
            self._producer.close()
            self._consumer.close()
            self._channel.close()

    def _finished(self) -> bool:
        pipeline = self.pipeline
        if not self._stop_asked:
            return False
        now_ms = self._clock.monotonic_ms()
        if not pipeline.draining:
            pipeline.drain()
            self._page.state = "draining"
            self._drain_until_ms = now_ms + self._drain_ms()
        if pipeline.drained or not (pipeline.owned or self._runs_beside()):
            return True
        if now_ms >= self._drain_until_ms:
            self._log.warning(
                "drain_cut_short",
                floor=pipeline.acked_floor,
                redis=self._channel.last_error if not self._channel.up else "up",
                kafka=self._consumer.last_error if self._consumer.down else "up",
                dead_letters_not_acknowledged=len(self._refused),
                remedy="none: what was not final is done again at the next start",
            )
            return True
        return False

    def _runs_beside(self) -> bool:
        """Whether handlers run beside the loop; those from before a rewind are let end, too (CONTRACT 6)."""
        return self._tasks is not None and self._tasks.under_way > 0

    def _let_end(self) -> None:
        """Let what runs end; its results are thrown away (CONTRACT section 6)."""
        if self._tasks is None:
            return
        until_ms = self._clock.monotonic_ms() + self._drain_ms()
        while self._tasks.under_way and self._clock.monotonic_ms() < until_ms:
            self._tasks.collect()
            self._page.beat(self._clock.monotonic_ms())
            self._clock.sleep_ms(TASK_WAIT_MS)

    def _drain_ms(self) -> int:
        return int(self._settings.shutdown_timeout_s * 1000 * DRAIN_SHARE)

    # --- one turn of the loop -----------------------------------------------------------------------------

    def _turn(self) -> None:
        now_ms = self._clock.monotonic_ms()
        self._watch(now_ms)
        again = self._advance(now_ms)
        self._fetch_offsets(now_ms)
        again |= self._take_deliveries()
        again |= self._take_end()
        again |= self._take_ended()
        tasks = self._runs_beside()
        at_once = again or tasks or self._channel.pending()
        count = self._take_records(0 if at_once else self._idle_wait_ms())
        if count:
            again |= self._advance(self._clock.monotonic_ms())
            # behind so many there are more, to be made ready while Redis works
            again |= count == CONSUME_RECORDS and self.pipeline.wants_records()
        if tasks:
            if not self._take_replies(0) and not again:
                self._await_task()
        else:
            # nothing but a reply is of use while no records are wanted; the socket ends the wait
            wait_ms = REPLY_WAIT_MS if self.pipeline.wants_records() else FULL_WAIT_MS
            self._take_replies(0 if again else wait_ms)
        now_ms = self._clock.monotonic_ms()
        self._page.beat(now_ms)
        if now_ms - self._published_ms >= PUBLISH_MS:
            self._publish(now_ms)

    def _advance(self, now_ms: int) -> bool:
        """Carry out what the pipeline asks for; whether there is more to do at once.

        After a run once more: what it led to is on its way to Redis before anything is waited for. All but a
        run is waited for.
        """
        ran = self._carry_out_all(self.pipeline.step(now_ms))
        if ran:
            ran = self._carry_out_all(self.pipeline.step(self._clock.monotonic_ms()))
        self._channel.flush()
        return ran and self._tasks is None

    def _carry_out_all(self, requests: list[Request]) -> bool:
        """Whether handlers were run."""
        for request in requests:
            self._carry_out(request)
        return bool(requests) and isinstance(requests[-1], Run)  # it is always the last

    def _watch(self, now_ms: int) -> None:
        """Time in which this process, Redis or Kafka stood still does not count (CONTRACT 4.2)."""
        own_ms, stalls = self._own_ms(), self._keeper.stalls
        stalled = own_ms - self._looped_ms > STALL_MS or stalls != self._stalls
        self._looped_ms, self._stalls = own_ms, stalls
        channel = self._channel
        # being connected for the first time is no outage; a Redis that is silent may be away long before
        # its timeout tells so
        redis_away = channel.outages > 0 if not channel.up else channel.silent_ms() > STALL_MS
        away = redis_away or self._consumer.down
        if away and not self._away:
            self.pipeline.suspend()
        elif self._away and not away:
            self.pipeline.resume(now_ms)
            self._log.info("recovered")
        elif stalled and not away:
            self.pipeline.resume(now_ms)
        self._away = away

    def _own_ms(self) -> int:
        """Monotonic time without that spent in handlers, in which replies may have waited for us."""
        return self._clock.monotonic_ms() - self._handlers_ms

    def _idle_wait_ms(self) -> int:
        if not self.pipeline.owned or self._producer.pending or self._end_asked_ms >= 0:
            return 5
        due_ms = self.pipeline.next_deadline_ms()
        left_ms = due_ms - self._clock.monotonic_ms()  # a handler may have run since the turn began
        return max(0, min(IDLE_WAIT_MS, left_ms)) if due_ms >= 0 else IDLE_WAIT_MS

    def _take_records(self, wait_ms: int) -> int:
        """How many have come."""
        if not self._may_consume():
            return 0
        if not self.pipeline.wants_records() and self._channel.pending():
            wait_ms = 0
        records = self._consumer.consume(CONSUME_RECORDS, wait_ms / 1000)
        if not self.pipeline.owned or self.pipeline.draining:
            return 0
        now_ms = self._clock.monotonic_ms()
        if records:
            self.pipeline.on_records(records, now_ms)  # type: ignore[arg-type]
        if self._consumer.position > self.pipeline.buffer.position:
            self.pipeline.on_position(self._consumer.position)
        return len(records)

    def _may_consume(self) -> bool:
        """Whether to call the consumer: while records are wanted, or once fetching is paused.

        Pausing throws away what is fetched ahead, so a short wait is sat out without it; a long one is
        not, for Kafka's callbacks are served by consuming.
        """
        now_ms = self._clock.monotonic_ms()
        if self.pipeline.wants_records() or self._consumer.position < 0:
            self._wanted_ms = now_ms
            if self._reading_paused:
                self._reading_paused = False
                self._consumer.resume()
            return True
        if not self._reading_paused and now_ms - self._wanted_ms >= PAUSE_AFTER_MS:
            self._reading_paused = True
            self._consumer.pause()
        return self._reading_paused

    def _take_deliveries(self) -> bool:
        if not self._producer.pending:
            return False
        outcomes = self._producer.poll()
        now_ms = self._clock.monotonic_ms()
        for entry, outcome in outcomes:
            self._at("after_produce")
            error = None if outcome is None else str(outcome)
            if error:
                self._refused[entry.offset] = error
            else:
                self._refused.pop(entry.offset, None)
            self.pipeline.on_delivered(entry, error, now_ms)
        if self._producer.pointers != self._pointers:
            self._page.inc("dlq_pointers", self._producer.pointers - self._pointers)
            self._pointers = self._producer.pointers
        return bool(outcomes)

    def _take_end(self) -> bool:
        if self._end_asked_ms < 0:
            return False
        end = self._consumer.poll_end()
        if end is None:
            return False
        if self._own_ms() - self._end_asked_ms > STALL_MS:  # Kafka stood still, though no connection broke
            if not self._away:  # else timers start anew when all is back
                self.pipeline.resume(self._clock.monotonic_ms())
        else:
            self.pipeline.on_end_offset(end)
        self._end_asked_ms = -1
        return True

    def _take_ended(self) -> bool:
        """What the handlers that run beside the loop have come to."""
        if self._tasks is None:
            return False
        ended = self._tasks.collect()
        if ended:
            self._at("after_run")
            self.pipeline.on_ended(ended, self._clock.monotonic_ms())
        return bool(ended)

    def _await_task(self) -> None:
        """Wait a moment for a handler's end or a reply; records come meanwhile without telling."""
        assert self._tasks is not None
        poller = select.poll()
        poller.register(self._tasks, select.POLLIN)
        if self._channel.fileno() >= 0:
            poller.register(self._channel, select.POLLIN)
        poller.poll(TASK_WAIT_MS)

    def _take_replies(self, wait_ms: int) -> bool:
        channel = self._channel
        replies = channel.poll(wait_ms if channel.pending() else 0)
        for request, reply in replies:
            self._take_reply(request, reply)
        return bool(replies)

    def _take_reply(self, request: StoreRequest, reply: StoreReply) -> None:
        pipeline = self.pipeline
        now_ms = self._clock.monotonic_ms()
        if isinstance(request, Finalize):
            self._at("after_finalize")
            assert isinstance(reply, Finalized)
            pipeline.on_finalized(request, reply, now_ms, self._clock.wall_ms())
        elif isinstance(request, Acquire):
            self._at("after_acquire")
            assert isinstance(reply, Acquired)
            pipeline.on_acquired(request, reply, now_ms)
        elif isinstance(request, LoadUsers):
            self._at("after_load")
            assert isinstance(reply, list)
            pipeline.on_loaded(request, reply, now_ms)
        elif isinstance(request, Claim):
            self._at("after_claim")
            assert isinstance(reply, Claimed)
            for then in pipeline.on_claimed(reply, now_ms):
                self._carry_out(then)
            if pipeline.owned and reply.rev == 0 and reply.baseline >= 0:
                self._log.warning(
                    "redis_was_empty",
                    offset=reply.baseline,
                    remedy="outcomes of earlier records stay lost; see on_redis_empty",
                )
            if pipeline.owned:
                self._log.info("claimed", epoch=pipeline.ownership.epoch, offset=pipeline.buffer.position)
                self._publish(now_ms)  # before any handler runs: the supervisor goes by it
            if pipeline.suspects:
                self._log.warning("suspects", offsets=pipeline.suspects, remedy="none: each runs alone")
        elif isinstance(request, Release):
            self._at("after_release")
            pipeline.on_released(request)
        elif isinstance(request, Renew):
            assert isinstance(reply, Renewed)
            pipeline.on_renewed(request, reply, now_ms)

    def _carry_out(self, request: Any) -> None:
        call = _CALLS.get(type(request))
        if call is not None:
            self._page.inc("redis_calls", 1, call)
            self._at(f"before_{call}")  # type: ignore[arg-type]
            self._channel.submit(request)
        elif isinstance(request, Run):
            self._run_handler(request)
        elif isinstance(request, Produce):
            self._at("before_produce")
            self._producer.send(request.entry, (self._settings.kafka_topic, self._partition))
            self._tell_dead_letter(request.entry)
        elif isinstance(request, Commit):
            self._at("before_commit")
            self._consumer.commit(request.offset)
            self._at("after_commit")
        elif isinstance(request, FetchEnd):
            self._consumer.request_end()
            self._end_asked_ms = self._own_ms()
        elif isinstance(request, FetchOffsets):
            self._offsets_at_ms = self._clock.monotonic_ms()
        elif isinstance(request, Seek):
            self._consumer.seek(request.offset)
            self._reading_paused = False
            self._refused.clear()  # those from before a rewind
        elif isinstance(request, Renew):
            self._page.inc("redis_calls", 1, "renew")
            self._channel.submit(request)

    def _tell_dead_letter(self, entry: Entry) -> None:
        """Who looks at the log or the status is to see that events fail, and why."""
        self._dead_letter = entry
        self._rarely.warning(
            self._log,
            "dead_letter",
            key=entry.reason,
            reason=entry.reason,
            id=entry.id,
            user=entry.user,
            offset=entry.offset,
            error=entry.error[:ERROR_MAX_CHARS],
            remedy=f"correct {DEAD_LETTER_CAUSES.get(entry.reason, 'the producer')};"
            f" `eventproc dlq list --reason {entry.reason}` names the last ones, `eventproc dlq show` one",
        )

    def _run_handler(self, request: Run) -> None:
        self._at("before_run")
        if self._tasks is not None:
            self._tasks.begin(request.entries)
            return
        ownership = self.pipeline.ownership
        self._channel.flush()  # Redis is to work while the handler does
        begun_ms = self._clock.monotonic_ms()
        self._keeper.begin(ownership.epoch, ownership.owner, request.entries)
        outcomes = self._runner.run(request.entries)
        self._keeper.end()
        now_ms = self._clock.monotonic_ms()
        self._handlers_ms += now_ms - begun_ms
        self._at("after_run")
        self.pipeline.on_ran(request, outcomes, now_ms - begun_ms, now_ms)

    def _fetch_offsets(self, now_ms: int) -> None:
        if self._offsets_at_ms < 0 or now_ms < self._offsets_at_ms:
            return
        try:
            offsets = self._consumer.offsets(OFFSETS_TIMEOUT_S)
        except Transient as error:
            self._warn("kafka_away", error=str(error), remedy=AWAY_REMEDY)
            self._page.last_error = str(error)
            self._offsets_at_ms = self._clock.monotonic_ms() + OFFSETS_RETRY_MS
            return
        self._offsets_at_ms = -1
        self._page.set("committed", max(0, offsets.committed))
        self.pipeline.on_offsets(offsets)

    # --- what others see ------------------------------------------------------------------------------

    def _at(self, point: crashpoints.Point) -> None:
        if self._crash is not None:
            self._crash(point)

    def _warn(self, event: str, **fields: Any) -> None:
        self._rarely.warning(self._log, event, key=fields.get("redis_key"), **fields)

    def _publish(self, now_ms: int) -> None:
        self._published_ms = now_ms
        self._gives_way = self._gives_way or spawn.give_session_way()
        page, pipeline, buffer = self._page, self.pipeline, self.pipeline.buffer
        if page.resumed != page.resumes:
            page.resumed = page.resumes
            if pipeline.stopped:
                self._log.info("resumed", by="operator")
                pipeline.close_breaker()
        page.set("breaker_open", int(bool(pipeline.stopped)))
        self._publish_trouble()
        if self._dead_letter is not None:
            page.last_dead_letter = _describe(self._dead_letter)
            self._dead_letter = None
        if not pipeline.draining:
            if pipeline.owned:
                reason = self._pause_reason()
                state: State = "paused" if reason else "running"
                if page.state != state or page.state_reason != reason:
                    page.enter(state, reason)
            elif pipeline.ownership.standby_for and page.state_reason != pipeline.ownership.standby_for:
                page.enter("standby", pipeline.ownership.standby_for)
                self._log.info("standby", owner=pipeline.ownership.standby_for)
        if not pipeline.owned:
            return
        oldest = buffer.oldest_gap()
        page.set("oldest_gap_ms", max(0, now_ms - oldest[1]) if oldest is not None else 0)
        page.set("unfinalized", buffer.unfinalized())
        page.set("parked", buffer.parked)
        page.set("parked_bytes", buffer.parked_bytes)
        page.set("users", buffer.users)
        page.set("users_set_aside", len(pipeline.foreign))
        page.set("position", buffer.position)
        page.set("floor", pipeline.floor)
        page.set("epoch", pipeline.ownership.epoch)
        committed = self._consumer.committed
        if committed >= 0 and committed != self._commits:
            self._commits = committed
            page.set("committed", committed)
            page.inc("kafka_commits")
        high = buffer.position + self._consumer.lag()
        page.set("high_watermark", high)
        pipeline.note_end(high)
        page.set("lag", max(0, high - page.get("committed")))

    def _pause_reason(self) -> str:
        if self.pipeline.stopped:
            entry = self.pipeline.next_dead_letter
            return (
                f"stopped by the breaker after {self.pipeline.stopped}:"
                f" `eventproc-supervisor resume --partition {self._partition}` goes on;"
                f" the next is {_describe(entry) if entry else 'not known'}"
            )
        if not self._channel.up:
            return f"Redis: {self._channel.last_error}"
        if self._consumer.down:
            return f"Kafka: {self._consumer.last_error}"
        if not self.pipeline.paused:
            return ""
        return self._floor_reason() or "reading is paused: Redis or the handler is behind"

    def _floor_reason(self) -> str:
        """What holds the floor so far back that nothing more is read; "" if it is not that."""
        if not self.pipeline.is_full():
            return ""
        floor = self.pipeline.floor
        if self.pipeline.foreign:
            cause = self._foreign_told()
        elif floor in self._refused:
            cause = f"its dead letter is not acknowledged: {self._refused[floor]}"
        else:
            cause = "it is not final yet"
        most = self._settings.max_replay_records
        return f"reading is paused {most} records (max_replay_records) above offset {floor}: {cause}"

    def _foreign_told(self) -> str:
        user, key = next(iter(self.pipeline.foreign.items()))
        return f"user {user} is set aside: key {key} has the wrong type; delete or rename it"

    def _publish_trouble(self) -> None:
        page, channel, consumer = self._page, self._channel, self._consumer
        page.inc("redis_errors", channel.errors - self._redis_errors)
        page.inc("kafka_errors", consumer.errors - self._kafka_errors)
        self._redis_errors, self._kafka_errors = channel.errors, consumer.errors
        page.set("redis_down", int(not channel.up and channel.outages > 0))
        page.set("kafka_down", int(consumer.down))
        if not channel.up and channel.outages:
            remedy = REFUSED_REMEDY if channel.refused else AWAY_REMEDY
            self._warn("redis_away", error=channel.last_error, remedy=remedy)
            page.last_error = channel.last_error
        elif consumer.down:
            self._warn("kafka_away", error=consumer.last_error, remedy=AWAY_REMEDY)
            page.last_error = consumer.last_error
        elif self.pipeline.foreign:
            page.last_error = self._foreign_told()
        elif self._refused:
            page.last_error = f"not acknowledged: {next(iter(self._refused.values()))}"
        elif self._in_trouble:
            page.last_error = ""  # it is over
        self._in_trouble = bool(
            page.get("redis_down") or page.get("kafka_down") or self.pipeline.foreign or self._refused
        )


def _describe(entry: Entry) -> str:
    user = f" of user {entry.user}" if entry.user else ""
    return f"{entry.id}{user} ({entry.reason}): {entry.error}"


def main() -> int:
    """Run the worker that standard input describes; returns the exit code of CONTRACT section 7."""
    try:
        return _live()
    except ConfigError as error:
        return error.exit_code


def _live() -> int:
    spec = spawn.WorkerSpec.read(sys.stdin.buffer)
    spawn.die_with_parent(spawn.parent_of(spec.supervisor))
    faulthandler.enable()
    settings = Settings(**spec.settings)
    os.nice(settings.worker_nice)
    _limit_memory(settings.worker_memory_max_bytes)
    logs.configure(settings.log_level, settings.log_format, partition=spec.partition)
    clock = SystemClock()
    board = Board.open(spec.board_fd, spec.slots)
    spawn.close_on_exec([spec.board_fd])
    page = board.page(spec.slot)
    page.reset_gauges()
    page.state = "starting"
    page.set("pid", os.getpid())
    page.resumed = page.resumes  # asked of its predecessor
    page.set("started_ms", clock.wall_ms())
    page.beat(clock.monotonic_ms())
    try:
        handler = load_handler(settings, clock)
        worker = Worker(
            settings,
            spec.partition,
            spec.partitions,
            spawn.owner_token(spec.supervisor, spec.partition, secrets.token_hex(4)),
            handler,
            page,
            clock,
            may_take=lambda owner: _is_over(owner, spec.supervisor),
            force=spec.takeover,
            death=Death(**spec.death) if spec.death is not None else None,
            crash=crashpoints.from_environment(spec.partition, spec.start_count),
        )
        _stop_on_signals(worker)
        gc.collect()
        gc.freeze()
        gc.set_threshold(50_000, 20, 50)
        worker.run()
    except EventprocError as error:
        page.last_error = str(error)
        page.state = "stopped"
        logs.get().error("stopped", error=str(error), exit_code=error.exit_code)
        return error.exit_code
    except Exception as error:
        page.last_error = f"{type(error).__name__}: {error}"  # the log has its traceback
        raise
    page.state = "stopped"
    return 0


def _limit_memory(most_bytes: int) -> None:
    """Let allocations beyond that fail: private memory, without what is only reserved or shared.

    The limit ends a handler by a MemoryError, or the process where a library takes that for the end.
    """
    if most_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (most_bytes, most_bytes))


def _is_over(owner: str, supervisor: str) -> bool:
    """Whether an owner was started by this supervisor (which restarts only the dead) or by a dead one."""
    its_supervisor = spawn.owner_supervisor(owner)
    return its_supervisor == supervisor or spawn.is_gone(its_supervisor)


def _stop_on_signals(worker: Worker) -> None:
    def ask(_signal: int, _frame: FrameType | None) -> None:
        worker.stop()

    signal.signal(signal.SIGTERM, ask)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the supervisor's
