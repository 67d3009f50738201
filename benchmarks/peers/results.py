"""What a comparison measured: medians, spreads, tables: `python -m benchmarks.peers.results FILE`.

Imports nothing beyond Python, for both environments.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

#: By name: what the tables and charts call it, in their order.
TITLES = {
    "loop": "confluent-kafka + redis-py, a call per event",
    "faststream": "FastStream, a call per event",
    "quix": "Quix Streams, a call per event",
    "arroyo": "arroyo, a call per event",
    "arroyo-batch": "arroyo, pipelines of 500",
    "pipeline": "confluent-kafka + redis-py, pipelines of 500",
    "eventproc-event": "eventproc, locking = event",
    "eventproc-partition": "eventproc, locking = partition",
}
ONE_CALL_PER_EVENT = ("loop", "faststream", "quix", "arroyo")
PIPELINED = ("pipeline", "arroyo-batch")
OURS = ("eventproc-event", "eventproc-partition")
#: eventproc by the best peer that awaits a call per event, and by the plain loop with pipelines.
LEAST_BY_CALLS = 4.0
LEAST_BY_PIPELINE = 1.0


@dataclass(frozen=True, slots=True)
class Run:
    """One peer, once. CPU seconds are of all its processes together, of Redis, of Kafka."""

    peer: str
    processes: int
    round: int
    events: int
    elapsed_s: float
    peer_cpu_s: float
    redis_cpu_s: float
    kafka_cpu_s: float
    load: float  # the machine's load average when it began

    @property
    def events_per_s(self) -> float:
        return self.events / self.elapsed_s

    @property
    def peer_us(self) -> float:
        return self.peer_cpu_s / self.events * 1e6

    @property
    def redis_us(self) -> float:
        return self.redis_cpu_s / self.events * 1e6


@dataclass(slots=True)
class Results:
    """All runs, and what they depend on (versions, commit, processor, date)."""

    environment: dict[str, Any]
    runs: list[Run]

    @classmethod
    def read(cls, path: Path) -> Results:
        document = json.loads(path.read_text())
        return cls(document["environment"], [Run(**run) for run in document["runs"]])

    def write(self, path: Path) -> None:
        path.parent.mkdir(exist_ok=True)
        document = {"environment": self.environment, "runs": [asdict(run) for run in self.runs]}
        path.write_text(json.dumps(document, indent=1) + "\n")

    def peers(self) -> list[str]:
        """Of which there is a run, in the order of TITLES."""
        measured = {run.peer for run in self.runs}
        return [peer for peer in TITLES if peer in measured]

    def processes(self) -> list[int]:
        return sorted({run.processes for run in self.runs})

    def rounds(self) -> int:
        """That are complete."""
        kinds = {(run.peer, run.processes) for run in self.runs}
        return min(len(self.of(*kind)) for kind in kinds)

    def of(self, peer: str, processes: int) -> list[Run]:
        return [run for run in self.runs if (run.peer, run.processes) == (peer, processes)]

    def median(self, peer: str, processes: int, figure: Callable[[Run], float]) -> float | None:
        """None if it was not measured."""
        values = [figure(run) for run in self.of(peer, processes)]
        return statistics.median(values) if values else None

    def best(self, peers: Iterable[str]) -> tuple[str, int, float] | None:
        """Peer, processes and events/s of the highest median; None if none of them was measured."""
        found = [
            (peer, processes, per_s)
            for peer in peers
            for processes in self.processes()
            if (per_s := self.median(peer, processes, lambda run: run.events_per_s)) is not None
        ]
        return max(found, key=lambda one: one[2], default=None)


def _cell(runs: list[Run], figure: Callable[[Run], float], form: str) -> str:
    if not runs:
        return "-"
    values = sorted(map(figure, runs))
    text = format(statistics.median(values), form)
    return text if len(values) == 1 else f"{text} ({values[0]:{form}} to {values[-1]:{form}})"


def throughput_table(results: Results) -> list[str]:
    """Markdown: events/s by processes, medians with the least and the most."""
    counts = results.processes()
    lines = [f"| events/s | {' | '.join(map(str, counts))} |", "|---|" + "---|" * len(counts)]
    for peer in results.peers():
        cells = [_cell(results.of(peer, count), lambda run: run.events_per_s, ",.0f") for count in counts]
        lines.append(f"| {TITLES[peer]} | {' | '.join(cells)} |")
    return lines


def cpu_table(results: Results) -> list[str]:
    """Markdown: us of CPU per event, of the peer and of Redis, by processes."""
    counts = results.processes()
    lines = [
        f"| us CPU/event: peer + Redis | {' | '.join(map(str, counts))} |",
        "|---|" + "---|" * len(counts),
    ]
    for peer in results.peers():
        cells = []
        for count in counts:
            runs = results.of(peer, count)
            own = _cell(runs, lambda run: run.peer_us, ".0f").partition(" ")[0]
            redis = _cell(runs, lambda run: run.redis_us, ".0f").partition(" ")[0]
            cells.append(f"{own} + {redis}")
        lines.append(f"| {TITLES[peer]} | {' | '.join(cells)} |")
    return lines


def bars(results: Results) -> list[str]:
    """Markdown: the bars of the comparison, for each way of locking."""
    calls, pipelined = results.best(ONE_CALL_PER_EVENT), results.best(PIPELINED)
    lines = ["| bar, each at its best process count | value | |", "|---|---|---|"]
    for peer in OURS:
        ours = results.best([peer])
        for what, theirs, least in (
            (f"{LEAST_BY_CALLS:g} times the best with a call per event", calls, LEAST_BY_CALLS),
            ("not slower than the best with pipelines of 500", pipelined, LEAST_BY_PIPELINE),
        ):
            if ours is None or theirs is None:
                continue
            ratio = ours[2] / theirs[2]
            verdict = "met" if ratio >= least else "missed"
            against = f"{ours[2]:,.0f} by {theirs[2]:,.0f} ({theirs[0]}, {theirs[1]} processes)"
            lines.append(f"| {TITLES[peer]}: {what} | {ratio:.2f}: {against} | {verdict} |")
    return lines


def tables(results: Results) -> list[str]:
    """All of it, as docs/performance.md shows it."""
    counted = {(run.peer in ONE_CALL_PER_EVENT, run.events) for run in results.runs}
    told = [f"environment: {json.dumps(results.environment)}", f"complete rounds: {results.rounds()}"]
    told += [
        f"{'a call per event' if by_call else 'the others'}: {events:,} events"
        for by_call, events in sorted(counted)
    ]
    loads = sorted(run.load for run in results.runs)
    told.append(f"load average {loads[0]:.1f} to {loads[-1]:.1f}, median {statistics.median(loads):.1f}")
    return [*told, "", *throughput_table(results), "", *cpu_table(results), "", *bars(results)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    print(*tables(Results.read(parser.parse_args().results)), sep="\n")


if __name__ == "__main__":
    main()
