"""How fast a backlog is drained: embedded broker, Redis and eight workers on this machine.

The workers are ready on an empty topic and are stopped (SIGSTOP) while the backlog is produced. The clock
starts just before they go on, so before the first fetch, and ends when the last event is final in Redis,
with a resolution of `POLL_S`. Each round has a deployment of its own, and an audit after the clock.

The bars: 50,000 events/s at 5,000 users, and 50 users no slower (at least 0.9 of it, in the same run); Redis
busy for 0.85 of the time; 8 us of CPU time per event in all workers, librdkafka's threads included, 6 with
`locking = partition`.

"Busy" is the CPU time of Redis by the time on the clock. Its main thread has all of it: without persistence
the others do nothing. On a machine with other work it is less than what Redis could have used.
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import PARTITIONS, SMOKE, Deployment, Usage
from eventproc._reorder import partition_of
from eventproc.workload import Workload

pytestmark = pytest.mark.timeout(1800)

POLL_S = 0.01
ROUNDS = 1 if SMOKE else 3
EVENTS = 8_000 if SMOKE else 200_000
LEAST_PER_S = 50_000
LEAST_RATIO = 0.9
LEAST_BUSY = 0.85
WORKERS_MOST_US = {"event": 8.0, "partition": 6.0}

MANY = "5000x40"
FEW = "50x4000"
USERS = {MANY: 200 if SMOKE else 5000, FEW: 10 if SMOKE else 50}
RUNS = [("event", MANY), ("event", FEW), ("partition", MANY), *([] if SMOKE else [("partition", FEW)])]

#: (locking, shape) -> events/s; for the ratio between two benchmarks of one run.
_measured: dict[tuple[str, str], float] = {}


@dataclass(frozen=True, slots=True)
class Drain:
    """One round. `batch` is the mean number of events in a finalize call."""

    elapsed_s: float
    used: Usage
    batch: float
    events: int = EVENTS

    @property
    def events_per_s(self) -> float:
        return self.events / self.elapsed_s

    @property
    def redis_us(self) -> float:
        """CPU time of Redis for one event."""
        return self.used.redis / self.events * 1e6


def backlog(users: int, events: int = EVENTS) -> Workload:
    """Nothing but good events in order; small, so that the embedded broker keeps all of them."""
    return Workload(
        users=users,
        events_per_user=events // users,
        shuffle_window=0,
        payload_bytes=0,
        start_ms=time.time_ns() // 1_000_000,
    )


def drain(deployment: Deployment, events: int = EVENTS) -> Drain:
    """Let the workers go, until the last event is final."""
    before = deployment.usage()
    begun = time.perf_counter()
    deployment.thaw()
    deployment.wait_processed(events, POLL_S)
    elapsed_s = time.perf_counter() - begun
    used = deployment.usage() - before
    sizes = deployment.distribution("finalize_batch_events")
    return Drain(elapsed_s, used, sizes.sum / sizes.count, events)


def largest_share(users: int, partitions: int) -> float:
    """Records of the fullest partition by those of the average one."""
    names = {record.user for record in Workload(users=users, events_per_user=1, shuffle_window=0).main()}
    return max(Counter(partition_of(name, partitions) for name in names).values()) * partitions / users


@pytest.mark.parametrize(("locking", "shape"), RUNS)
def test_drain(benchmark: Any, figures: Figures, locking: str, shape: str) -> None:
    users = USERS[shape]
    rounds: list[Drain] = []
    with contextlib.ExitStack() as resources:

        def set_up() -> tuple[tuple[Deployment], dict[str, Any]]:
            deployment = resources.enter_context(Deployment(locking=locking))
            with deployment.frozen():
                deployment.produce(backlog(users))
            assert deployment.processed() == 0, "a worker ran although it was stopped"
            return (deployment,), {}

        def tear_down(deployment: Deployment) -> None:
            assert deployment.processed() == EVENTS
            assert deployment.audit().totals.processed == EVENTS
            resources.close()

        benchmark.pedantic(
            lambda deployment: rounds.append(drain(deployment)),
            setup=set_up,
            teardown=tear_down,
            rounds=ROUNDS,
        )
    tell(figures, rounds, users)
    _measured[locking, shape] = statistics.median(one.events_per_s for one in rounds)
    if shape == MANY:
        figures.bar("events/s", _measured[locking, MANY], least=LEAST_PER_S)
        busy = statistics.median(one.used.redis / one.elapsed_s for one in rounds)
        figures.bar("Redis busy", busy, least=LEAST_BUSY)
        workers_us = statistics.median(one.used.workers for one in rounds) / EVENTS * 1e6
        figures.bar("workers us/event", workers_us, most=WORKERS_MOST_US[locking])
    elif (locking, MANY) in _measured:
        ratio = _measured[locking, FEW] / _measured[locking, MANY]
        figures.bar(f"{FEW} by {MANY}", ratio, least=LEAST_RATIO)
    figures.judge()


def tell(figures: Figures, rounds: list[Drain], users: int, partitions: int = PARTITIONS) -> None:
    """Medians of the rounds; us are CPU time per event."""

    events = rounds[0].events

    def median_us(seconds: list[float]) -> float:
        return round(statistics.median(seconds) / events * 1e6, 2)

    figures.add(
        events_per_s=round(statistics.median(one.events_per_s for one in rounds)),
        redis_us=median_us([one.used.redis for one in rounds]),
        redis_busy=round(statistics.median(one.used.redis / one.elapsed_s for one in rounds), 2),
        workers_us=median_us([one.used.workers for one in rounds]),
        broker_us=median_us([one.used.broker for one in rounds]),
        batch=round(statistics.median(one.batch for one in rounds)),
        rounds="/".join(str(round(one.events_per_s)) for one in rounds),
        events=events,
        users=users,
        largest_partition=round(largest_share(users, partitions), 2),
        audit="clean",
    )
