"""The runner of async handlers: in a thread of its own, whatever the handlers do."""

from __future__ import annotations

import asyncio
import select
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from eventproc import batch
from eventproc.async_runner import AsyncRunner
from eventproc.clock import SystemClock
from eventproc.effects import Ended, Entry
from eventproc.event import Event
from tests.integration.supervised import wait_for
from tests.unit.pipeline_driver import LogRecord

Make = Callable[..., AsyncRunner]


def entry(offset: int, **payload: Any) -> Entry:
    made = Entry(offset, LogRecord(offset, b""), f"e{offset}", f"u{offset}", 1, "t", {"payload": payload})
    made.lane = made.user
    return made


class Slots:
    """What the runner publishes."""

    def __init__(self) -> None:
        self.runs: dict[int, int] = {}
        self.most = 0
        self.fails = False

    def __call__(self, slot: int, since_ms: int, offset: int) -> None:
        if since_ms:
            assert slot not in self.runs
            self.runs[slot] = offset
            self.most = max(self.most, len(self.runs))
        else:
            if self.fails:
                raise MemoryError
            del self.runs[slot]


@pytest.fixture
def slots() -> Slots:
    return Slots()


@pytest.fixture
def runner(slots: Slots) -> Iterator[Make]:
    made: list[AsyncRunner] = []

    def make(handler: Callable[[Event], Any], concurrency: int = 384) -> AsyncRunner:
        made.append(AsyncRunner(handler, 3, SystemClock(), slots, concurrency))
        made[-1].start()
        return made[-1]

    yield make
    for it in made:
        it.close()


def collected(runner: AsyncRunner, n: int, timeout_s: float = 20) -> list[Ended]:
    """The next `n` ends; waits as the worker does."""
    ended: list[Ended] = []
    poller = select.poll()
    poller.register(runner, select.POLLIN)
    until = time.monotonic() + timeout_s
    while len(ended) < n:
        assert time.monotonic() < until, ended
        poller.poll(1000)
        ended += runner.collect()
    return ended


def test_as_many_run_at_a_time_as_may(runner: Make, slots: Slots) -> None:
    release = threading.Event()

    async def handler(event: Event) -> None:
        while not release.is_set():
            await asyncio.sleep(0.01)

    it = runner(handler)
    it.begin([entry(offset) for offset in range(384)])
    wait_for(lambda: slots.most == 384)
    assert set(slots.runs.values()) == set(range(384))
    assert it.under_way == 384
    release.set()
    assert len(collected(it, 384)) == 384
    assert (it.under_way, slots.runs) == (0, {})


def test_each_end_is_told_as_it_comes_and_wakes_who_waits(runner: Make) -> None:
    may_end = {offset: threading.Event() for offset in (1, 2, 3, 4)}

    async def handler(event: Event) -> None:
        while not may_end[event.offset].is_set():
            await asyncio.sleep(0.001)

    it = runner(handler)
    it.begin([entry(1), entry(2), entry(3)])
    ended = []
    for offset in (2, 4, 3, 1):
        if offset == 4:
            it.begin([entry(4)])
        time.sleep(0.1)
        may_end[offset].set()
        ended += collected(it, 1)
    assert [one.entry.offset for one in ended] == [2, 4, 3, 1]
    assert ended[-1].took_ms >= 390


def test_nothing_wakes_who_waits_for_nothing(runner: Make) -> None:
    async def handler(event: Event) -> None:
        pass

    it = runner(handler)
    for offset in range(200):
        it.begin([entry(offset)])
        collected(it, 1)
    poller = select.poll()
    poller.register(it, select.POLLIN)
    assert poller.poll(50) == []


@pytest.mark.parametrize(
    "error", [ValueError, asyncio.CancelledError, SystemExit, KeyboardInterrupt, GeneratorExit]
)
def test_whatever_a_handler_raises_is_its_own(runner: Make, error: type[BaseException]) -> None:
    async def handler(event: Event) -> None:
        if event.offset == 1:
            raise error
        await asyncio.sleep(0)

    it = runner(handler)
    it.begin([entry(1), entry(2)])
    by_offset = {one.entry.offset: one.error for one in collected(it, 2)}
    assert isinstance(by_offset[1], error)
    assert by_offset[2] is None


def test_a_task_of_the_handlers_own_cannot_end_the_loop(runner: Make) -> None:
    async def leave() -> None:
        raise SystemExit(1)

    async def handler(event: Event) -> None:
        if event.offset == 1:
            it.kept = asyncio.ensure_future(leave())  # type: ignore[attr-defined]

    it = runner(handler)
    it.begin([entry(1)])
    collected(it, 1)
    it.begin([entry(2)])
    [ended] = collected(it, 1)
    assert ended.error is None
    cast(Any, it).kept.exception()


