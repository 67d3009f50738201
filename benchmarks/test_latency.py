"""From produce to final at 2,000 and 10,000 events/s: open loop, every event with its scheduled send time.

Measured twice, from the scheduled time (a producer that falls behind hides nothing): by the workers' own
histogram, interpolated within its buckets, and by the audit, from the ledger's send times to the time Redis
wrote into each `event:` hash, to the millisecond. A warm-up of other users goes before; it is audited, too.
The bars: at 2,000/s p99 below 50 ms (the worse of the two), at 10,000/s on the embedded stack p50 at most
5 ms and p99 at most 25; and the lag does not grow. The last is measured with the defaults, tuned for
latency, and tuned with `locking = partition`.
"""

from __future__ import annotations

import contextlib
import gc
import json
import statistics
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from eventproc.broker.producer import EventProducer
from eventproc.workload import LedgerWriter, Record, Workload
from tests.kafka_server import KafkaServer, why_not

pytestmark = pytest.mark.timeout(900)

SECONDS = 3 if SMOKE else 60
EVENTS_PER_USER = 10
WARM_UP_EVENTS = 2000
_FLUSH_TIMEOUT_S = 30.0
_SAMPLE_S = 0.1
_MADE_PER_MS = 40  # events that are surely made in a millisecond


class Load(NamedTuple):
    """A rate; `linger_ms` of the producer (5 is Kafka's default since 4.0), and the bars in ms.

    `fetch_wait_ms` (0: the embedded default) is how long the embedded broker is blind after an empty
    fetch. It keeps `keep_records` of a partition: it looks a fetch up from the head of its log.
    """

    name: str
    rate_per_s: int
    linger_ms: int
    p99_ms: float
    p50_ms: float | None = None
    fetch_wait_ms: int = 0
    keep_records: int = 2000
    locking: str = "event"

    @property
    def settings(self) -> dict[str, Any]:
        """Of the deployment."""
        chosen: dict[str, Any] = {"embedded_keep_records": self.keep_records, "locking": self.locking}
        if self.fetch_wait_ms:
            chosen["kafka_config"] = json.dumps({"fetch.wait.max.ms": str(self.fetch_wait_ms)})
        return chosen


LIGHT = Load("2000/s", 2000, 1, 50)
HEAVY = Load("10000/s", 10_000, 5, 25, 5)
TUNED = Load("10000/s-tuned", 10_000, 2, 25, 5, fetch_wait_ms=2, keep_records=200)
FAST = TUNED._replace(name="10000/s-tuned-partition", locking="partition")


