"""What is told of Redis' memory: bytes per event, when it is full, and the warning."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from eventproc.cli.supervisor_commands import _redis_line
from eventproc.errors import Transient
from eventproc.metrics import Board
from eventproc.monitor.memory import LEAST_EVENTS, MemoryWatch, Reading, forecast
from eventproc.settings import Settings
from eventproc.store.memory import Memory
from eventproc.supervisor.redis_memory import FullTooSoon, told

MIB = 2**20


def reading(at_s: float, used: int, finalized: int, limit: int = 0, buffers: int = 0) -> Reading:
    return Reading(round(at_s * 1000), Memory(used, limit, used - buffers), finalized)


@pytest.mark.parametrize(
    ("first", "last", "answer"),
    [
        # 400 bytes an event, 40,000 bytes a second; of 10 MB, 9.5 are left
        (reading(10, 100_000, 500), reading(20, 500_000, 1500, 10_000_000), (400, 238)),
        (reading(10, 100_000, 500), reading(20, 500_000, 1500), (400, 0)),  # no maxmemory
        # what connections hold is neither an event's, nor does it grow on and on
        (reading(0, 100_000, 0), reading(10, 2_500_000, 1000, 3_000_000, 2_000_000), (400, 12)),
        (reading(0, 9_000_000, 0), reading(10, 9_900_000, 1000, 9_000_000), (900, 1)),  # full
        (reading(0, 100_000, 0), reading(10, 100_001, 1000, 10_000_000), (1, 98_999_990)),
        (reading(0, 100_000, 0), reading(10, 500_000, LEAST_EVENTS - 1, 10_000_000), (0, 0)),  # too few
        (reading(0, 500_000, 0), reading(10, 500_000, 1000, 10_000_000), (0, 0)),  # as much expires
        (reading(0, 500_000, 0), reading(10, 90_000, 1000, 10_000_000), (0, 0)),  # emptied meanwhile
        (reading(5, 100_000, 0), reading(5, 500_000, 1000, 10_000_000), (0, 0)),  # in no time
    ],
)
def test_forecast(first: Reading, last: Reading, answer: tuple[int, int]) -> None:
    assert forecast(first, last) == answer


class FakeClock:
    def __init__(self) -> None:
        self.now_s = 1000.0

    def monotonic_ms(self) -> int:
        return round(self.now_s * 1000)

    def wall_ms(self) -> int:
        raise NotImplementedError

    def sleep_ms(self, ms: float) -> None:
        raise NotImplementedError


class FakeProbe:
    """Answers with `used` bytes; -1: does not answer."""

    def __init__(self) -> None:
        self.used = 0
        self.closed = False

    async def read(self) -> Memory:
        if self.used < 0:
            raise Transient("Redis does not answer: gone")
        return Memory(self.used, 1_000_000_000, self.used)

    async def close(self) -> None:
        self.closed = True


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(2)
    yield board
    board.close()


class Watched:
    """A watch over a board, one reading after the other."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.probe = FakeProbe()
        self.clock = FakeClock()
        self.watch = MemoryWatch(board, self.probe, self.clock)

    def read(self, used: int, after_s: float = 5) -> tuple[int, int]:
        """(bytes per event, seconds until maxmemory)."""
        self.clock.now_s += after_s
        self.probe.used = used
        asyncio.run(self.watch.read())
        page = self.board.deployment
        return page.get("redis_bytes_per_event"), page.get("redis_full_s")


def test_growth_over_events_that_were_made_final_meanwhile(board: Board) -> None:
    it = Watched(board)
    board.page(0).inc("events", 5000, "processed")  # before the monitor looked
    assert it.read(10_000) == (0, 0)
    assert it.read(11_000) == (0, 0)
    board.page(0).inc("events", 700, "processed")
    board.page(1).inc("events", 200, "failed")
    board.page(1).inc("events", 100, "skipped")
    board.page(1).inc("events", 5000, "duplicate")  # leaves nothing in Redis
    assert it.read(410_000) == (400, round((1_000_000_000 - 410_000) / 400_000 * 10))
    assert board.deployment.get("redis_bytes_used") == 410_000
    assert board.deployment.get("redis_maxmemory") == 1_000_000_000


