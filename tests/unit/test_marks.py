"""The mark that makes a handler one of batches, and by which of its forms it is known."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

import eventproc
from eventproc import Event, batch
from eventproc.handlers import concurrency_of, is_async, is_batch
from eventproc.settings import Settings


@batch
def plain(events: list[Event]) -> list[Exception | None]:
    return [None for _ in events]


@batch
async def coming(events: list[Event]) -> list[Exception | None]:
    return [None for _ in events]


class Service:
    @batch
    def __call__(self, events: list[Event]) -> list[Exception | None]:
        return [None for _ in events]

    @batch
    def method(self, events: list[Event]) -> list[Exception | None]:
        return [None for _ in events]

    @staticmethod
    @batch
    def static(events: list[Event]) -> list[Exception | None]:
        return [None for _ in events]


@functools.wraps(plain)
def wrapped(events: list[Event]) -> Any:
    return plain(events)


def unmarked(events: list[Event]) -> list[Exception | None]:
    return [None for _ in events]


@pytest.mark.parametrize(
    "handler",
    [plain, coming, Service(), Service().method, Service.static, wrapped, functools.partial(plain)],
    ids=["plain", "async", "object", "method", "static", "wrapped", "partial"],
)
def test_a_marked_handler_is_known_by_any_of_its_forms(handler: Callable[..., Any]) -> None:
    assert is_batch(handler)
    assert is_async(handler) is (handler is coming)


def test_an_annotation_is_no_mark() -> None:
    assert not is_batch(unmarked)
    assert batch is eventproc.batch


@pytest.mark.parametrize("kind", [staticmethod, classmethod])
def test_a_mark_that_would_be_lost_is_refused(kind: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="put @batch below"):
        batch(kind(unmarked))


async def one(event: Event) -> None: ...


@pytest.mark.parametrize(
    ("handler", "expected"), [(plain, 7), (coming, 7), (one, 9), (lambda event: None, 0)]
)
def test_on_how_many_events_a_handler_runs_at_a_time(handler: Callable[..., Any], expected: int) -> None:
    settings = Settings(redis_url="redis://none", handler_batch_max=7, concurrency=9)  # type: ignore[arg-type]
    assert concurrency_of(handler, settings) == expected
    threads = settings.model_copy(update={"handler_threads": 5})
    assert concurrency_of(handler, threads) == (expected or 5)
