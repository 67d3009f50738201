"""A worker process in reserve: its imports are done, so that a partition need not wait for them.

They take most of the time between a worker's death and the first record of the next one.
"""

from __future__ import annotations

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import Sequence

from eventproc.supervisor import child

#: Until the next one is started, after one was taken: whoever took it has the processor to itself.
_AFTER_TAKING_S = 1.0
#: And at first, or after one that has ended by itself.
_AFTER_START_S = 5.0


class SpareWorker:
    """Starts workers; the spare one, if there is one, is told what to do instead of a new one.

    `command` starts a worker that waits for its spec on standard input; it inherits `board_fd`.
    """

    def __init__(self, command: Sequence[str], board_fd: int) -> None:
        self._command = command
        self._board_fd = board_fd
        self._process: Process | None = None
        self._taken = asyncio.Event()
        self._stopped = asyncio.Event()

    async def start(self, spec: bytes) -> Process:
        """A worker that does what the line says."""
        process, self._process = self._process, None
        self._taken.set()
        if process is None or process.returncode is not None:
            process = await self._spawn()
        await child.tell(process, spec)
        return process

    async def keep(self) -> None:
        """Have one ready, from a while after now until `stop`."""
        pause_s = _AFTER_START_S
        while not await self._stopped_within(pause_s):
            self._taken.clear()
            if self._process is None:  # it may be there still: another worker was needed while it was started
                self._process = await self._spawn()
                if self._stopped.is_set():
                    self.stop()
            await self._gone(self._process)
            pause_s = _AFTER_TAKING_S if self._taken.is_set() else _AFTER_START_S

    def stop(self) -> None:
        """End the one in reserve, and keep none any more."""
        self._stopped.set()
        if self._process is not None:
            child.send(self._process, signal.SIGKILL)

    async def _gone(self, process: Process) -> None:
        """Return once a worker was needed, or this process has ended by itself."""
        ended, taken = asyncio.ensure_future(process.wait()), asyncio.ensure_future(self._taken.wait())
        await asyncio.wait((ended, taken), return_when=asyncio.FIRST_COMPLETED)
        if ended.done() and self._process is process:
            self._process = None
        ended.cancel()
        taken.cancel()

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return False
        return True

    async def _spawn(self) -> Process:
        return await child.spawn(self._command, pass_fds=(self._board_fd,))