def scheduled(events: int, run: str, rate_per_s: int) -> tuple[int, list[Record]]:
    """When to begin, and good events in order, whose timestamps are their scheduled send times.

    They are made beforehand, for the load shares the processors with what it measures.
    """
    start_ms = time.time_ns() // 1_000_000 + 1000 + events // _MADE_PER_MS
    work = Workload(
        users=events // EVENTS_PER_USER,
        events_per_user=EVENTS_PER_USER,
        shuffle_window=0,
        payload_bytes=0,  # the embedded broker keeps 5 MiB a partition
        rate=rate_per_s,
        run=run,
        start_ms=start_ms,
    )
    return start_ms, list(work.main())


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """No garbage collection walks through the prepared events while time is measured."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@dataclass(slots=True)
class OpenLoop:
    """Sends events when they are due, whatever becomes of those before; looks at the lag meanwhile."""

    deployment: Deployment
    producer: EventProducer
    rate_per_s: int = LIGHT.rate_per_s
    lags: list[tuple[float, int]] = field(default_factory=list)  # (share of the events sent, lag)

    def send(
        self, start_ms: int, records: list[Record], *, timed: bool, stop: threading.Event | None = None
    ) -> None:
        """Begin at `start_ms`, which must not be over.

        Without `timed` the ledger gets no send times, so that the audit tells no latency.
        """
        wait_s = start_ms / 1000 - time.time()
        assert wait_s >= 0, f"the events were made {-wait_s:.1f} s too late"
        begun = time.perf_counter() + wait_s
        look = 0.0
        for number, record in enumerate(records):
            due_s = number / self.rate_per_s
            now_s = time.perf_counter() - begun
            if now_s < due_s:
                self.producer.poll()
                if stop is not None and stop.is_set():
                    break
                time.sleep(max(due_s - now_s, 0.001))
            if now_s >= look:
                look = now_s + _SAMPLE_S
                self.lags.append((number / len(records), self.deployment.gauge("lag")))
            sent_ms = start_ms + int(due_s * 1000) if timed else 0
            self.producer.produce(record.key, record.value, record.headers, tag=(record, sent_ms))
        assert self.producer.flush(_FLUSH_TIMEOUT_S) == 0, self.producer.last_error

    def mean_lag(self, first: float, last: float) -> float:
        """Over a part of the run, in shares of its events."""
        return statistics.fmean(lag for share, lag in self.lags if first <= share <= last)


class Acked:
    """Keeps what is acknowledged for the ledger: it is written when nothing is measured any more."""

    def __init__(self) -> None:
        self._kept: list[tuple[tuple[Record, int], int, int, int]] = []

    def __call__(self, tag: tuple[Record, int], partition: int, offset: int) -> None:
        """For EventProducer."""
        self._kept.append((tag, partition, offset, time.time_ns() // 1_000_000))

    def write(self, ledger: LedgerWriter) -> None:
        """All that was kept."""
        for (record, sent_ms), partition, offset, acked_ms in self._kept:
            ledger.record(record, partition, offset, sent_ms, acked_ms)
        self._kept.clear()


@pytest.mark.parametrize(
    ("load", "broker"),
    [
        (LIGHT, "embedded"),
        (LIGHT, "kafka"),
        (HEAVY, "embedded"),
        (TUNED, "embedded"),
        (FAST, "embedded"),
    ],
    ids=lambda value: value.name if isinstance(value, Load) else value,
)
def test_latency(load: Load, broker: str, benchmark: Any, figures: Figures) -> None:
    rate_per_s = load.rate_per_s
    events = rate_per_s * SECONDS
    with contextlib.ExitStack() as servers:
        kafka = None
        if broker == "kafka":
            if reason := why_not():
                pytest.skip(f"no real Kafka: {reason}")
            kafka = servers.enter_context(KafkaServer())
        deployment = servers.enter_context(Deployment(kafka=kafka, **load.settings))
        with deployment.open_ledger() as ledger:
            acked = Acked()
            producer = EventProducer(deployment.settings, linger_ms=load.linger_ms, on_acked=acked)
            try:
                loop = OpenLoop(deployment, producer, rate_per_s)
                loop.send(*scheduled(WARM_UP_EVENTS, "warm", rate_per_s), timed=False)
                deployment.wait_processed(WARM_UP_EVENTS)
                before = deployment.distribution("latency_ms")
                loop = OpenLoop(deployment, producer, rate_per_s)
                timed = scheduled(events, "timed", rate_per_s)
                with without_collections():
                    benchmark.pedantic(lambda: loop.send(*timed, timed=True), rounds=1)
                assert not producer.failed
            finally:
                producer.close()
            deployment.wait_processed(WARM_UP_EVENTS + events)
            acked.write(ledger)
            ledger.finish(deployment.ends())
        latency = deployment.distribution("latency_ms") - before
        report = deployment.audit()
    assert latency.count == events
    assert report.totals.processed == WARM_UP_EVENTS + events
    middle, end = round(loop.mean_lag(0.4, 0.6)), round(loop.mean_lag(0.8, 1.0))
    p50_ms, p99_ms = (max(latency.quantile(q), float(report.latency_ms(q))) for q in (0.5, 0.99))
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
    if load.p50_ms is not None:
        figures.bar("p50 ms", p50_ms, most=load.p50_ms)
    figures.bar("p99 ms", p99_ms, below=load.p99_ms)
    figures.bar("lag at the end", end, below=middle + rate_per_s // 10)  # a tenth of a second's events
    figures.judge()