def test_one_that_blocks_the_loop_holds_up_the_others_but_not_who_waits(runner: Make) -> None:
    release = threading.Event()
    released = []

    async def handler(event: Event) -> None:
        if event.offset == 1:
            released.append(release.wait(20))

    it = runner(handler)
    it.begin([entry(1), entry(2)])
    assert it.collect() == []
    release.set()
    assert len(collected(it, 2)) == 2
    assert released == [True]


def test_a_handler_is_given_the_event_of_its_attempt(runner: Make) -> None:
    seen: list[Event] = []

    async def handler(event: Event) -> None:
        seen.append(event)

    again = entry(5, n=1)
    again.attempts = 1
    it = runner(handler)
    it.begin([again])
    collected(it, 1)
    [event] = seen
    assert (event.id, event.partition, event.offset, event.attempt, event.payload) == (
        "e5",
        3,
        5,
        2,
        {"n": 1},
    )


def test_memory_that_runs_out_beside_the_handler_is_told(runner: Make, slots: Slots) -> None:
    """Not all that was begun would end; the worker has to."""

    async def handler(event: Event) -> None:
        slots.fails = True

    it = runner(handler)
    it.begin([entry(1)])
    with pytest.raises(MemoryError):
        collected(it, 1)
    slots.fails = False


def test_one_that_cancels_what_has_not_begun_is_told_too(runner: Make) -> None:
    async def handler(event: Event) -> None:
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    it = runner(handler)
    it.begin([entry(1), entry(2)])
    with pytest.raises(RuntimeError, match="has cancelled the run of another event"):
        collected(it, 2)


def test_what_runs_at_the_end_is_cancelled_and_may_clean_up(runner: Make) -> None:
    cleaned = threading.Event()

    async def handler(event: Event) -> None:
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            cleaned.set()

    it = runner(handler)
    it.begin([entry(1)])
    wait_for(lambda: it._tasks)
    it.close()
    assert cleaned.is_set()
    assert not it._thread.is_alive()


def test_one_that_will_not_be_cancelled_does_not_hold_up_the_end(runner: Make) -> None:
    entered = threading.Event()

    async def handler(event: Event) -> None:
        entered.set()
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                continue

    it = runner(handler)
    it.begin([entry(1)])
    assert entered.wait(10)
    begun = time.monotonic()
    it.close()
    assert time.monotonic() - begun < 5


def test_a_batch_is_one_call_and_all_of_it_runs_and_ends_at_once(runner: Make, slots: Slots) -> None:
    calls: list[list[int]] = []
    seen: list[dict[int, int]] = []

    @batch
    def handler(events: list[Event]) -> list[BaseException | None]:
        calls.append([event.offset for event in events])
        seen.append(dict(slots.runs))
        return [ValueError("no") if event.offset == 2 else None for event in events]

    it = runner(handler, 3)
    it.begin([entry(1), entry(2), entry(3)])
    ended = collected(it, 3)
    it.begin([entry(4)])
    ended += collected(it, 1)
    assert calls == [[1, 2, 3], [4]]
    assert [sorted(runs.values()) for runs in seen] == [[1, 2, 3], [4]]
    assert [type(one.error) for one in ended] == [type(None), ValueError, type(None), type(None)]
    assert (it.under_way, slots.runs) == (0, {})


def test_a_sync_batch_that_takes_long_does_not_hold_up_who_waits_or_the_end(runner: Make) -> None:
    release, entered = threading.Event(), threading.Event()

    @batch
    def handler(events: list[Event]) -> list[None]:
        entered.set()
        release.wait(60)
        return [None for _ in events]

    it = runner(handler)
    it.begin([entry(1), entry(2)])
    assert entered.wait(10)
    assert it.collect() == []
    assert it.under_way == 2
    begun = time.monotonic()
    it.close()
    assert time.monotonic() - begun < 10
    release.set()


def test_sync_handlers_run_in_threads_beside_each_other_and_end_in_any_order(
    runner: Make, slots: Slots
) -> None:
    together = threading.Barrier(3)
    release = threading.Event()

    def handler(event: Event) -> None:
        if event.offset == 4:
            raise SystemExit
        together.wait(20)  # only three at a time pass it
        if event.offset == 1:
            release.wait(20)

    it = runner(handler, 4)
    it.begin([entry(1), entry(2), entry(3), entry(4)])
    ended = collected(it, 3)
    assert sorted(one.entry.offset for one in ended) == [2, 3, 4]
    assert [type(one.error) for one in ended if one.entry.offset == 4] == [SystemExit]
    assert list(slots.runs.values()) == [1]  # the slow one holds up nobody
    release.set()
    assert [one.entry.offset for one in collected(it, 1)] == [1]


def test_a_thread_that_never_ends_does_not_hold_up_the_end(runner: Make) -> None:
    entered, release = threading.Event(), threading.Event()

    def handler(event: Event) -> None:
        entered.set()
        release.wait(60)

    it = runner(handler, 1)
    it.begin([entry(1)])
    assert entered.wait(10)
    it.close()
    assert not it._thread.is_alive()
    release.set()
