"""Child processes: started with a line on standard input, in a session of their own, ended in two steps."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Sequence


async def spawn(
    command: Sequence[str], pass_fds: Sequence[int] = (), capture: bool = False
) -> asyncio.subprocess.Process:
    """Start `command`; it waits for what `tell` tells it.

    A session of its own, so that Ctrl-C in a terminal reaches the supervisor alone. `capture`: its
    output comes through pipes, else standard error is shared. Must run in the main thread: children that
    die with their parent go by its thread.
    """
    return await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE if capture else asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE if capture else None,
        pass_fds=pass_fds,
        start_new_session=True,
    )


async def tell(process: asyncio.subprocess.Process, line: bytes) -> None:
    """Write `line` to its standard input and close it."""
    assert process.stdin is not None
    with contextlib.suppress(ConnectionError):  # it died before it had read; its exit code tells
        process.stdin.write(line)
        await process.stdin.drain()
    process.stdin.close()


def send(process: asyncio.subprocess.Process, sig: signal.Signals) -> None:
    """Send a signal, unless the process has ended."""
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(sig)


async def ended(process: asyncio.subprocess.Process, timeout_s: float) -> bool:
    """Wait for the end of a process; False when it takes longer."""
    try:
        async with asyncio.timeout(timeout_s):
            await process.wait()
    except TimeoutError:
        return False
    return True


async def end(process: asyncio.subprocess.Process, first: signal.Signals, timeout_s: float) -> bool:
    """End a process by `first`, and by KILL once `timeout_s` has passed; whether `first` was enough."""
    send(process, first)
    if await ended(process, timeout_s):
        return True
    send(process, signal.SIGKILL)
    await process.wait()
    return False


def describe_exit(code: int) -> str:
    """`exited with code 1`, `was killed by SIGSEGV`."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
