"""`python -m tests.simulation.run [SEEDS [FAULT,…]]`: play many simulated histories on all cores.

SEEDS is a number (as many, from seed 0 on) or a range `FIRST-LAST`; only the kinds of fault that are named
strike. Tells which seeds fail; exit code 1 if a history violates a rule.
"""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from tests.simulation.transitions import EXPECTED, RARE
from tests.simulation.world import FAULTS, Violation, simulate

CHUNK = 50
REPORT_S = 5.0
MOST_FAILURES = 20


@dataclass
class Part:
    """What came of some seeds."""

    played: int = 0
    counts: Counter[str] = field(default_factory=Counter)
    failures: list[tuple[int, str]] = field(default_factory=list)

    def add(self, part: Part) -> None:
        """Add up."""
        self.played += part.played
        self.counts.update(part.counts)
        self.failures += part.failures


def play(seeds: range, **options: Any) -> Part:
    """Play these, one after the other, in this process; `options` are World's."""
    part = Part(len(seeds))
    gc.set_threshold(100_000, 20, 50)  # a world is garbage as a whole, and soon
    for seed in seeds:
        try:
            part.counts.update(simulate(seed, **options))
        except Violation as violation:
            part.failures.append((seed, str(violation)))
        except Exception:  # the product broke down
            part.failures.append((seed, f"seed {seed}: {traceback.format_exc(limit=-3)}"))
    return part


def play_on_all_cores(seeds: range, **options: Any) -> Iterator[Part]:
    """The same on every core, part by part; it ends early once enough have failed."""
    parts = [seeds[at : at + CHUNK] for at in range(0, len(seeds), CHUNK)]
    failed = 0
    processes = ProcessPoolExecutor(
        os.cpu_count(),
        mp_context=multiprocessing.get_context("spawn"),
        initializer=os.nice,
        initargs=(19,),  # what is tested beside it has clocks to keep
    )
    with processes as pool:
        for part in pool.map(partial(play, **options), parts):
            yield part
            failed += len(part.failures)
            if failed >= MOST_FAILURES:
                pool.shutdown(cancel_futures=True)
                return


def read_seeds(text: str) -> range:
    """`100` or `500-599`."""
    first, dash, last = text.partition("-")
    return range(int(first), int(last) + 1) if dash else range(int(first))


def main() -> int:
    """Play what the command line says; progress and failures go to standard output."""
    seeds = read_seeds(sys.argv[1] if len(sys.argv) > 1 else "20000")
    only = sys.argv[2].split(",") if len(sys.argv) > 2 else list(FAULTS)
    total, begun, reported = Part(), time.monotonic(), 0.0
    for part in play_on_all_cores(seeds, only=only):
        total.add(part)
        for seed, told in part.failures:
            print(f"FAILED {told}\n  replay it: python -m tests.simulation.replay {seed}", flush=True)
        elapsed = time.monotonic() - begun
        if elapsed - reported >= REPORT_S or total.played == len(seeds):
            reported = elapsed
            failed, rate = len(total.failures), total.played / elapsed
            print(f"{total.played} of {len(seeds)} seeds, {failed} failed, {rate:.0f}/s", flush=True)
    print("faults:", ", ".join(f"{name} {total.counts[f'fault:{name}']}" for name in FAULTS))
    missed = sorted(name for name in EXPECTED if not total.counts[name])
    print("transitions not reached:", ", ".join(missed) or "none")
    rare = sorted(name for name in RARE if not total.counts[name])
    print("rare transitions not reached:", ", ".join(rare) or "none")
    return 1 if total.failures else 0


if __name__ == "__main__":
    sys.exit(main())
