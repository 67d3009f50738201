"""How a handler that runs beside the worker's loop is called: on one event, in a thread, or on a batch."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from queue import SimpleQueue
from typing import Any

from eventproc.event import Event
from eventproc.handlers import Handler, is_async, is_batch, name_of, never_awaited

Failure = BaseException | None
#: Runs a handler on these and tells what came of each; what the handler raises is its outcome.
Call = Callable[[list[Event]], Awaitable[Sequence[Failure]]]

#: So much of a value stands in a message.
_SHOWN_CHARS = 200


def call_of(handler: Handler, threads: int) -> Call:
    """The way in which this handler is called. Only one of batches is ever given more than one event.

    A sync one of one event runs in that many threads.
    """
    if is_batch(handler):
        return _OnBatch(handler)
    return _OnOne(handler) if is_async(handler) else _InThreads(handler, threads)


def cleared(error: BaseException) -> BaseException:
    """The error, without what has filled the memory: the frames hold it."""
    if isinstance(error, MemoryError):
        traceback.clear_frames(error.__traceback__)
    return error


class _OnOne:
    """An async handler of one event."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, events: list[Event]) -> Sequence[Failure]:
        try:
            await self._handler(events[0])
        except BaseException as error:  # SystemExit and CancelledError too: they are the handler's
            return (cleared(error),)
        return (None,)


class _InThreads:
    """A sync handler of one event, in threads that end with the process.

    They are daemons, as those of a ThreadPoolExecutor are not: one that never ends must not hold up the exit.
    """

    def __init__(self, handler: Handler, threads: int) -> None:
        self._handler = handler
        self._given: SimpleQueue[tuple[Event, asyncio.Future[Failure]]] = SimpleQueue()
        for n in range(threads):
            threading.Thread(target=self._serve, name=f"handler {n}", daemon=True).start()

    async def __call__(self, events: list[Event]) -> Sequence[Failure]:
        ended: asyncio.Future[Failure] = asyncio.get_running_loop().create_future()
        self._given.put((events[0], ended))
        return (await ended,)

    def _serve(self) -> None:
        while True:
            event, ended = self._given.get()
            failure = self._outcome(event)
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                ended.get_loop().call_soon_threadsafe(_tell, ended, failure)

    def _outcome(self, event: Event) -> Failure:
        try:
            returned = self._handler(event)
            if returned is not None and inspect.isawaitable(returned):
                raise never_awaited(returned)
        except BaseException as error:  # SystemExit too: the handler's end is not the thread's
            return cleared(error)
        return None


def _tell(ended: asyncio.Future[Failure], failure: Failure) -> None:
    if not ended.done():  # cancelled at the end
        ended.set_result(failure)


class _OnBatch:
    """A handler of batches. A sync one holds up nothing here: one batch of a partition runs at a time."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._async = is_async(handler)

    async def __call__(self, events: list[Event]) -> Sequence[Failure]:
        n = len(events)  # the list is the handler's by then
        try:
            returned = self._handler(events)
            if self._async:
                returned = await returned
            elif inspect.isawaitable(returned):
                raise never_awaited(returned)
        except BaseException as error:
            return [cleared(error)] * n
        return self._outcomes(returned, n)

    def _outcomes(self, returned: Any, n: int) -> Sequence[Failure]:
        """What it says of each event; a wrong answer says nothing good of any (CONTRACT section 5)."""
        error: Exception
        if not isinstance(returned, list):
            error = TypeError(f"{self._told()} returned {_shown(returned)}: return a list, {_EACH}")
        elif len(returned) != n:
            error = ValueError(
                f"{self._told()} returned {len(returned)} outcomes for {n} events,"
                f" {_shown(returned)}: return {_EACH}"
            )
        else:
            for at, outcome in enumerate(returned):
                if outcome is not None and not isinstance(outcome, BaseException):
                    error = TypeError(
                        f"{self._told()} returned {_shown(outcome)} as outcome {at} of {n}: return {_EACH}"
                    )
                    break
            else:
                return returned
        return [error] * n

    def _told(self) -> str:
        return f"batch handler {name_of(self._handler)}"


_EACH = "None or an exception for each event, in the same order"


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except Exception:  # it is the handler's, and may be broken
        text = "?"
    return f"{type(value).__name__} {text[:_SHOWN_CHARS]}"
