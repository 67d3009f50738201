"""Why a deployment is not ready."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventproc.metrics import Board, State
from eventproc.monitor.readiness import Readiness, judge
from eventproc.settings import Settings

NOW_MS = 1_000_000
PARTITIONS = [0, 3]


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(len(PARTITIONS))
    for page in board.pages():
        page.state = "running"
        page.beat(NOW_MS)
    yield board
    board.close()


def make_settings(**values: Any) -> Settings:
    return Settings(**values)


def look(board: Board, redis_error: str = "", settings: Settings | None = None) -> Readiness:
    return judge(board, PARTITIONS, settings or make_settings(), NOW_MS, redis_error)


def _standby(board: Board) -> None:
    board.page(1).enter("standby", "held by other-host:12:345")


def _paused(board: Board) -> None:
    board.page(1).enter("paused", "Redis: OOM")


def _crashed(board: Board) -> None:
    board.page(1).last_error = "killed by signal 9"
    board.page(1).state = "crashed"


def _restarting(board: Board) -> None:
    board.page(1).inc("restarts", 2)
    board.page(1).state = "starting"


def _starting(board: Board) -> None:
    board.page(1).state = "starting"


def _draining(board: Board) -> None:
    board.page(1).state = "draining"


def _redis_down(board: Board) -> None:
    board.page(1).set("redis_down", 1)


def _kafka_down(board: Board) -> None:
    board.page(1).set("kafka_down", 1)


def _old_gap(board: Board) -> None:
    board.page(1).set("oldest_gap_ms", 16_000)


def _stuck(board: Board) -> None:
    board.page(1).beat(NOW_MS - 31_000)


def _handler_hangs(board: Board) -> None:
    board.page(1).beat(NOW_MS - 90_000)
    board.page(1).running(NOW_MS - 61_000, 17)


@pytest.mark.parametrize(
    ("arrange", "state", "reason"),
    [
        (_standby, "standby", "standby, not owned: held by other-host:12:345"),
        (_paused, "paused", "paused: Redis: OOM"),
        (_crashed, "crashed", "worker has crashed and waits for its restart: killed by signal 9"),
        (_restarting, "starting", "worker is restarting (restart 2)"),
        (_starting, "starting", "worker is starting"),
        (_draining, "draining", "draining"),
        (_redis_down, "running", "Redis does not answer the worker"),
        (_kafka_down, "running", "Kafka does not answer the worker"),
        (_old_gap, "running", "oldest gap is 16.0 s old (gap_timeout_ms=5000)"),
        (_stuck, "running", "no progress for 31.0 s"),
        (_handler_hangs, "running", "no progress for 61.0 s"),
    ],
)
def test_reason(board: Board, arrange: Callable[[Board], None], state: State, reason: str) -> None:
    arrange(board)
    readiness = look(board)
    assert not readiness.ready
    assert readiness.partitions == {0: ("running", []), 3: (state, [reason])}


def test_ready_without_a_reason(board: Board) -> None:
    assert look(board).as_json() == {
        "ready": True,
        "redis": "ok",
        "partitions": {p: {"state": "running", "reasons": []} for p in ("0", "3")},
    }


def test_redis_is_a_reason_of_its_own(board: Board) -> None:
    readiness = look(board, "Redis does not answer: gone")
    assert (readiness.ready, readiness.redis) == (False, "Redis does not answer: gone")


def test_a_handler_within_its_timeout_is_no_reason(board: Board) -> None:
    board.page(1).beat(NOW_MS - 50_000)
    board.page(1).running(NOW_MS - 50_000, 17)
    assert look(board).ready


def test_a_handler_without_a_timeout_may_run_for_ever(board: Board) -> None:
    board.page(1).beat(1)
    board.page(1).running(1, 17)
    assert not look(board).ready
    assert look(board, settings=make_settings(handler_timeout_ms=0)).ready


def test_a_gap_within_its_timeout_is_no_reason(board: Board) -> None:
    board.page(1).set("oldest_gap_ms", 14_000)
    assert look(board).ready
