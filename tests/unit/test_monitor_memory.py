"""How the monitor computes bytes per event."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from eventproc.errors import Transient
from eventproc.metrics import Board
from eventproc.monitor.memory import MemoryWatch
from eventproc.store.memory import Memory


class FakeProbe:
    """Answers with `used` bytes; -1: does not answer."""

    def __init__(self) -> None:
        self.used = 0
        self.closed = False

    async def read(self) -> Memory:
        if self.used < 0:
            raise Transient("Redis does not answer: gone")
        return Memory(self.used, 5000)

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(2)
    yield board
    board.close()


def test_growth_over_finalized_events_since_the_first_reading(board: Board) -> None:
    probe = FakeProbe()
    watch = MemoryWatch(board, probe)

    def read(used: int) -> int:
        probe.used = used
        asyncio.run(watch.read())
        return board.deployment.get("redis_bytes_per_event")

    board.page(0).inc("events", 1000, "processed")  # before the monitor looked
    assert read(10_000) == 0
    assert read(11_000) == 0
    board.page(0).inc("events", 7, "processed")
    board.page(1).inc("events", 2, "failed")
    board.page(1).inc("events", 1, "skipped")
    board.page(1).inc("events", 50, "duplicate")  # leaves nothing in Redis
    assert read(14_000) == 400
    assert board.deployment.get("redis_bytes_used") == 14_000
    assert board.deployment.get("redis_maxmemory") == 5000
    assert read(9000) == 0  # emptied meanwhile: not negative


def test_an_error_is_kept_until_redis_answers_again(board: Board) -> None:
    probe = FakeProbe()
    watch = MemoryWatch(board, probe)
    assert watch.error == ""
    probe.used = -1
    asyncio.run(watch.read())
    assert watch.error == "Redis does not answer: gone"
    probe.used = 1
    asyncio.run(watch.read())
    assert watch.error == ""


def test_watching_ends_with_a_closed_client(board: Board) -> None:
    probe = FakeProbe()
    probe.used = 123

    async def watch_a_little() -> None:
        watch = MemoryWatch(board, probe)
        task = asyncio.create_task(watch.run())
        while board.deployment.get("redis_bytes_used") == 0:
            await asyncio.sleep(0)
        watch.stop()
        await asyncio.wait_for(task, 5)

    asyncio.run(watch_a_little())
    assert probe.closed
