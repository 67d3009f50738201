"""The configurations that a mix of faults is carried out in: each round has one, drawn from its seed.

The async handler is the built-in one in a coroutine, so what is recorded and judged is the same. Only it
has a delay: its runs wait beside each other. Behind a sync one of 3 ms, a partition would do 600 a second.
"""

from __future__ import annotations

import asyncio
import os
import random
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from eventproc import Event
from eventproc.clock import SystemClock
from eventproc.handlers import BUILT_IN, simulate

DELAY_MS = 3
_HERE = f"{__name__}:simulate_async"


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings that the rules must hold under alike; all workers on one Redis have the same `locking`."""

    handler: Literal["sync", "async"]
    locking: Literal["event", "partition"]
    delay_ms: int = 0

    def __str__(self) -> str:
        delay = f", up to {self.delay_ms} ms" if self.delay_ms else ""
        return f"{self.handler}{delay}, locking {self.locking}"

    @property
    def settings(self) -> dict[str, Any]:
        """For a ground's deployments."""
        return {
            "handler": BUILT_IN if self.handler == "sync" else _HERE,
            "locking": self.locking,
            "processing_delay_ms": self.delay_ms,
        }


_SYNC = tuple(Configuration("sync", locking) for locking in ("event", "partition"))
_ASYNC = tuple(
    Configuration("async", locking, delay_ms)
    for locking in ("event", "partition")
    for delay_ms in (0, DELAY_MS)
)


def draw(rng: random.Random) -> Configuration:
    """Sync as often as async, then one of its kind."""
    return rng.choice(rng.choice((_SYNC, _ASYNC)))


@cache
def _built_in() -> simulate:
    return simulate(SystemClock(), runs=os.environ["EVENTPROC_SIMULATE_RUNS_DIR"])


async def simulate_async(event: Event) -> None:
    """As the built-in handler, but its sleep lets the others go on. It reads its settings itself."""
    delay_ms = int(os.environ["EVENTPROC_PROCESSING_DELAY_MS"])
    await asyncio.sleep(random.random() * delay_ms / 1000)
    _built_in()(event)
