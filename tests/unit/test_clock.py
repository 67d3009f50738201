"""The system's clock: units, and that time passes."""

from __future__ import annotations

import time

from eventproc.clock import Clock, SystemClock


def test_the_system_clock_tells_milliseconds() -> None:
    clock: Clock = SystemClock()
    before_s, before_ns = time.time(), time.monotonic_ns()
    wall_ms, monotonic_ms = clock.wall_ms(), clock.monotonic_ms()
    assert before_s * 1000 - 1 <= wall_ms <= time.time() * 1000 + 1
    assert before_ns // 1_000_000 <= monotonic_ms <= time.monotonic_ns() // 1_000_000
    assert type(wall_ms) is type(monotonic_ms) is int


def test_it_sleeps_for_milliseconds() -> None:
    clock = SystemClock()
    before_ns = time.monotonic_ns()
    clock.sleep_ms(20)
    assert 20 <= (time.monotonic_ns() - before_ns) / 1e6 < 10_000
