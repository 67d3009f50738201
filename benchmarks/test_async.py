"""How fast a backlog is drained by an async handler that takes 50 ms, as test_drain does it.

One event of a user runs at a time, so there are more users than run at once. The bar: 12,000 events/s.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from benchmarks.handlers import nap
from benchmarks.test_drain import EVENTS, Drain, backlog, drain, tell

pytestmark = pytest.mark.timeout(1800)

USERS = 400 if SMOKE else 20_000
LEAST_PER_S = 12_000


def test_drain_async(benchmark: Any, figures: Figures) -> None:
    rounds: list[Drain] = []
    with Deployment(handler=f"{nap.__module__}:{nap.__name__}") as deployment:
        with deployment.frozen():
            deployment.produce(backlog(USERS))
        benchmark.pedantic(lambda: rounds.append(drain(deployment)), rounds=1)
        assert deployment.audit().totals.processed == EVENTS
    tell(figures, rounds, USERS)
    figures.bar("events/s", rounds[0].events_per_s, least=LEAST_PER_S)
    figures.judge()
