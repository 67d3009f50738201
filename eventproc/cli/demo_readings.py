"""What the demo shows while it runs: readings of the monitor's /metrics, and the rates between them."""

from __future__ import annotations

import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

_TIMEOUT_S = 5.0
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # whatever http_proxy says
_OUTCOMES = ("processed", "failed", "skipped", "duplicate", "invalid", "tombstone")


@dataclass(slots=True)
class Partition:
    """One partition at one moment; counts are since the start."""

    outcomes: dict[str, int] = field(default_factory=dict)
    consumed: int = 0
    lag: int = 0
    parked: int = 0
    unfinalized: int = 0
    committed: int = 0
    gaps: int = 0
    state: str = "starting"
    events_per_s: float = 0.0

    @property
    def settled(self) -> int:
        """Records that have an outcome."""
        return sum(self.outcomes.get(outcome, 0) for outcome in _OUTCOMES)

    def idle_at(self, end: int) -> bool:
        """Whether everything below the offset `end` is done and committed."""
        return self.committed >= end and not (self.lag or self.parked or self.unfinalized)


@dataclass(slots=True)
class Reading:
    """All partitions at `at_ms` (monotonic)."""

    at_ms: int
    partitions: dict[int, Partition]

    @property
    def settled(self) -> int:
        return sum(p.settled for p in self.partitions.values())

    @property
    def total(self) -> Partition:
        """All partitions as one."""
        total = Partition(state="")
        for p in self.partitions.values():
            for outcome, count in p.outcomes.items():
                total.outcomes[outcome] = total.outcomes.get(outcome, 0) + count
            for name in ("consumed", "lag", "parked", "unfinalized", "gaps", "events_per_s"):
                setattr(total, name, getattr(total, name) + getattr(p, name))
        return total

    def idle_at(self, end: Mapping[int, int]) -> bool:
        """Whether every partition is done up to its end offset."""
        return all(p in self.partitions and self.partitions[p].idle_at(offset) for p, offset in end.items())


def read(url: str, now_ms: int, before: Reading | None) -> Reading:
    """Read the monitor at `url`; rates are since `before`. OSError when it does not answer."""
    with _DIRECT.open(f"{url}/metrics", timeout=_TIMEOUT_S) as answer:
        reading = parse(answer.read().decode(), now_ms)
    if before is not None and now_ms > before.at_ms:
        for number, partition in reading.partitions.items():
            was = before.partitions.get(number, Partition())
            partition.events_per_s = (partition.settled - was.settled) * 1000 / (now_ms - before.at_ms)
    return reading


def accepted_over_http(url: str) -> int:
    """How many events the API at `url` has accepted. OSError when it does not answer."""
    with _DIRECT.open(f"{url}/metrics", timeout=_TIMEOUT_S) as answer:
        text = answer.read().decode()
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "eventproc_api_events_total" and sample.labels["outcome"] == "accepted":
                return int(sample.value)
    return 0


_GAUGES = {
    "eventproc_lag": "lag",
    "eventproc_parked": "parked",
    "eventproc_unfinalized": "unfinalized",
    "eventproc_committed_offset": "committed",
}
_WANTED = (
    *_GAUGES,
    "eventproc_events_total",
    "eventproc_records_consumed_total",
    "eventproc_gaps_closed_total",
    "eventproc_worker_state",
)


def parse(text: str, at_ms: int) -> Reading:
    """Read an exposition; what is in it beside the demo's numbers is passed over."""
    wanted = "\n".join(line for line in text.splitlines() if line.startswith(_WANTED))
    partitions: dict[int, Partition] = {}
    for family in text_string_to_metric_families(wanted + "\n"):
        for sample in family.samples:
            if "partition" not in sample.labels:
                continue
            partition = partitions.setdefault(int(sample.labels["partition"]), Partition())
            value = int(sample.value)
            if sample.name in _GAUGES:
                setattr(partition, _GAUGES[sample.name], value)
            elif sample.name == "eventproc_events_total":
                partition.outcomes[sample.labels["outcome"]] = value
            elif sample.name == "eventproc_records_consumed_total":
                partition.consumed = value
            elif sample.name == "eventproc_gaps_closed_total":
                partition.gaps += value
            elif sample.name == "eventproc_worker_state" and value:
                partition.state = sample.labels["state"]
    return Reading(at_ms, partitions)
