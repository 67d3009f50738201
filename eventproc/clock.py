"""Time, handed in: nothing else in eventproc calls `time`, and only `_clock.pyx` reads a clock in C."""

from __future__ import annotations

import time
from typing import Protocol

from eventproc._clock import MachineClock


class Clock(Protocol):
    """Where time comes from."""

    def monotonic_ms(self) -> int:
        """Milliseconds that never run backwards; for timeouts."""
        ...

    def wall_ms(self) -> int:
        """Milliseconds since the epoch; for latency and for people."""
        ...

    def sleep_ms(self, ms: float) -> None:
        """Wait."""
        ...


class SystemClock(MachineClock):
    """The machine's own clock."""

    def sleep_ms(self, ms: float) -> None:
        time.sleep(ms / 1000)
