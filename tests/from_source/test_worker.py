"""The worker's own loop, with stand-ins for what it works on.

What is due is waited for from now on, not from before a handler has run.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from eventproc.effects import FetchEnd, Finalize
from eventproc.worker import IDLE_WAIT_MS, Worker
from tests.unit.pipeline_driver import Driver, event


@pytest.mark.parametrize(
    ("due_ms", "expected"), [(-1, IDLE_WAIT_MS), (30, 0), (100, 10), (5000, IDLE_WAIT_MS)]
)
def test_the_wait_is_for_what_is_left_of_the_time(due_ms: int, expected: int) -> None:
    worker: Any = SimpleNamespace(
        pipeline=SimpleNamespace(owned=True, next_deadline_ms=lambda: due_ms),
        _producer=SimpleNamespace(pending=0),
        _end_asked_ms=-1,
        _clock=SimpleNamespace(monotonic_ms=lambda: 90),
    )
    assert Worker._idle_wait_ms(worker) == expected


class Outside:
    """A worker on a pipeline that a test drives: only its own loop's judgement is real."""

    def __init__(self, driver: Driver) -> None:
        self.driver = driver
        self.channel = SimpleNamespace(up=True, outages=0, silent_ms=lambda: 0, last_error="")
        self.consumer = SimpleNamespace(down=False, end=None, last_error="")
        self.consumer.poll_end = lambda: self.consumer.end
        worker: Any = Worker.__new__(Worker)
        worker.pipeline, worker._clock = driver.pipeline, driver.clock
        worker._channel, worker._consumer = self.channel, self.consumer
        worker._keeper = SimpleNamespace(stalls=0)
        worker._log = SimpleNamespace(info=lambda *words, **fields: None)
        worker._handlers_ms = worker._stalls = worker._partition = 0
        worker._looped_ms = driver.clock.now_ms
        worker._away = False
        worker._end_asked_ms = -1
        worker._refused = {}
        worker._settings = driver.settings
        self.worker = worker

    def turn(self, ms: int = 100) -> None:
        self.driver.clock.now_ms += ms
        self.worker._watch(self.driver.clock.now_ms)
        self.worker._take_end()
        self.driver.settle()


def test_an_end_that_is_told_late_does_not_start_the_gap_timers_while_redis_is_away() -> None:
    driver = Driver(gap_timeout_ms=5000).own()
    it = Outside(driver)
    driver.send(event("u", 2))
    driver.hold(FetchEnd)
    for _ in range(51):
        it.turn()
    assert driver.waiting(FetchEnd)
    driver.todo.clear()
    it.worker._end_asked_ms = it.worker._own_ms()
    it.channel.up, it.channel.outages, it.consumer.down = False, 1, True
    for _ in range(20):
        it.turn()
    it.consumer.down, it.consumer.end = False, driver.end  # Kafka is back, Redis is not
    it.turn()
    it.consumer.end = None
    driver.held.discard(FetchEnd)
    driver.hold(Finalize)
    for _ in range(100):
        it.turn()
    assert not driver.counts["gaps_closed.timeout"]
    it.channel.up = True
    driver.free()
    it.turn()
    driver.send(event("u", 1))
    assert driver.order("u") == [1, 2]


def full(**settings: Any) -> Outside:
    """So much is read above what holds the floor that reading has stopped."""
    driver = Driver(max_replay_records=20, **settings).own()
    driver.lose_produced = True
    driver.store.command("SET", "order:w", "somebody else's")
    return Outside(driver)


def read_on(driver: Driver) -> None:
    for seq in range(1, 40):
        driver.send(event("v", seq))
        driver.pass_ms(100)
    assert driver.pipeline.buffer.position < driver.end


def test_a_floor_that_is_held_by_a_foreign_key_is_told() -> None:
    it = full()
    it.driver.send(event("w", 1))
    read_on(it.driver)
    reason = it.worker._pause_reason()
    assert "above offset 0" in reason
    assert "max_replay_records" in reason
    assert "user w is set aside: key order:w has the wrong type; delete or rename it" in reason


def test_a_floor_that_is_held_by_a_dead_letter_is_told() -> None:
    it = full()
    it.driver.send(event("u", 1, reject="no"))
    it.worker._refused = {0: "no such topic"}
    read_on(it.driver)
    assert it.worker._pause_reason().endswith("its dead letter is not acknowledged: no such topic")


def test_a_stop_after_a_rewind_waits_for_the_handlers_that_run() -> None:
    driver = Driver(concurrency=4).own()
    it = Outside(driver)
    driver.send(event("u", 1))
    driver.pipeline.ownership.lost(0)
    it.worker._stop_asked = True
    it.worker._page = SimpleNamespace(state="")
    it.worker._tasks = SimpleNamespace(under_way=1)
    assert not it.worker._finished()
    it.worker._tasks.under_way = 0
    assert it.worker._finished()
