"""Starts a supervisor with stand-in children as a real process, and looks at it from outside."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eventproc.settings import Settings
from eventproc.supervisor.control import ControlClient
from eventproc.supervisor.runtime import RuntimePaths

ROOT = Path(__file__).parents[2]


def wait_for(what: Callable[[], Any], timeout_s: float = 30, told: str = "") -> Any:
    """The first true answer of `what`; AssertionError after `timeout_s`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {told or what}")


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


class Supervised:
    """One supervisor process; everything it writes goes to `folder/log`."""

    def __init__(self, folder: Path, *arguments: str, **settings: Any) -> None:
        self.folder = folder
        self.plan = folder / "plan"
        self.plan.mkdir(exist_ok=True)
        settings.setdefault("monitor_port", 0)
        self.settings = Settings(runtime_dir=str(folder), **settings)
        self.paths = RuntimePaths.of(self.settings)
        self._arguments = [*arguments, f"runtime_dir={folder}"]
        self._arguments += [f"{name}={value}" for name, value in settings.items()]
        self._log = (folder / "log").open("ab")
        self.process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "tests.integration.fake_children", "supervisor", *self._arguments],
            cwd=ROOT,
            env={**os.environ, "EVENTPROC_TEST_PLAN": str(self.plan)},
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    def again(self) -> None:
        """Start a second one in place of the first, which has ended."""
        self.process = self._start()

    def tell(self, partition: int | str, command: str) -> None:
        """Command a child; "" lets a worker run idle."""
        path = self.plan / str(partition)
        part = path.with_name("new")
        part.write_text(command)
        part.replace(path)

    def log(self) -> str:
        return (self.folder / "log").read_text()

    def logged(self, text: str, timeout_s: float = 30) -> None:
        wait_for(lambda: text in self.log(), timeout_s, f"{text!r} in\n{self.log()}")

    def ready(self) -> Supervised:
        wait_for(lambda: " ready " in self.log() or self.process.poll() is not None, told="ready")
        assert self.process.poll() is None, self.log()
        return self

    def status(self) -> dict[str, Any]:
        with ControlClient(self.paths.socket) as client:
            found: dict[str, Any] = next(client.ask(5, command="status"))["status"]
        return found

    def worker(self, partition: int) -> dict[str, Any]:
        found: dict[str, Any] = self.status()["workers"][partition]
        return found

    def starts(self, partition: int) -> list[list[str]]:
        """[pid, start_count, takeover] of every start."""
        path = self.plan / f"starts-{partition}"
        return [line.split() for line in path.read_text().splitlines()] if path.exists() else []

    def deaths(self, partition: int) -> list[dict[str, Any] | None]:
        """What every start was told to record."""
        return [json.loads(line) for line in (self.plan / f"deaths-{partition}").read_text().splitlines()]

    def pids(self) -> list[int]:
        """Of all children."""
        found = self.status()
        return [worker["pid"] for worker in found["workers"]] + [found["supervisor"]["monitor"]["pid"]]

    def signal(self, sig: signal.Signals) -> None:
        self.process.send_signal(sig)

    def ends(self, timeout_s: float = 30) -> int:
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"runs on after {timeout_s} s\n{self.log()}") from None

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()
