"""The worker's own loop: a signal handler that raises inside consume() loses the batch, so it sets a flag and
nothing else; and what is due is waited for from now on, not from before a handler has run."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any, cast

import pytest

from eventproc.worker import IDLE_WAIT_MS, Worker, _stop_on_signals


class Flag:
    """Stands for a worker."""

    asked = False

    def stop(self) -> None:
        self.asked = True


@pytest.fixture(autouse=True)
def _handlers() -> object:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_a_signal_sets_a_flag_and_raises_nothing() -> None:
    flag = Flag()
    _stop_on_signals(cast(Worker, flag))
    os.kill(os.getpid(), signal.SIGTERM)
    os.kill(os.getpid(), signal.SIGINT)
    assert flag.asked


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
