"""The handler: how it is loaded, how it is run, and the built-in one (CONTRACT section 5)."""

from __future__ import annotations

import importlib
import inspect
import os
import random
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Final

from eventproc._run import BatchRun
from eventproc.clock import Clock
from eventproc.effects import Entry
from eventproc.errors import HandlerLoadError, Reject
from eventproc.event import Event
from eventproc.marks import BATCH
from eventproc.settings import Settings

Handler = Callable[[Any], Any]  # of an Event or a list of them; one that is async returns a coroutine
BUILT_IN = "eventproc.handlers:simulate"


class NotRun:
    """The outcome of an entry that was left unrun: its lane's earlier one failed, or time was up."""


NOT_RUN: Final = NotRun()
#: A run gives the loop back after about that long: a drain, Redis and Kafka wait for it.
RUN_SLICE_MS: Final = 50
Outcome = BaseException | NotRun | None


class SimulatedFailure(Exception):
    """What the built-in handler raises for `payload.fail`."""


class simulate:
    """Stand in for business logic: fail when `payload.fail` is true, sleep up to `delay_ms`.

    With a folder for `runs` it appends every run to `<partition>.runs`, one line
    `<user>\\t<seq>\\t<id>\\t<attempt>\\t<ok|fail>` each, as `eventproc verify --runs` reads it.
    """

    def __init__(self, clock: Clock, delay_ms: int = 0, runs: str = "") -> None:
        self._clock = clock
        self._delay_ms = delay_ms
        self._runs = Path(runs) if runs else None
        self._files: dict[int, IO[bytes]] = {}
        self._random = random.Random()

    def __call__(self, event: Event) -> None:
        if self._delay_ms:
            self._clock.sleep_ms(self._random.random() * self._delay_ms)
        failing = bool(event.payload.get("fail"))
        if self._runs is not None:
            self._record(event, "fail" if failing else "ok")
        if failing:
            raise SimulatedFailure(f"payload.fail is true (attempt {event.attempt})")

    def _record(self, event: Event, outcome: str) -> None:
        file = self._files.get(event.partition)
        if file is None:
            assert self._runs is not None
            file = open(self._runs / f"{event.partition}.runs", "ab", buffering=0)  # noqa: SIM115
            self._files[event.partition] = file
        line = f"{event.user_id}\t{event.seq or 0}\t{event.id}\t{event.attempt}\t{outcome}\n"
        file.write(line.encode(errors="surrogatepass"))


def load_handler(settings: Settings, clock: Clock) -> Handler:
    """Import `settings.handler`; the current folder is importable. Raises HandlerLoadError."""
    path = settings.handler
    if path == BUILT_IN:
        return simulate(clock, settings.processing_delay_ms, settings.simulate_runs_dir).__call__
    module_name, colon, name = path.partition(":")
    if not (module_name and colon and name):
        raise HandlerLoadError(f"handler {path!r} must have the form package.module:callable")
    here = os.getcwd()
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        hint = f" (looked in {here} and the Python path)" if error.name == module_name.split(".")[0] else ""
        raise HandlerLoadError(f"handler {path!r}: no module named {error.name!r}{hint}") from error
    except BaseException as error:
        raise HandlerLoadError(f"handler {path!r}: importing {module_name} raised {_told(error)}") from error
    for part in name.split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise HandlerLoadError(f"handler {path!r}: {module_name} has no {name!r}") from None
    _check_signature(path, found)
    return found  # type: ignore[no-any-return]


def _check_signature(path: str, handler: Any) -> None:
    if not callable(handler):
        raise HandlerLoadError(f"handler {path!r} is {type(handler).__name__}, which cannot be called")
    if any(inspect.isgeneratorfunction(form) or inspect.isasyncgenfunction(form) for form in _forms(handler)):
        raise HandlerLoadError(f"handler {path!r} is a generator function: it would never run")
    try:
        signature = inspect.signature(handler)
    except (TypeError, ValueError):
        return  # a C function does not tell; calling it will
    try:
        signature.bind(None)
    except TypeError:
        raise HandlerLoadError(
            f"handler {path!r} has the signature {name_of(handler)}{signature}; it must take one argument, "
            f"the {'list of events' if is_batch(handler) else 'event'}"
        ) from None


def is_async(handler: Handler) -> bool:
    """Whether it is to be awaited."""
    return any(inspect.iscoroutinefunction(form) for form in _forms(handler))


def is_batch(handler: Handler) -> bool:
    """Whether it takes a list of events: its author has marked it (`eventproc.batch`)."""
    return any(getattr(form, BATCH, False) is True for form in _forms(handler))


def concurrency_of(handler: Handler, settings: Settings) -> int:
    """How many events it runs on at a time, one of each user; 0: on one, in the worker's own loop."""
    if is_batch(handler):
        return settings.handler_batch_max
    return settings.concurrency if is_async(handler) else settings.handler_threads


def _forms(handler: Any) -> tuple[Any, ...]:
    call = handler if inspect.isroutine(handler) else type(handler).__call__
    return (handler, call, getattr(handler, "func", None))  # func: of a partial


def name_of(handler: object) -> str:
    """A callable's name, for messages."""
    return str(getattr(handler, "__name__", type(handler).__name__))


class Runner:
    """Runs a sync handler on entries, one after the other, and tells what came of each."""

    def __init__(
        self, handler: Handler, partition: int, clock: Clock, mark: Callable[[int, int], None]
    ) -> None:
        """`mark(since_ms, offset)` publishes what is running; it is called before each run."""
        self._handler = handler
        self._partition = partition
        self._clock = clock
        self._mark = mark

    def run(self, entries: list[Entry]) -> list[Outcome]:
        """Outcome of each entry: None, what the handler raised, or NOT_RUN (CONTRACT 4.1, 4.6).

        No entry is begun once RUN_SLICE_MS have passed, but the first is.
        """
        run = BatchRun(
            self._handler,
            entries,
            self._partition,
            self._clock,
            self._mark,
            RUN_SLICE_MS,
            NOT_RUN,
            _refuse_awaitable,
        )
        while len(run.outcomes) < len(entries):
            try:
                run.go_on()
            except BaseException as error:  # SystemExit too: the handler's end is not the worker's
                if isinstance(error, MemoryError):
                    traceback.clear_frames(error.__traceback__)  # they hold what has filled the memory
                run.failed(error)
        self._mark(0, -1)
        return run.outcomes


def _refuse_awaitable(returned: object) -> None:
    if inspect.isawaitable(returned):
        raise never_awaited(returned)


def never_awaited(returned: object) -> TypeError:
    """What a plain function that returns a coroutine comes to: nothing of it has run."""
    if inspect.iscoroutine(returned):
        returned.close()
    return TypeError("the handler returned an awaitable although it is no async function: nothing awaits it")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"


def describe_failure(error: BaseException) -> str:
    """What stands in `error` of a failed event: the reason of a Reject, else type, message and place.

    Always text that UTF-8 can carry, of at most 2000 characters.
    """
    if isinstance(error, Reject):
        return _plain(getattr(error, "reason", ""), "rejected")
    where = ""
    trace = error.__traceback__
    if trace is not None:
        while trace.tb_next is not None:
            trace = trace.tb_next
        where = f" ({os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno})"
    name = type(error).__name__
    return _plain(error, "no message", f"{name}: ", where)


def _plain(told: object, fallback: str, before: str = "", after: str = "") -> str:
    try:
        text = str(told)
    except Exception:  # what tells of the trouble may be broken itself
        text = fallback
    return (before + text + after)[:2000].encode(errors="replace").decode()
