"""One partition's worker through all its lives: start, watch, restart, drain."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from random import Random
from typing import Any

from eventproc import logs
from eventproc.clock import Clock
from eventproc.errors import CannotStart, ConfigError, EventprocError, Fenced, HandlerLoadError
from eventproc.forked import Program
from eventproc.metrics import Board
from eventproc.settings import Settings
from eventproc.spawn import WorkerSpec
from eventproc.supervisor import child
from eventproc.supervisor.backoff import RestartPolicy
from eventproc.supervisor.watch import Rate, Watch, final_events

#: Exit codes of a worker that it is no use to start again.
BOOT_FAILURES = (ConfigError.exit_code, HandlerLoadError.exit_code)
_LOOK_S = 0.25
_ABORT_S = 2.0
_RESUME_MS = 5_000
_READY_STATES = ("running", "paused", "standby")


class WorkerSlot:
    """Keeps one worker running until it is told to stop.

    `partitions` is how many the topic has; `index` is the worker's page on the board.
    `run` is its life; `fail(code, message)` is called when starting again cannot help.
    """

    def __init__(
        self,
        partition: int,
        partitions: int,
        index: int,
        board: Board,
        settings: Settings,
        program: Program,
        supervisor: str,
        takeover: bool,
        fail: Callable[[int, str], None],
        clock: Clock,
        random: Random,
    ) -> None:
        self.partition = partition
        self.page = board.page(index)
        self._events = Rate(lambda: final_events(self.page))
        self._dead_letters = Rate(lambda: self.page.total("dead_letters"))
        self.restarts = 0
        self._partitions = partitions
        self._index = index
        self._board = board
        self._settings = settings
        self._program = program
        self._supervisor = supervisor
        self._takeover = takeover
        self._fail = fail
        self._clock = clock
        self._policy = RestartPolicy(
            settings.restart_backoff_ms, settings.restart_backoff_max_ms, settings.restart_budget, random
        )
        self._log = logs.get().bind(partition=partition)
        self._process: child.Child | None = None
        self._started_ms = 0
        self._starts = 0
        self._error_at_start = ""
        self._death: dict[str, Any] | None = None  # what the next start is to record
        self._ever_ran = False
        self._draining = False
        self._stopping = False
        self._wake = asyncio.Event()  # cuts a pause short

    @property
    def pid(self) -> int | None:
        """Of the live process."""
        return self._process.pid if self._process else None

    @property
    def uptime_s(self) -> float:
        """Of the live process, else 0."""
        return (self._clock.monotonic_ms() - self._started_ms) / 1000 if self._process else 0.0

    @property
    def owned(self) -> bool:
        """Whether the worker is alive and has its partition."""
        return self._process is not None and self.page.state in ("running", "paused")

    def sample(self) -> None:
        """Note the counts, for the rates; once a second."""
        now_ms = self._clock.monotonic_ms()
        self._events.sample(now_ms)
        self._dead_letters.sample(now_ms)

    async def run(self) -> None:
        """Start the worker, and again whenever it ends, until `drain` for good."""
        while not self._stopping:
            try:
                code, hang, watch = await self._live()
            except CannotStart as error:
                await self._pause(self._not_started(error))
                continue
            self._ever_ran = self._ever_ran or watch.ran
            self._note_death(code, hang, watch)
            if self._stopping:
                break
            pause_ms = self._after_death(code, hang, watch)
            if pause_ms is None:
                return
            self.restarts += 1
            self.page.inc("restarts")
            await self._pause(pause_ms)
        self.page.state = "stopped"

    async def drain(self, timeout_s: float, for_good: bool) -> None:
        """Ask the worker to finish what runs and end; KILL after `timeout_s`.

        Not `for_good`: it is started again at once.
        """
        self._stopping = self._stopping or for_good
        self._draining = True
        self._policy.reset()
        self._wake.set()
        process = self._process
        if process is not None and not await child.end(process, signal.SIGTERM, timeout_s):
            self._log.error(
                "drain took too long, worker killed", pid=process.pid, shutdown_timeout_s=timeout_s
            )

    async def restart(self) -> None:
        """Drain the worker and return once its successor is up (or stands by).

        EventprocError when it is not within `heartbeat_timeout_ms`.
        """
        starts = self._starts
        await self.drain(self._settings.shutdown_timeout_s, for_good=False)
        deadline_ms = self._clock.monotonic_ms() + self._settings.heartbeat_timeout_ms
        while self._clock.monotonic_ms() < deadline_ms and not self._stopping:
            if self._starts > starts and self._process and self.page.state in _READY_STATES:
                return
            await asyncio.sleep(_LOOK_S / 5)
        if not self._stopping:
            raise EventprocError(
                f"partition {self.partition} is not up within {self._settings.heartbeat_timeout_ms} ms"
                f" (heartbeat_timeout_ms): {self.page.state}; {self.page.last_error or 'no error is told'}."
                " The supervisor goes on trying; others were not restarted after it"
            )

    async def resume(self) -> bool:
        """Let the partition go on that its breaker has stopped; whether it was stopped."""
        if self._process is None or not self.page.get("breaker_open"):
            return False
        asked = self.page.ask_resume()
        deadline_ms = self._clock.monotonic_ms() + _RESUME_MS
        while self.page.resumed < asked and self._clock.monotonic_ms() < deadline_ms:
            await asyncio.sleep(_LOOK_S / 5)
        if self.page.resumed < asked:
            raise EventprocError(f"partition {self.partition} has not resumed within {_RESUME_MS} ms")
        return True

    def kill(self) -> None:
        """End the worker now, whatever it does."""
        self._stopping = True
        self._wake.set()
        if self._process is not None:
            child.send(self._process, signal.SIGKILL)

    def status(self) -> dict[str, Any]:
        """The worker in `status --json` (CONTRACT section 7)."""
        page = self.page
        return {
            "partition": self.partition,
            "pid": self.pid,
            "state": page.state,
            "uptime_s": round(self.uptime_s, 1),
            "restarts": self.restarts,
            "events_per_s": self._events.per_s,
            "lag": page.get("lag"),
            "parked": page.get("parked"),
            "oldest_gap_s": round(page.get("oldest_gap_ms") / 1000, 1),
            "dead_letters": page.total("dead_letters"),
            "dead_letters_per_s": self._dead_letters.per_s,
            "last_dead_letter": page.last_dead_letter or None,
            "last_error": page.state_reason or page.last_error or None,
        }

    async def _live(self) -> tuple[int, str, Watch]:
        """One life: its exit code, why it was killed for hanging ("" otherwise), and what was seen of it."""
        now_ms = self._clock.monotonic_ms()
        page = self.page
        page.reset_gauges()
        page.state = "starting"
        page.beat(now_ms)
        self._error_at_start = page.last_error
        settings = self._settings
        watch = Watch(page, settings.heartbeat_timeout_ms, settings.handler_timeout_ms, now_ms)
        title = f"worker {self.partition}"
        process = await child.spawn(self._program, self._spec().dump(), title, (self._board.fd,))
        self._process, self._started_ms, self._draining = process, now_ms, False
        self._starts += 1
        if self._stopping:  # asked for while it was being spawned
            child.send(process, signal.SIGTERM)
        self._log.debug("worker started", pid=process.pid, start_count=self._starts)
        hang = ""
        try:
            ending = asyncio.ensure_future(process.wait())
            while not (await asyncio.wait({ending}, timeout=_LOOK_S))[0]:
                hang = watch.look(self._clock.monotonic_ms())
                if hang and not self._draining:
                    await self._abort(process, hang)
            watch.look(self._clock.monotonic_ms())
            return ending.result(), hang, watch
        finally:
            self._process = None

    def _spec(self) -> WorkerSpec:
        return WorkerSpec(
            settings=self._settings.revealed(),
            partition=self.partition,
            partitions=self._partitions,
            slot=self._index,
            slots=self._board.slots,
            board_fd=self._board.fd,
            supervisor=self._supervisor,
            # once: a fenced worker that took it back would fight with its new owner for ever
            takeover=self._takeover and self._starts == 0,
            start_count=self._starts,
            death=self._death,
        )

    async def _abort(self, process: child.Child, hang: str) -> None:
        """End a hung worker; SIGABRT first, so that faulthandler shows where it stands."""
        self._log.error("worker hangs, killed", pid=process.pid, reason=hang)
        await child.end(process, signal.SIGABRT, _ABORT_S)

    def _note_death(self, code: int, hang: str, watch: Watch) -> None:
        """Keep what ran when the worker died, for the next start to record (CONTRACT 4.9).

        A worker that ended by itself has nothing running. One that was killed because its drain took too
        long died of that, and not of what it ran.
        """
        if watch.ran:
            self._death = None  # it was recorded with the claim
        offsets = [offset for _, offset in self.page.runs if offset >= 0]
        if not offsets or (self._draining and code == -signal.SIGKILL):
            return
        self._death = {
            "id": f"{self._supervisor}/{self.partition}/{self._starts}",
            "offsets": offsets,
            "cause": hang or child.describe_exit(code),
        }

    def _not_started(self, error: CannotStart) -> int:
        """The pause before the next try, in ms."""
        pause_ms = max(self._policy.pause_ms(0), self._settings.restart_backoff_ms)
        self._log.error("worker not started", reason=str(error), pause_ms=pause_ms)
        self.page.enter("crashed", f"{error}; is tried again in {pause_ms} ms")
        return pause_ms

    def _after_death(self, code: int, hang: str, watch: Watch) -> int | None:
        """Judge a death: the pause before the next start in ms, None when there is to be none."""
        page = self.page
        if self._draining:
            return 0
        if code == Fenced.exit_code:
            self._log.warning("fenced: another owner has the partition, standing by")
            page.enter("crashed", "fenced: another owner has the partition")
            return self._settings.restart_backoff_ms
        if code in BOOT_FAILURES and not self._ever_ran:
            page.state = "stopped"
            message = page.last_error or f"worker of partition {self.partition} {child.describe_exit(code)}"
            self._fail(code, message)
            return None
        cause = hang or child.describe_exit(code)
        # one that ends by itself says why, and then that it is stopped: twice the same, perhaps
        wordless = page.state != "stopped" and page.last_error == self._error_at_start
        if hang or wordless:
            page.last_error = cause
        else:
            cause = f"{cause}: {page.last_error}"
        pause_ms = self._policy.pause_ms(watch.progress_ms())
        reason = f"{cause}; starts again in {pause_ms} ms"
        if self._policy.exhausted:
            reason = f"{cause}; {self._policy.in_a_row} deaths in a row, starts again every {pause_ms} ms"
            self._log.error(
                "restart budget used up",
                restart_budget=self._settings.restart_budget,
                restart_backoff_max_ms=self._settings.restart_backoff_max_ms,
                reason=cause,
            )
        self._log.error("worker died", reason=cause, pause_ms=pause_ms)
        page.enter("crashed", reason)
        page.set("pid", 0)
        return pause_ms

    async def _pause(self, pause_ms: int) -> None:
        self._wake.clear()
        if pause_ms and not self._stopping:
            try:
                async with asyncio.timeout(pause_ms / 1000):
                    await self._wake.wait()
            except TimeoutError:
                return
