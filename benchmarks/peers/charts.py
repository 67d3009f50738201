"""Draws a comparison: `python -m benchmarks.peers.charts RESULTS.json FOLDER`. Needs matplotlib."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib import pyplot

from benchmarks.peers.results import OURS, PIPELINED, TITLES, Results

matplotlib.use("svg")
# The same results give the same file; letters stay letters.
matplotlib.rcParams.update({"svg.hashsalt": "peers", "svg.fonttype": "none", "font.size": 9})
_METADATA = {"Date": None, "Creator": None}


def _style(peer: str) -> dict[str, Any]:
    if peer in OURS:
        return {"linewidth": 2.5, "linestyle": "-"}
    return {"linewidth": 1.5, "linestyle": "--" if peer in PIPELINED else ":"}


def draw_throughput(results: Results, path: Path) -> None:
    """Medians over the number of processes, with the range of the rounds."""
    figure, axes = pyplot.subplots(figsize=(7.5, 4.5), layout="constrained")
    counts = results.processes()
    for peer in results.peers():
        measured = [count for count in counts if results.of(peer, count)]
        medians = [results.median(peer, count, lambda run: run.events_per_s) or 0.0 for count in measured]
        ranges: list[list[float]] = [[], []]
        for count, median in zip(measured, medians, strict=True):
            values = [run.events_per_s for run in results.of(peer, count)]
            ranges[0].append(median - min(values))
            ranges[1].append(max(values) - median)
        axes.errorbar(
            measured, medians, yerr=ranges, marker="o", capsize=3, label=TITLES[peer], **_style(peer)
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.set_ylim(bottom=0)
    axes.set_xlabel("processes")
    axes.set_ylabel("events/s")
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    figure.savefig(path, metadata=_METADATA)
    pyplot.close(figure)


def draw_cpu(results: Results, path: Path) -> None:
    """CPU time per event of each peer and of Redis, at its best number of processes."""
    found = [best for peer in results.peers() if (best := results.best([peer])) is not None]
    figure, axes = pyplot.subplots(figsize=(7.5, 3.5), layout="constrained")
    names = [f"{TITLES[peer]} ({count})" for peer, count, _per_s in found]
    own = [results.median(peer, count, lambda run: run.peer_us) or 0.0 for peer, count, _per_s in found]
    redis = [results.median(peer, count, lambda run: run.redis_us) or 0.0 for peer, count, _per_s in found]
    axes.barh(names, own, label="peer, all its processes")
    axes.barh(names, redis, left=own, label="Redis")
    axes.invert_yaxis()
    axes.set_xlabel("us of CPU per event, at the best number of processes")
    axes.grid(axis="x", alpha=0.3)
    axes.legend(frameon=False)
    figure.savefig(path, metadata=_METADATA)
    pyplot.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    results = Results.read(options.results)
    draw_throughput(results, options.folder / "peers-throughput.svg")
    draw_cpu(results, options.folder / "peers-cpu.svg")


if __name__ == "__main__":
    main()
