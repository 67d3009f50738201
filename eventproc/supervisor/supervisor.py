"""The supervisor's life: prepare, start the workers, keep them running, drain."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import signal
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from eventproc import __version__, logs
from eventproc.clock import Clock, SystemClock
from eventproc.errors import DependencyError, EventprocError, UsageError
from eventproc.forked import Module, Program
from eventproc.listening import listen
from eventproc.metrics import Board
from eventproc.settings import Settings
from eventproc.spawn import ApiSpec, MonitorSpec, ProcessIdentity
from eventproc.supervisor import preparation
from eventproc.supervisor.control import Answers, ControlServer
from eventproc.supervisor.preparation import Embed, Server, error_of
from eventproc.supervisor.redis_memory import FullTooSoon, told
from eventproc.supervisor.runtime import RuntimePaths, SupervisorLock
from eventproc.supervisor.serving_child import API, MONITOR, ServingChild
from eventproc.supervisor.worker_slot import WorkerSlot

WORKER = Module("eventproc.worker")
_TICK_S = 0.2
_RATE_TICKS = 5  # a sample of the rate each second
_END_SLACK_S = 5.0
_MONITOR_END_S = 5.0


@dataclass(frozen=True, slots=True)
class Programs:
    """What the children run; tests put others in. `imports` are done once, for all workers."""

    worker: Program = WORKER
    monitor: Program = MONITOR
    preflight: Program = preparation.PREFLIGHT
    embed: Embed = preparation.start_embedded
    api: Program = API
    imports: Sequence[str] = ("eventproc.worker", "eventproc.preflight")


class Supervisor:
    """Runs one deployment on this host; `run` returns when it has ended.

    The first TERM, INT or HUP drains, a second one kills.
    """

    def __init__(
        self,
        settings: Settings,
        embedded: bool = False,
        takeover: bool = False,
        programs: Programs | None = None,
        clock: Clock | None = None,
        random: Random | None = None,
        api: bool = False,
    ) -> None:
        self._given = settings
        self._settings = settings  # with the addresses of embedded servers
        self._embedded = embedded
        self._takeover = takeover
        self._with_api = api
        self._programs = programs or Programs()
        self._clock = clock or SystemClock()
        self._random = random or Random()
        self._identity = str(ProcessIdentity.own())
        self._log = logs.get()
        self._started_ms = self._clock.monotonic_ms()
        self._servers: dict[str, Server] = {}
        self._slots: list[WorkerSlot] = []
        self._monitor: ServingChild | None = None
        self._api: ServingChild | None = None
        self._board: Board | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self._ready = False
        self._stop = asyncio.Event()
        self._hurry = asyncio.Event()
        self._failure: EventprocError | None = None

    async def run(self) -> int:
        """Run until stopped: 0 after a drain, 1 when a second signal cut it short.

        Raises EventprocError when it cannot start, or cannot go on.
        """
        paths = RuntimePaths.of(self._given)
        lock = SupervisorLock(paths, self._given)
        control = ControlServer(paths.socket, self._answer)
        try:
            self._handle_signals()
            # better told now than once the workers run; the children listen for themselves
            listen(self._given.monitor_host, self._given.monitor_port, "monitor").close()
            if self._with_api:
                listen(self._given.api_host, self._given.api_port, "api").close()
            await control.start()
            await self._until_stopped(self._live())
            await self._until_hurried(self._shut_down())
        finally:
            await self._kill()
            await control.close()
            for server in self._servers.values():
                server.stop()
            if self._board is not None:
                self._board.close()
            lock.release()
        if self._failure is not None:
            raise self._failure
        if self._hurry.is_set():
            self._log.warning("stopped at once: locks and events in work were left to the next start")
            return 1
        self._log.info("stopped")
        return 0

    # --- start --------------------------------------------------------------------------------------

    async def _live(self) -> None:
        """Prepare, start everything, and keep watch."""
        self._log.info(
            "starting", version=__version__, topic=self._given.kafka_topic, group=self._given.kafka_group_id
        )
        if self._embedded:
            self._servers, self._settings = self._programs.embed(self._given)
            self._log.warning(
                "embedded broker and redis: for trying out, nothing outlives this process",
                kafka_bootstrap_servers=self._settings.kafka_bootstrap_servers,
                redis_url=self._settings.redis_url.get_secret_value(),
            )
            self._spawn(self._watch_servers())
        for name in self._programs.imports:
            importlib.import_module(name)
        count = await preparation.preflight(self._settings, self._identity, self._programs.preflight)
        partitions = self._settings.partition_list(count)
        self._start_children(partitions, count)
        await self._watch()

    def _start_children(self, partitions: list[int], count: int) -> None:
        settings, clock, random = self._settings, self._clock, self._random
        self._board = board = Board.create(len(partitions))
        self._slots = [
            WorkerSlot(
                partition,
                count,
                index,
                board,
                settings,
                self._programs.worker,
                self._identity,
                self._takeover,
                self._fail,
                clock,
                random,
            )
            for index, partition in enumerate(partitions)
        ]
        common = (settings, self._fail, clock, random)
        to_monitor = MonitorSpec(settings.revealed(), partitions, board.fd, self._identity).dump()
        self._monitor = ServingChild(
            "monitor", self._programs.monitor, to_monitor, (board.fd,), _MONITOR_END_S, *common
        )
        self._spawn(self._monitor.run())
        if self._with_api:
            to_api = ApiSpec(settings.revealed(), self._identity).dump()
            end_s = settings.shutdown_timeout_s + _END_SLACK_S
            self._api = ServingChild("api", self._programs.api, to_api, (), end_s, *common)
            self._spawn(self._api.run())
        for slot in self._slots:
            self._spawn(slot.run())

    async def _watch(self) -> None:
        assert self._board is not None
        full_too_soon = FullTooSoon(self._board.deployment, self._settings, self._log)
        standing_by: set[int] = set()
        tick = 0
        while True:
            if tick % _RATE_TICKS == 0:
                for slot in self._slots:
                    slot.sample()
                full_too_soon.look()
            tick += 1
            for slot in self._slots:
                if slot.page.state != "standby":
                    standing_by.discard(slot.partition)
                elif slot.partition not in standing_by:
                    standing_by.add(slot.partition)
                    self._log.warning("standing by", partition=slot.partition, reason=slot.page.state_reason)
            if not self._ready and all(slot.owned for slot in self._slots) and all(self._urls().values()):
                self._ready = True
                self._log.info("ready", partitions=len(self._slots), **self._urls())
            await asyncio.sleep(_TICK_S)

    def _urls(self) -> dict[str, str]:
        """Where the children that serve are; "" until they do."""
        children = {"monitor": self._monitor, "api": self._api}
        return {name: child.url for name, child in children.items() if child is not None}

    async def _watch_servers(self) -> None:
        while not self._stop.is_set():
            for name, server in self._servers.items():
                code = server.poll()
                if code is not None:
                    self._fail(
                        DependencyError.exit_code,
                        f"the embedded {name} has ended (exit code {code}), and what it held is lost:"
                        " start again, or use a real one",
                    )
                    self._hurry.set()  # there is nothing left to drain into
                    return
            await asyncio.sleep(_TICK_S)

    def _spawn(self, life: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(life)
        task.add_done_callback(self._life_ended)
        self._tasks.append(task)

    def _life_ended(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self._fail(EventprocError.exit_code, f"supervisor: {type(error).__name__}: {error}")

    def _fail(self, exit_code: int, message: str) -> None:
        """Stop everything, and end with that; the first reason stands."""
        if self._failure is None and not self._stop.is_set():
            self._failure = error_of(exit_code, message)
        self._stop.set()

    # --- stop ---------------------------------------------------------------------------------------

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for sig in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if sig is not signal.SIGHUP or signal.getsignal(sig) is not signal.SIG_IGN:  # not under nohup
                loop.add_signal_handler(sig, self._signalled, sig.name)

    def _signalled(self, name: str) -> None:
        if self._stop.is_set():
            self._hurry.set()
            return
        self._log.info("stopping", signal=name)
        self._stop.set()

    async def _until_stopped(self, life: Coroutine[Any, Any, None]) -> None:
        """Run `life` until it fails or a stop is asked for."""
        task = asyncio.ensure_future(life)
        asked = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait({task, asked}, return_when=asyncio.FIRST_COMPLETED)
        asked.cancel()
        task.cancel()
        try:
            await task
        except asyncio.CancelledError:
            pass
        except EventprocError as error:
            self._failure = self._failure or error
        self._stop.set()

    async def _until_hurried(self, life: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(life)
        hurried = asyncio.ensure_future(self._hurry.wait())
        await asyncio.wait({task, hurried}, return_when=asyncio.FIRST_COMPLETED)
        hurried.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _shut_down(self) -> None:
        """Let the API answer what it has, then drain the workers, all at once, then end the monitor."""
        timeout_s = self._settings.shutdown_timeout_s
        if self._api is not None:
            await self._api.stop()
        await asyncio.gather(*(slot.drain(timeout_s, for_good=True) for slot in self._slots))
        if self._monitor is not None:
            await self._monitor.stop()
        lives = [task for task in self._tasks if not task.done()]
        if lives:
            await asyncio.wait(lives, timeout=_END_SLACK_S)

    async def _kill(self) -> None:
        """No child outlives this."""
        for slot in self._slots:
            slot.kill()
        for child in (self._monitor, self._api):
            if child is not None:
                child.kill()
        if self._tasks:
            _, alive = await asyncio.wait(self._tasks, timeout=_END_SLACK_S)
            for task in alive:
                task.cancel()

    # --- control ------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What `status --json` prints."""
        settings = self._settings
        return {
            "supervisor": {
                "pid": os.getpid(),
                "state": self._state(),
                "uptime_s": round((self._clock.monotonic_ms() - self._started_ms) / 1000, 1),
                "version": __version__,
                "topic": settings.kafka_topic,
                "group": settings.kafka_group_id,
                "kafka_bootstrap_servers": settings.kafka_bootstrap_servers,
                "embedded": self._embedded,
                # of one's own server only: the address of another may hold a password
                "redis_url": settings.redis_url.get_secret_value() if self._embedded else None,
                "monitor": self._monitor.status() if self._monitor else None,
                "api": self._api.status() if self._api else None,
                "redis": told(self._board.deployment) if self._board else None,
            },
            "workers": [slot.status() for slot in self._slots],
        }

    def _state(self) -> str:
        if self._stop.is_set():
            return "stopping"
        if not self._ready:
            return "starting"
        return "running" if all(slot.owned for slot in self._slots) else "degraded"

    async def _answer(self, request: dict[str, Any]) -> Answers:
        match request.get("command"):
            case "status":
                yield {"ok": True, "status": self.status()}
            case "stop":
                if not self._stop.is_set():
                    self._log.info("stopping", signal="stop command")
                self._stop.set()
                yield {"ok": True, "pid": os.getpid()}
            case "restart":
                for slot in self._chosen(request.get("partition")):
                    await slot.restart()
                    yield {"partition": slot.partition, "pid": slot.pid, "state": slot.page.state}
                yield {"ok": True}
            case "resume":
                for slot in self._chosen(request.get("partition")):
                    yield {"partition": slot.partition, "resumed": await slot.resume()}
                yield {"ok": True}
            case other:
                raise UsageError(f"unknown command {other!r}: status, stop, restart, resume")

    def _chosen(self, partition: Any) -> list[WorkerSlot]:
        """The slots that are meant: all, or that of one partition."""
        if self._stop.is_set():
            raise EventprocError("the supervisor is stopping")
        if not self._slots:
            raise EventprocError("the supervisor is still starting, there are no workers yet")
        chosen = [slot for slot in self._slots if partition is None or slot.partition == partition]
        if not chosen:
            have = ", ".join(str(slot.partition) for slot in self._slots)
            raise UsageError(f"partition {partition!r} is not one of this supervisor's: {have}")
        return chosen
