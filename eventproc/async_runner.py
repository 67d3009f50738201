"""Runs a handler on many entries at a time, in a thread with an event loop of its own.

The worker's loop stays what it is: it hands entries over and collects what has ended. So a handler that
blocks its event loop holds up the other handlers, and neither locks nor gap timers nor the heartbeat.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence

from eventproc import logs
from eventproc._entry import event_of
from eventproc.calls import call_of
from eventproc.clock import Clock
from eventproc.effects import Ended, Entry
from eventproc.handlers import Handler, is_batch

#: What is cancelled at the end may take that long to clean up.
_CANCEL_S = 1.0


class AsyncRunner:
    """`begin` and `collect` are called by one thread; at most `concurrency` entries are to be under way.
    A handler of batches is given what one `begin` brings, all at once.

    `mark(slot, since_ms, offset)` publishes what each slot runs; it is called before and after each run.
    """

    def __init__(
        self,
        handler: Handler,
        partition: int,
        clock: Clock,
        mark: Callable[[int, int, int], None],
        concurrency: int,
    ) -> None:
        self._call = call_of(handler, concurrency)
        self._batches = is_batch(handler)
        self._partition = partition
        self._clock = clock
        self._mark = mark
        self._slots = list(range(concurrency))
        self._under_way = 0
        self._ended: deque[Ended] = deque()
        self._broken: BaseException | None = None
        self._told = False  # a byte waits in the pipe
        self._reader, self._writer = os.pipe()
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._closing = False
        self._thread = threading.Thread(target=self._serve, name="handlers", daemon=True)

    @property
    def under_way(self) -> int:
        """How many were begun and not collected."""
        return self._under_way

    def fileno(self) -> int:
        """Readable once something has ended since the last `collect`."""
        return self._reader

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def begin(self, entries: list[Entry]) -> None:
        """Run the handler on these, too."""
        self._under_way += len(entries)
        self._loop.call_soon_threadsafe(self._begin, entries)

    def collect(self) -> list[Ended]:
        """What has ended since the last time, in the order in which it has.

        Raises what went wrong beside the handlers, such as MemoryError: not all that was begun will end.
        """
        if self._broken is not None:
            raise self._broken
        if self._told:
            os.read(self._reader, 4096)
            self._told = False  # before looking: what ends from now on tells anew
        ended = [self._ended.popleft() for _ in range(len(self._ended))]
        self._under_way -= len(ended)
        return ended

    def close(self) -> None:
        """Cancel what runs still, and end the thread; one that cannot be cancelled is left to itself."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop)
            self._thread.join(2 * _CANCEL_S)
        if not self._thread.is_alive() and not self._loop.is_closed():
            self._loop.close()
            os.close(self._reader)
            os.close(self._writer)

    # --- in the thread ------------------------------------------------------------------------------------

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        while not self._closing:
            try:
                self._loop.run_forever()
            except BaseException as error:  # a task of the handler's own has raised SystemExit
                logs.get().error("task_ended_the_loop", error=repr(error), remedy="none: the loop goes on")

    def _begin(self, entries: list[Entry]) -> None:
        try:
            for together in [entries] if self._batches else [[entry] for entry in entries]:
                task = self._loop.create_task(self._run(together))
                self._tasks.add(task)
                task.add_done_callback(self._done)
        except BaseException as error:
            self._break(error)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if self._closing:
            return
        if task.cancelled():
            self._break(RuntimeError("a handler has cancelled the run of another event before it began"))
        elif error := task.exception():
            self._break(error)

    def _break(self, error: BaseException) -> None:
        self._broken = error
        self._tell()

    async def _run(self, entries: list[Entry]) -> None:
        """One call of the handler."""
        slots = [self._slots.pop() for _ in entries]
        begun_ms = self._clock.monotonic_ms()
        for slot, entry in zip(slots, entries, strict=True):
            self._mark(slot, begun_ms, entry.offset)
        failures: Sequence[BaseException | None]
        try:
            failures = await self._call([event_of(entry, self._partition) for entry in entries])
        except MemoryError as error:  # the handler was not reached, or what it returned was not
            failures = [error] * len(entries)
        if self._closing:
            return
        for slot in slots:
            self._mark(slot, 0, -1)
        self._slots += slots
        took_ms = self._clock.monotonic_ms() - begun_ms
        self._ended += [
            Ended(entry, failure, took_ms) for entry, failure in zip(entries, failures, strict=True)
        ]
        self._tell()

    def _tell(self) -> None:
        if not self._told:
            os.write(self._writer, b"\0")
            self._told = True  # once it can be read

    def _stop(self) -> None:
        self._closing = True
        for task in self._tasks:
            task.cancel()
        self._stop_when_idle(self._clock.monotonic_ms() + int(_CANCEL_S * 1000))

    def _stop_when_idle(self, until_ms: int) -> None:
        if self._tasks and self._clock.monotonic_ms() < until_ms:
            self._loop.call_later(0.01, self._stop_when_idle, until_ms)
        else:
            self._loop.stop()
