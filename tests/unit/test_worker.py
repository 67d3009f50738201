"""A signal handler that raises inside consume() loses the batch, so it sets a flag and nothing else.

The rest of the worker's own loop: tests/from_source/test_worker.py.
"""

from __future__ import annotations

import os
import signal
from typing import cast

import pytest

from eventproc.worker import Worker, _stop_on_signals


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
