"""From produce to final at 2,000 events/s: open loop, every event with its scheduled send time.

Measured twice, from the scheduled time (a producer that falls behind hides nothing): by the workers' own
histogram, interpolated within its buckets, and by the audit, from the ledger's send times to the time Redis
wrote into each `event:` hash, to the millisecond. The bar counts for the worse: p99 below 50 ms, lag flat.
"""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from eventproc.workload import Progress, Record, Workload

pytestmark = pytest.mark.timeout(900)

RATE_PER_S = 2000
SECONDS = 3 if SMOKE else 60
USERS = 200 if SMOKE else 1000
P99_BELOW_MS = 50
#: What the lag may be more at the end than in the middle: a tenth of a second's events.
LAG_TOLERANCE = RATE_PER_S // 10


class StartsNow(Workload):
    """A workload whose timestamps are its scheduled send times."""

    def main(self) -> Iterator[Record]:
        described = {**dataclasses.asdict(self), "start_ms": time.time_ns() // 1_000_000}
        return Workload(**described).main()


@dataclasses.dataclass(slots=True)
class LagSeries:
    """Lag while the events come in, as often as the producer tells how it goes."""

    deployment: Deployment
    samples: list[tuple[int, int]] = dataclasses.field(default_factory=list)

    def take(self, progress: Progress) -> None:
        self.samples.append((progress.sent, self.deployment.gauge("lag")))

    def mean(self, first: float, last: float) -> float:
        """Over the part of the run between two shares of its events."""
        whole = RATE_PER_S * SECONDS
        return statistics.fmean(lag for sent, lag in self.samples if first <= sent / whole <= last)


def test_latency_at_2000_per_s(benchmark: Any, figures: Figures) -> None:
    workload = StartsNow(
        users=USERS, events_per_user=RATE_PER_S * SECONDS // USERS, shuffle_window=0, rate=RATE_PER_S
    )
    with Deployment() as deployment:
        lag = LagSeries(deployment)
        benchmark.pedantic(deployment.produce, args=(workload, lag.take), rounds=1)
        report = deployment.audit()
        latency = deployment.distribution("latency_ms")
    assert report.totals.processed == latency.count == workload.events
    middle, end = lag.mean(0.4, 0.6), lag.mean(0.8, 1.0)
    p99_ms = max(latency.quantile(0.99), report.latency_ms(0.99))
    figures.add(
        p50_ms=round(latency.quantile(0.5), 1),
        p99_ms=round(latency.quantile(0.99), 1),
        audited_p50_ms=report.latency_ms(0.5),
        audited_p99_ms=report.latency_ms(0.99),
        audited_p999_ms=report.latency_ms(0.999),
        lag_middle=round(middle),
        lag_end=round(end),
        events=workload.events,
        seconds=SECONDS,
        audit="clean",
    )
    figures.bar("p99 ms", float(p99_ms), below=P99_BELOW_MS)
    figures.bar("lag at the end", round(end), below=round(middle) + LAG_TOLERANCE + 1)