def test_only_the_last_five_minutes_count(board: Board) -> None:
    it = Watched(board)
    it.read(0)
    for step in range(1, 61):
        board.page(0).inc("events", 1000, "processed")
        assert it.read(step * 400_000)[0] == 400
    for step in range(61, 121):  # each takes more now
        board.page(0).inc("events", 1000, "processed")
        found = it.read(60 * 400_000 + (step - 60) * 800_000)
    assert found[0] == 800
    for _ in range(60):  # and now nothing comes
        found = it.read(72_000_000)
    assert found == (0, 0)


def test_after_an_outage_all_begins_anew(board: Board) -> None:
    it = Watched(board)
    it.read(1000)
    board.page(0).inc("events", 1000, "processed")
    assert it.read(401_000)[0] == 400
    assert it.read(-1) == (0, 0)
    assert it.read(9_000_000) == (0, 0)
    board.page(0).inc("events", 1000, "processed")
    assert it.read(9_500_000)[0] == 500


def test_an_error_is_kept_until_redis_answers_again(board: Board) -> None:
    probe = FakeProbe()
    watch = MemoryWatch(board, probe, FakeClock())
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
    board.deployment.set("redis_full_s", 77)  # what a monitor before this one had left

    async def watch_a_little() -> None:
        watch = MemoryWatch(board, probe, FakeClock())
        task = asyncio.create_task(watch.run())
        while board.deployment.get("redis_bytes_used") == 0:
            await asyncio.sleep(0)
        watch.stop()
        await asyncio.wait_for(task, 5)

    asyncio.run(watch_a_little())
    assert probe.closed
    assert board.deployment.get("redis_full_s") == 0


# --- who is told ------------------------------------------------------------------------------------


def write(board: Board, used: int, limit: int, per_event: int = 0, full_s: int = 0) -> None:
    board.deployment.set("redis_bytes_used", used)
    board.deployment.set("redis_maxmemory", limit)
    board.deployment.set("redis_bytes_per_event", per_event)
    board.deployment.set("redis_full_s", full_s)


def test_status_tells_what_is_known_and_nothing_else(board: Board) -> None:
    page = board.deployment
    assert told(page) is None
    write(board, 100 * MIB, 0)
    assert told(page) == {
        "used_bytes": 100 * MIB, "maxmemory_bytes": 0, "bytes_per_event": None, "hours_until_maxmemory": None
    }  # fmt: skip
    write(board, 100 * MIB, 4096 * MIB, 412, 9000)
    assert told(page) == {
        "used_bytes": 100 * MIB, "maxmemory_bytes": 4096 * MIB, "bytes_per_event": 412,
        "hours_until_maxmemory": 2.5,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "line"),
    [
        ((100 * MIB, 0), "Redis uses 100.0 MiB, no maxmemory"),
        ((100 * MIB, 0, 412), "Redis uses 100.0 MiB, no maxmemory, 412 bytes per event"),
        ((100 * MIB, 4096 * MIB), "Redis uses 100.0 MiB of 4.0 GiB"),
        (
            (1536 * MIB, 4096 * MIB, 412, 9000),
            "Redis uses 1.5 GiB of 4.0 GiB, 412 bytes per event, full in 2 h 30 m at the current rate",
        ),
    ],
)
def test_the_line_above_the_table(board: Board, written: tuple[int, ...], line: str) -> None:
    write(board, *written)
    found = told(board.deployment)
    assert found is not None
    assert _redis_line(found) == line


class FakeLog:
    def __init__(self) -> None:
        self.lines: list[dict[str, Any]] = []

    def warning(self, event: str, **fields: Any) -> None:
        self.lines.append({"event": event, **fields})


def test_the_warning_comes_once_and_names_what_would_do(board: Board) -> None:
    log = FakeLog()
    full_too_soon = FullTooSoon(board.deployment, Settings(event_ttl_s=3600), log)  # type: ignore[arg-type]
    full_too_soon.look()
    write(board, 100 * MIB, 300 * MIB, 0, 0)
    full_too_soon.look()
    write(board, 100 * MIB, 300 * MIB, 400, 3600)  # just enough
    full_too_soon.look()
    assert log.lines == []
    write(board, 100 * MIB, 300 * MIB, 400, 1800)
    full_too_soon.look()
    full_too_soon.look()
    [line] = log.lines
    assert line["hours_until_maxmemory"] == 0.5
    assert line["event_ttl_s"] == 3600
    assert (line["used_mib"], line["maxmemory_mib"], line["bytes_per_event"]) == (100, 300, 400)
    # 200 MiB in half an hour: 400 in the hour that events live, beyond the 100 that are there
    assert "maxmemory to 500 MiB" in line["remedy"]
    assert "event_ttl_s" in line["remedy"]
