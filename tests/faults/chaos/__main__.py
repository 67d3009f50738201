"""`python -m tests.faults.chaos --minutes 30 --seed 7`; exit code 1 on any violation or kind without hits."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import sys
from pathlib import Path

from rich.console import Console

from tests.faults.chaos.runner import Plan, run

_FOLDER = Path(".chaos")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults.chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30, help="time under load (default 30)")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6), help="default: a random one")
    parser.add_argument("--rate", type=float, default=7000, help="events per second (default 7000)")
    parser.add_argument("--folder", type=Path, default=_FOLDER, help="for reports and failed rounds' files")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    print(f"chaos: seed {options.seed}, {options.minutes:g} minutes, {options.rate:g} events/s", flush=True)
    plan = Plan(options.minutes, options.seed, options.rate, options.folder)
    report = run(plan, lambda line: print(line, flush=True))
    Console().print(report.table())
    path = options.folder / "last.json"
    path.write_text(json.dumps(report.as_json(), indent=1))
    print(
        f"seed {report.seed}: {report.records:,} records, {report.events_per_s:,.0f}/s, "
        f"{sum(bool(it.problems) for it in report.rounds)} of {len(report.rounds)} rounds with problems, "
        f"kinds without a hit: {', '.join(report.missed) or 'none'}; all of it in {path}"
    )
    return 0 if report.good else 1


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    os._exit(code)  # a fault that hangs has been told, and is not waited for
