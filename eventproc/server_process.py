"""A server that runs as a child of this process, and ends with it at the latest."""

from __future__ import annotations

import signal
import subprocess
from abc import ABC, abstractmethod
from typing import Self

_STOP_TIMEOUT_S = 5.0


class ServerProcess(ABC):
    """What the embedded servers share; `with` starts and stops one.

    Start it from a thread that lives as long as the server is to: Linux ends the child with that thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        return self._running().pid

    @abstractmethod
    def start(self) -> Self:
        """Start, and return when it answers; raises DependencyError when it does not come up."""

    def poll(self) -> int | None:
        """Exit code once the process has ended, else None."""
        return self._running().poll()

    def stop(self) -> None:
        """End the process; everything in it is gone."""
        process, self._process = self._process, None
        if process is None:
            return
        process.terminate()
        process.send_signal(signal.SIGCONT)
        try:
            process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is None:
            raise RuntimeError(f"the embedded {self._name} is not running: call start()")
        return self._process
