"""The programs the demo starts: real child processes, none of which outlives it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from eventproc.clock import Clock
from eventproc.errors import EventprocError

_STOP_TIMEOUT_S = 20.0
_LOG_LINES = 10

# A signal in the terminal is for the demo, which ends its children in their order.
_ENTRY = """
import signal
from eventproc.spawn import die_with_parent
die_with_parent({parent}, signal.SIGTERM)
from eventproc.cli.{program} import main
main()
"""


class Interrupted(EventprocError):
    """A signal asked the demo to end; the exit code is that of a process it kills."""

    def __init__(self, number: int) -> None:
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.exit_code = 128 + number


class Signals:
    """Remembers the first INT, TERM or HUP, for `check` to raise where it does no harm."""

    def __init__(self) -> None:
        self._seen = 0

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle them inside, as before outside."""
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Raise Interrupted when a signal has come."""
        if self._seen:
            raise Interrupted(self._seen)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._seen = self._seen or number


class Child:
    """One of eventproc's own commands, running. `program` is its module in `eventproc.cli`."""

    def __init__(self, name: str, program: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self._output = folder / f"{name}.out"
        self._log = folder / f"{name}.log"
        code = _ENTRY.format(parent=os.getpid(), program=program)
        with self._output.open("wb") as output, self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-c", code, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=log,
                start_new_session=True,
            )

    def poll(self) -> int | None:
        """Exit code once it has ended, else None."""
        return self._process.poll()

    def output(self) -> str:
        """What it has printed."""
        return self._output.read_text(encoding="utf-8", errors="replace")

    def words(self) -> str:
        """The end of its error output."""
        lines = self._log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(f"{self.name}: {line.removeprefix('error: ')}" for line in lines[-_LOG_LINES:])

    def stop(self) -> int:
        """End it, by force if it takes too long; returns its exit code."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        return self._process.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()


class ChildFailed(EventprocError):
    """A child ended when it should not have, or with an error."""

    def __init__(self, child: Child, code: int) -> None:
        super().__init__(child.words() or f"{child.name} ended unexpectedly, exit code {code}")
        self.exit_code = code if 0 < code < 128 else 1


def pause(clock: Clock, signals: Signals, ms: int, needed: Child) -> None:
    """Wait a little; raises Interrupted on a signal, ChildFailed when `needed` has ended."""
    clock.sleep_ms(ms)
    signals.check()
    code = needed.poll()
    if code is not None:
        raise ChildFailed(needed, code)
