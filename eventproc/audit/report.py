"""What the audit found: counts and examples by kind, totals, and how they are shown."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

from rich.table import Table

Finding = Literal[
    "lost",  # acknowledged, below the floor, but not final
    "doubled",  # a seq or an id took effect twice
    "reordered",  # effects of a user, or its events' last runs, out of sequence
    "gap",  # a seq that is passed over without a reason, or given up although it was there
    "rewritten",  # a final record tells another user, seq, type or position than was produced
    "lock",  # an inflight: key that is left when idle
    "status",  # a status, attempts or winner that the rules exclude
    "dlq",  # the dead letters in Redis and in the topic do not match what failed
    "next",  # next:<user> is wrong, or there without need
    "position",  # floor, committed offset, end offset and ownership do not fit together
    "phantom",  # an effect or a run of something that nobody produced
    "foreign",  # a key of the wrong type
]
KINDS: Final[tuple[Finding, ...]] = get_args(Finding)
EXAMPLES = 10
_ALWAYS_SHOWN = ("records", "processed", "failed", "skipped", "duplicates", "invalid", "gaps")
#: Longer latencies count as this.
_LATENCY_CAP_MS = 600_000


@dataclass(slots=True)
class Totals:
    """What there is, right or wrong. `duplicates` are records beyond the first of their id and seq."""

    records: int = 0
    unacknowledged: int = 0
    users: int = 0
    processed: int = 0
    failed: int = 0
    skipped: int = 0
    duplicates: int = 0
    conflicts: int = 0
    invalid: int = 0
    tombstones: int = 0
    gaps: int = 0  # entries of the gap ledgers
    gap_seqs: int = 0  # seqs that they give up
    dead_letters: int = 0  # records in the dead-letter topic
    runs: int = 0
    reruns: int = 0  # runs beyond the attempts that were recorded
    expired: int = 0  # ids that cannot be judged: their keys' time is over


@dataclass(slots=True)
class BelowBaseline:
    """What lies below the baseline of a partition (CONTRACT section 6): lost when Redis came back empty."""

    offset: int
    events: int = 0  # without outcome


@dataclass(slots=True)
class Report:
    """The audit's result; `clean` decides the exit code."""

    totals: Totals = field(default_factory=Totals)
    counts: dict[Finding, int] = field(default_factory=dict)
    examples: dict[Finding, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  # what could not be judged
    below_baselines: dict[int, BelowBaseline] = field(default_factory=dict)  # by partition
    first_ms: int = 0  # earliest and latest processedAt
    last_ms: int = 0
    _latency: list[int] = field(default_factory=lambda: [0] * 2048, repr=False)

    @property
    def clean(self) -> bool:
        return not self.counts

    def add(self, kind: Finding, text: str) -> None:
        """Count a violation; the first ten of a kind are kept as examples."""
        self.counts[kind] = self.counts.get(kind, 0) + 1
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES:
            examples.append(text)

    def lost_below(self, partition: int, baseline: int) -> None:
        """An event without outcome, below the baseline of its partition: no violation, but to be told."""
        self.below_baselines.setdefault(partition, BelowBaseline(baseline)).events += 1

    def done_at(self, processed_ms: int, sent_ms: int) -> None:
        """Take note when an event was processed; `sent_ms` 0: its latency is not known."""
        if not self.first_ms or processed_ms < self.first_ms:
            self.first_ms = processed_ms
        self.last_ms = max(self.last_ms, processed_ms)
        if sent_ms:
            self._latency[_bucket(processed_ms - sent_ms)] += 1

    def latency_ms(self, share: float) -> int:
        """Latency from (scheduled) send to processed that this share does not exceed; 0 if unknown.

        Exact below 256 ms, within 1/128 above.
        """
        total = sum(self._latency)
        below = 0
        for bucket, count in enumerate(self._latency):
            below += count
            if count and below >= share * total:
                return _upper(bucket)
        return 0

    def events_per_s(self) -> float:
        """Processed events by the time between the first and the last of them."""
        span_ms = self.last_ms - self.first_ms
        return self.totals.processed * 1000 / span_ms if span_ms > 0 else 0.0

    def as_json(self) -> dict[str, Any]:
        """Everything, for `--json`."""
        return {
            "clean": self.clean,
            "findings": {
                kind: {"count": count, "examples": self.examples[kind]} for kind, count in self.counts.items()
            },
            "notes": self.notes,
            "below_baselines": [
                {"partition": partition, "offset": below.offset, "events_without_outcome": below.events}
                for partition, below in sorted(self.below_baselines.items())
            ],
            "totals": {name: getattr(self.totals, name) for name in Totals.__slots__},
            "events_per_s": round(self.events_per_s(), 1),
            "latency_ms": {"p50": self.latency_ms(0.5), "p99": self.latency_ms(0.99)},
        }

    def table(self) -> Table:
        """The totals, for a terminal."""
        table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("what")
        table.add_column("value", justify="right")
        for name in Totals.__slots__:
            value = getattr(self.totals, name)
            if value or name in _ALWAYS_SHOWN:
                table.add_row(name.replace("_", " "), f"{value:,}")
        if self.events_per_s():
            table.add_row("events/s", f"{self.events_per_s():,.0f}")
        if any(self._latency):
            table.add_row("latency p50", f"{self.latency_ms(0.5):,} ms")
            table.add_row("latency p99", f"{self.latency_ms(0.99):,} ms")
        return table

    def lines(self) -> list[str]:
        """What could not be judged, what lies below baselines, the findings with examples, the verdict."""
        lines = [*self.notes]
        lines += [
            f"below the baseline of partition {partition} (offset {below.offset}):"
            f" {below.events:,} events without outcome (Redis was empty; see on_redis_empty)"
            for partition, below in sorted(self.below_baselines.items())
        ]
        for kind in KINDS:
            if kind in self.counts:
                lines.append(f"{kind}: {self.counts[kind]:,}")
                lines += [f"  {example}" for example in self.examples[kind]]
        return [*lines, self.verdict()]

    def verdict(self) -> str:
        """All of it in one line."""
        if not self.clean:
            violations = sum(self.counts.values())
            kinds = ", ".join(f"{kind} {self.counts[kind]:,}" for kind in KINDS if kind in self.counts)
            return f"{violations:,} violation{'s' if violations > 1 else ''}: {kinds}"
        if self.below_baselines:
            return "the audit is clean: no violation at or above the baselines"
        return "the audit is clean: no violation"


def _bucket(ms: int) -> int:
    """Logarithmic buckets with 128 steps for each doubling above 256 ms."""
    value = min(max(ms, 0), _LATENCY_CAP_MS)
    shift = max(value.bit_length() - 8, 0)
    return (shift << 7) + (value >> shift) if shift else value


def _upper(bucket: int) -> int:
    if bucket < 256:
        return bucket
    shift = (bucket >> 7) - 1
    return ((bucket - (shift << 7)) + 1 << shift) - 1
