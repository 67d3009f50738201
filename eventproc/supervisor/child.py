"""Child processes: started with an order on standard input, in a session of their own, ended in two steps."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Collection

from eventproc.errors import CannotStart
from eventproc.forked import Program, fork
from eventproc.spawn import nameless_file

_POLL_S = 0.02


class Child:
    """A process that `spawn` has started; `stdout` and `stderr` are there when its output is captured."""

    def __init__(
        self,
        pid: int,
        stdout: asyncio.StreamReader | None = None,
        stderr: asyncio.StreamReader | None = None,
    ) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self.stdout = stdout
        self.stderr = stderr
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        if hasattr(os, "pidfd_open"):
            pidfd = os.pidfd_open(pid)
            self._loop.add_reader(pidfd, self._reap, pidfd)
        else:
            self._poll()

    async def wait(self) -> int:
        """Its exit code, once it has ended; negative: the signal that killed it."""
        await self._ended.wait()
        assert self.returncode is not None
        return self.returncode

    def _reap(self, pidfd: int) -> None:
        self._loop.remove_reader(pidfd)
        os.close(pidfd)
        self._note(os.waitpid(self.pid, 0)[1])

    def _poll(self) -> None:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        if pid:
            self._note(status)
        else:
            self._loop.call_later(_POLL_S, self._poll)

    def _note(self, status: int) -> None:
        self.returncode = os.waitstatus_to_exitcode(status)
        self._ended.set()


async def spawn(
    program: Program, order: bytes, title: str, keep: Collection[int] = (), capture: bool = False
) -> Child:
    """Run `program` in a child, with `order` on its standard input and the descriptors in `keep`.

    `capture`: its output comes through pipes, else standard error is shared. Must run in the main thread:
    children that die with their parent go by its thread. Raises CannotStart.
    """
    try:
        return await _spawn(program, order, title, keep, capture)
    except OSError as error:
        raise CannotStart(f"{title} cannot be started: {error.strerror or error}") from error


async def _spawn(program: Program, order: bytes, title: str, keep: Collection[int], capture: bool) -> Child:
    with contextlib.ExitStack() as stack:
        stdin = stack.enter_context(open(nameless_file("eventproc-order"), "wb", buffering=0))
        stdin.write(order)
        stdin.seek(0)
        readers, outputs = [], [stack.enter_context(open(os.devnull, "wb")).fileno(), sys.stderr.fileno()]
        if capture:
            for at in range(2):
                reader, write = await _pipe()
                readers.append(reader)
                outputs[at] = stack.enter_context(open(write, "wb")).fileno()
        # nothing is awaited from here on: who is cancelled would leave a process that nobody knows
        return Child(fork(program, title, [stdin.fileno(), *outputs], keep), *readers)


async def _pipe() -> tuple[asyncio.StreamReader, int]:
    """Its read end as a stream, and its write end."""
    read, write = os.pipe()
    reader = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(read, "rb", buffering=0)
    )
    return reader, write


def send(child: Child, sig: signal.Signals) -> None:
    """Send a signal, unless the process has ended."""
    if child.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(child.pid, sig)


async def ended(child: Child, timeout_s: float) -> bool:
    """Wait for the end of a process; False when it takes longer."""
    try:
        async with asyncio.timeout(timeout_s):
            await child.wait()
    except TimeoutError:
        return False
    return True


async def end(child: Child, first: signal.Signals, timeout_s: float) -> bool:
    """End a process by `first`, and by KILL once `timeout_s` has passed; whether `first` was enough."""
    send(child, first)
    if await ended(child, timeout_s):
        return True
    send(child, signal.SIGKILL)
    await child.wait()
    return False


def describe_exit(code: int) -> str:
    """`exited with code 1`, `was killed by SIGSEGV`."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
