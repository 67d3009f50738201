"""What came of a chaos run: by fault kind and by round, as a table and as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from rich.table import Table


@dataclass(slots=True)
class Injected:
    """Of one kind: how often it was injected, how often that hit something, and how many hits there were."""

    injected: int = 0
    hit: int = 0
    hits: int = 0

    def add(self, hits: int) -> None:
        """One more."""
        self.injected += 1
        self.hit += hits > 0
        self.hits += hits


@dataclass(slots=True)
class RoundReport:
    """One round. `seconds` run from the first record to the moment when all were final and committed."""

    number: int
    lossy: bool
    configuration: str
    records: int = 0
    seconds: float = 0.0
    totals: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def line(self) -> str:
        """One line for a terminal."""
        kind = "lossy" if self.lossy else "strict"
        rate = self.records / self.seconds if self.seconds else 0.0
        found = f"{len(self.problems)} PROBLEMS" if self.problems else "clean"
        name = f"round {self.number} ({kind}; {self.configuration})"
        return f"{name}: {self.records:,} records, {rate:,.0f}/s to the end: {found}"


@dataclass(slots=True)
class ChaosReport:
    """All of it; `good` decides the exit code."""

    seed: int
    rate_per_s: float
    kinds: dict[str, Injected]
    rounds: list[RoundReport] = field(default_factory=list)

    @property
    def records(self) -> int:
        return sum(it.records for it in self.rounds)

    @property
    def events_per_s(self) -> float:
        """Records by the time from the first to the end of the last one, over all rounds."""
        seconds = sum(it.seconds for it in self.rounds)
        return self.records / seconds if seconds else 0.0

    @property
    def missed(self) -> list[str]:
        """Kinds that never hit anything."""
        return [name for name, kind in self.kinds.items() if not kind.hits]

    @property
    def good_but_for_hits(self) -> bool:
        """No violation, but kinds that never hit."""
        return bool(self.missed) and not any(it.problems for it in self.rounds)

    @property
    def good(self) -> bool:
        return not self.missed and not any(it.problems for it in self.rounds)

    def as_json(self) -> dict[str, Any]:
        """Everything."""
        return {
            **asdict(self),
            "records": self.records,
            "events_per_s": round(self.events_per_s),
            "missed": self.missed,
            "good": self.good,
        }

    def table(self) -> Table:
        """By kind, for a terminal."""
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column("fault")
        for name in ("injected", "that hit", "hits"):
            table.add_column(name, justify="right")
        for name, kind in self.kinds.items():
            style = "" if kind.hits else "bold red"
            table.add_row(name, f"{kind.injected:,}", f"{kind.hit:,}", f"{kind.hits:,}", style=style)
        return table
