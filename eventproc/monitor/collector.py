"""The board as Prometheus metrics: one sample per partition, in base units."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from eventproc import __version__, metrics
from eventproc.clock import Clock
from eventproc.metrics import METRICS, STATES, Board, Page


class BoardCollector(Collector):
    """Reads the board anew for each scrape; page i is the partition `partitions[i]`."""

    def __init__(self, board: Board, partitions: Sequence[int], clock: Clock) -> None:
        self._board = board
        self._pages = [(str(p), board.page(i)) for i, p in enumerate(partitions)]
        self._clock = clock

    def collect(self) -> Iterable[Metric]:
        """Return all metrics of the table, and what the board tells beside them."""
        for metric in METRICS:
            if metric.scope == "deployment":
                yield _deployment_gauge(metric, self._board.deployment)
            else:
                yield _FAMILY[metric.kind](metric, self._pages)
        yield self._heartbeats()
        yield self._states()
        yield InfoMetricFamily("eventproc_build", "what is running", {"version": __version__})

    def _heartbeats(self) -> Metric:
        family = GaugeMetricFamily(
            "eventproc_heartbeat_age_seconds",
            "time since the worker last made progress; absent before its first",
            labels=["partition"],
        )
        now_ms = self._clock.monotonic_ms()
        for partition, page in self._pages:
            if page.last_beat_ms:
                family.add_metric([partition], max(0, now_ms - page.last_beat_ms) / 1000)
        return family

    def _states(self) -> Metric:
        family = GaugeMetricFamily(
            "eventproc_worker_state",
            "1 for the state the worker is in, 0 for the others",
            labels=["partition", "state"],
        )
        for partition, page in self._pages:
            current = page.state
            for state in STATES:
                family.add_metric([partition, state], float(state == current))
        return family


_Pages = list[tuple[str, Page]]


def _counter(metric: metrics.Metric, pages: _Pages) -> Metric:
    names = ["partition", metric.label] if metric.label else ["partition"]
    family = CounterMetricFamily(metric.exposed, metric.help, labels=names)
    for partition, page in pages:
        for value in metric.values:
            labels = [partition, value] if metric.label else [partition]
            family.add_metric(labels, page.get(metric.name, value))  # type: ignore[arg-type]
    return family


def _gauge(metric: metrics.Metric, pages: _Pages) -> Metric:
    family = GaugeMetricFamily(metric.exposed, metric.help, labels=["partition"])
    for partition, page in pages:
        family.add_metric([partition], page.get(metric.name) * metric.scale)  # type: ignore[arg-type]
    return family


def _histogram(metric: metrics.Metric, pages: _Pages) -> Metric:
    family = HistogramMetricFamily(metric.exposed, metric.help, labels=["partition"])
    # 3 * 0.001 is no 0.003
    bounds = [str(round(bound * metric.scale, 9)) for bound in metric.buckets] + ["+Inf"]
    for partition, page in pages:
        spread = page.distribution(metric.name)  # type: ignore[arg-type]
        total = 0
        cumulative: list[tuple[str, float]] = []
        for bound, count in zip(bounds, spread.counts, strict=True):
            total += count
            cumulative.append((bound, total))
        family.add_metric([partition], cumulative, spread.sum * metric.scale)
    return family


def _deployment_gauge(metric: metrics.Metric, page: Page) -> Metric:
    value = page.get(metric.name) * metric.scale  # type: ignore[arg-type]
    absent = metric.absent_at_zero and not value
    return GaugeMetricFamily(metric.exposed, metric.help, value=None if absent else value)


_FAMILY: dict[str, Callable[[metrics.Metric, _Pages], Metric]] = {
    "counter": _counter,
    "gauge": _gauge,
    "histogram": _histogram,
}
