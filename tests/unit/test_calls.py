"""CONTRACT section 5: what a batch handler answers, and what each event of the batch comes to by that."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import pytest

from eventproc import Event, batch
from eventproc.calls import call_of
from eventproc.handlers import describe_failure


def given(n: int) -> list[Event]:
    return [Event(f"e{at}", f"u{at}", "t", {}, 1, 0, 1, 0, at, {}) for at in range(n)]


def come_of(handler: Callable[..., Any], n: int = 3) -> list[BaseException | None]:
    async def call() -> list[BaseException | None]:
        return list(await call_of(handler, 1)(given(n)))

    return asyncio.run(call())


def answering(answer: Any) -> Callable[..., Any]:
    @batch
    def shop(events: list[Event]) -> Any:
        return answer

    return shop


def answering_later(answer: Any) -> Callable[..., Any]:
    @batch
    async def shop(events: list[Event]) -> Any:
        await asyncio.sleep(0)
        return answer

    return shop


BOTH = pytest.mark.parametrize("make", [answering, answering_later], ids=["sync", "async"])


@BOTH
def test_each_event_comes_to_what_stands_in_its_place(make: Callable[..., Any]) -> None:
    error = ValueError("no")
    assert come_of(make([None, error, None])) == [None, error, None]
    # message text as of a single handler's, but no place: nothing was raised
    assert describe_failure(error) == "ValueError: no"


@BOTH
@pytest.mark.parametrize(
    ("answer", "kind", "told"),
    [
        (None, TypeError, r"batch handler shop returned NoneType None: return a list, None or an exception"),
        ((None,) * 3, TypeError, r"returned tuple \(None, None, None\): return a list"),
        ([None] * 2, ValueError, r"batch handler shop returned 2 outcomes for 3 events, list \[None, None\]"),
        ([None] * 4, ValueError, r"returned 4 outcomes for 3 events.*None or an exception for each event"),
        ([], ValueError, r"returned 0 outcomes for 3 events"),
        ([None, "late", None], TypeError, r"shop returned str 'late' as outcome 1 of 3: return None or an"),
        ([None, ValueError, None], TypeError, r"returned type <class 'ValueError'> as outcome 1 of 3"),
        ([True, True, True], TypeError, r"returned bool True as outcome 0 of 3"),
    ],
)
def test_a_wrong_answer_fails_every_event_and_says_what_to_do(
    make: Callable[..., Any], answer: Any, kind: type[Exception], told: str
) -> None:
    failures = come_of(make(answer))
    assert len(failures) == 3
    assert {type(failure) for failure in failures} == {kind}
    assert all(re.search(told, str(failure)) for failure in failures), failures[0]


def test_a_long_or_broken_answer_is_told_all_the_same() -> None:
    class Broken:
        def __repr__(self) -> str:
            raise RuntimeError

    [long, *_] = come_of(answering("x" * 10_000))
    assert len(str(long)) < 400
    [broken, *_] = come_of(answering(Broken()))
    assert "returned Broken ?" in str(broken)


@pytest.mark.parametrize(
    "error", [ValueError, asyncio.CancelledError, SystemExit, KeyboardInterrupt, StopIteration, MemoryError]
)
def test_what_a_batch_handler_raises_is_the_failure_of_every_event(error: type[BaseException]) -> None:
    @batch
    def handler(events: list[Event]) -> list[Exception | None]:
        raise error

    failures = come_of(handler)
    assert len(failures) == 3
    assert all(isinstance(failure, error) for failure in failures)


def test_the_place_of_what_is_raised_is_told() -> None:
    @batch
    def handler(events: list[Event]) -> list[Exception | None]:
        raise ValueError("no")

    [failure, *_] = come_of(handler)
    assert failure is not None
    assert describe_failure(failure).startswith("ValueError: no (test_calls.py:")


def test_a_sync_handler_that_returns_a_coroutine_has_not_run() -> None:
    @batch
    def handler(events: list[Event]) -> Any:
        async def never() -> list[None]:
            return [None] * 3

        return never()

    failures = come_of(handler)
    assert [type(failure) for failure in failures] == [TypeError] * 3
    assert "nothing awaits it" in str(failures[0])


def test_what_the_handler_does_to_its_list_changes_nothing() -> None:
    @batch
    def handler(events: list[Event]) -> list[Exception | None]:
        outcomes: list[Exception | None] = [None for _ in events]
        events.clear()
        return outcomes

    assert come_of(handler) == [None] * 3


@pytest.mark.parametrize("error", [ValueError, asyncio.CancelledError, SystemExit, StopIteration])
def test_what_a_handler_in_a_thread_raises_is_its_failure_and_the_thread_goes_on(
    error: type[BaseException],
) -> None:
    def handler(event: Event) -> None:
        if event.offset == 0:
            raise error

    async def call() -> list[BaseException | None]:
        runs = call_of(handler, 1)
        return [(await runs([event]))[0] for event in given(2)]

    failed, well = asyncio.run(call())
    assert type(failed) is error
    assert describe_failure(failed).endswith(")")  # its place
    assert well is None
