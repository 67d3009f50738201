"""Time, handed in: nothing else in eventproc calls `time`."""

from __future__ import annotations

import time
from typing import Protocol


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


class SystemClock:
    """The machine's own clock."""

    def monotonic_ms(self) -> int:
        return time.monotonic_ns() // 1_000_000

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def sleep_ms(self, ms: float) -> None:
        time.sleep(ms / 1000)
