"""A child that serves HTTP, kept running: the monitor, the ingest API."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from collections.abc import Callable, Collection
from random import Random
from typing import Any

from eventproc import logs
from eventproc.clock import Clock
from eventproc.errors import CannotStart, ConfigError
from eventproc.forked import Module, Program
from eventproc.settings import Settings
from eventproc.supervisor import child
from eventproc.supervisor.backoff import RestartPolicy

MONITOR = Module("eventproc.monitor.__main__")
API = Module("eventproc.ingest.__main__")


class ServingChild:
    """Starts the child, and again whenever it ends; a port that is taken at the start is fatal.

    `name` is monitor or api, as in its settings `<name>_host` and `<name>_port`. The child gets `order` on
    standard input and `fds`, and announces its port as one JSON line on standard output.
    """

    def __init__(
        self,
        name: str,
        program: Program,
        order: bytes,
        fds: Collection[int],
        end_timeout_s: float,
        settings: Settings,
        fail: Callable[[int, str], None],
        clock: Clock,
        random: Random,
    ) -> None:
        self.restarts = 0
        self.port: int | None = None
        self._name = name
        self._program = program
        self._order = order
        self._fds = fds
        self._end_timeout_s = end_timeout_s
        self._host: str = getattr(settings, f"{name}_host")
        self._fail = fail
        self._clock = clock
        self._retry_ms = settings.restart_backoff_ms
        self._policy = RestartPolicy(
            settings.restart_backoff_ms, settings.restart_backoff_max_ms, settings.restart_budget, random
        )
        self._log = logs.get()
        self._process: child.Child | None = None
        self._stopping = False
        self._wake = asyncio.Event()

    @property
    def url(self) -> str:
        """Where it listens; "" until it does."""
        host = self._host
        return f"http://{f'[{host}]' if ':' in host else host}:{self.port}" if self.port else ""

    def status(self) -> dict[str, Any]:
        """The child in `status --json`."""
        pid = self._process.pid if self._process else None
        return {"pid": pid, "url": self.url or None, "restarts": self.restarts}

    async def run(self) -> None:
        """Keep it running until `stop`."""
        while not self._stopping:
            try:
                code, served_ms, words = await self._live()
            except CannotStart as error:
                pause_ms = max(self._policy.pause_ms(0), self._retry_ms)
                self._log.error(f"{self._name} not started", reason=str(error), pause_ms=pause_ms)
            else:
                if self._stopping:
                    return
                if self.port is None and code == ConfigError.exit_code:
                    self._fail(code, words or f"{self._name} {child.describe_exit(code)}")
                    return
                pause_ms = self._policy.pause_ms(served_ms)
                reason = child.describe_exit(code)
                self._log.error(f"{self._name} died", reason=reason, pause_ms=pause_ms, last_error=words)
            self.restarts += 1
            try:
                async with asyncio.timeout(pause_ms / 1000):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def stop(self) -> None:
        """End it."""
        self._stopping = True
        self._wake.set()
        if self._process is not None:
            await child.end(self._process, signal.SIGTERM, self._end_timeout_s)

    def kill(self) -> None:
        """End it now."""
        self._stopping = True
        self._wake.set()
        if self._process is not None:
            child.send(self._process, signal.SIGKILL)

    async def _live(self) -> tuple[int, int, str]:
        """One life: exit code, how long it served in ms, its last words."""
        process = await child.spawn(self._program, self._order, self._name, self._fds, capture=True)
        self._process = process
        if self._stopping:
            child.send(process, signal.SIGTERM)
        assert process.stdout is not None
        assert process.stderr is not None
        words = asyncio.ensure_future(self._relay(process.stderr))
        try:
            since_ms = None
            line = await process.stdout.readline()
            if line:
                self.port = json.loads(line)["port"]
                since_ms = self._clock.monotonic_ms()
            await process.stdout.read()
            code = await process.wait()
            served_ms = 0 if since_ms is None else self._clock.monotonic_ms() - since_ms
            return code, served_ms, await words
        finally:
            words.cancel()
            self._process = None

    async def _relay(self, stream: asyncio.StreamReader) -> str:
        """Pass the child's error output on; returns its last line."""
        last = ""
        while line := await stream.readline():
            text = line.decode(errors="replace").rstrip()
            if text:
                last = text.removeprefix(f"{self._name}: ")
                if self.port is not None:  # before that, they are the reason of a failed start
                    print(text, file=sys.stderr, flush=True)
        return last
