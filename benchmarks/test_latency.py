"""From produce to final at 2,000 events/s: open loop, every event with its scheduled send time.

Measured twice, from the scheduled time (a producer that falls behind hides nothing): by the workers' own
histogram, interpolated within its buckets, and by the audit, from the ledger's send times to the time Redis
wrote into each `event:` hash, to the millisecond. A warm-up of other users goes before; it is audited, too.
The bars: p99 below 50 ms (the worse of the two), and the lag does not grow.
"""

from __future__ import annotations

import contextlib
import statistics
import threading
import time
from dataclasses import dataclass, field
from typing import Any

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from eventproc.broker.producer import EventProducer
from eventproc.workload import LedgerWriter, Record, Workload
from tests.kafka_server import KafkaServer, why_not

pytestmark = pytest.mark.timeout(900)

RATE_PER_S = 2000
SECONDS = 3 if SMOKE else 60
EVENTS_PER_USER = 10
WARM_UP_EVENTS = 2000
LINGER_MS = 1
P99_BELOW_MS = 50
#: What the lag may be more at the end than in the middle: a tenth of a second's events.
LAG_TOLERANCE = RATE_PER_S // 10
_FLUSH_TIMEOUT_S = 30.0
_SAMPLE_S = 0.1


def workload(events: int, run: str) -> Workload:
    """Good events in order, whose timestamps are their scheduled send times, beginning now."""
    return Workload(
        users=events // EVENTS_PER_USER,
        events_per_user=EVENTS_PER_USER,
        shuffle_window=0,
        payload_bytes=0,  # the embedded broker keeps 5 MiB a partition
        rate=RATE_PER_S,
        run=run,
        start_ms=time.time_ns() // 1_000_000,
    )


@dataclass(slots=True)
class OpenLoop:
    """Sends events when they are due, whatever becomes of those before; looks at the lag meanwhile."""

    deployment: Deployment
    producer: EventProducer
    lags: list[tuple[float, int]] = field(default_factory=list)  # (share of the events sent, lag)

    def send(self, work: Workload, *, timed: bool, stop: threading.Event | None = None) -> None:
        """Without `timed` the ledger gets no send times, so that the audit tells no latency."""
        begun = time.perf_counter()
        look = 0.0
        for number, record in enumerate(work.main()):
            if stop is not None and stop.is_set():
                break
            due_s = number / RATE_PER_S
            now_s = time.perf_counter() - begun
            if now_s < due_s:
                time.sleep(max(due_s - now_s, 0.001))
            if now_s >= look:
                look = now_s + _SAMPLE_S
                self.lags.append((number / work.events, self.deployment.gauge("lag")))
            sent_ms = work.start_ms + int(due_s * 1000) if timed else 0
            self.producer.produce(record.key, record.value, record.headers, tag=(record, sent_ms))
            self.producer.poll()
        assert self.producer.flush(_FLUSH_TIMEOUT_S) == 0, self.producer.last_error

    def mean_lag(self, first: float, last: float) -> float:
        """Over a part of the run, in shares of its events."""
        return statistics.fmean(lag for share, lag in self.lags if first <= share <= last)


def write_to(ledger: LedgerWriter) -> Any:
    """For EventProducer: what is acknowledged goes into the ledger."""

    def on_acked(tag: tuple[Record, int], partition: int, offset: int) -> None:
        record, sent_ms = tag
        ledger.record(record, partition, offset, sent_ms, time.time_ns() // 1_000_000)

    return on_acked


@pytest.mark.parametrize("broker", ["embedded", "kafka"])
def test_latency_at_2000_per_s(broker: str, benchmark: Any, figures: Figures) -> None:
    events = RATE_PER_S * SECONDS
    with contextlib.ExitStack() as servers:
        kafka = None
        if broker == "kafka":
            if reason := why_not():
                pytest.skip(f"no real Kafka: {reason}")
            kafka = servers.enter_context(KafkaServer())
        deployment = servers.enter_context(Deployment(kafka=kafka))
        with deployment.open_ledger() as ledger:
            producer = EventProducer(deployment.settings, linger_ms=LINGER_MS, on_acked=write_to(ledger))
            try:
                OpenLoop(deployment, producer).send(workload(WARM_UP_EVENTS, "warm"), timed=False)
                deployment.wait_processed(WARM_UP_EVENTS)
                before = deployment.distribution("latency_ms")
                loop = OpenLoop(deployment, producer)
                benchmark.pedantic(lambda: loop.send(workload(events, "timed"), timed=True), rounds=1)
                assert not producer.failed
            finally:
                producer.close()
            deployment.wait_processed(WARM_UP_EVENTS + events)
            ledger.finish(deployment.ends())
        latency = deployment.distribution("latency_ms") - before
        report = deployment.audit()
    assert latency.count == events
    assert report.totals.processed == WARM_UP_EVENTS + events
    middle, end = round(loop.mean_lag(0.4, 0.6)), round(loop.mean_lag(0.8, 1.0))
    p99_ms = max(latency.quantile(0.99), float(report.latency_ms(0.99)))
    figures.add(
        worker_p50_ms=round(latency.quantile(0.5), 1),
        worker_p99_ms=round(latency.quantile(0.99), 1),
        audit_p50_ms=report.latency_ms(0.5),
        audit_p99_ms=report.latency_ms(0.99),
        audit_p999_ms=report.latency_ms(0.999),
        lag_middle=middle,
        lag_end=end,
        events=events,
        seconds=SECONDS,
        audit="clean",
    )
    figures.bar("p99 ms", p99_ms, below=P99_BELOW_MS)
    figures.bar("lag at the end", end, below=middle + LAG_TOLERANCE)
    figures.judge()
