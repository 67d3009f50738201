"""eventproc and its peers in turns: `python -m benchmarks.peers.compare --results FILE` (`make peers`).

In each round every peer runs once with each number of processes. The file is written after each run; what it
holds already of the same commit is not run again, so a comparison that was interrupted goes on. A run that
fails, as when its check does, is told and left out; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.conftest import environment
from benchmarks.peers.drain import PROGRAMS, THEIRS, Servers, drain
from benchmarks.peers.results import ONE_CALL_PER_EVENT, OURS, TITLES, Results, tables
from tests.kafka_server import KafkaServer, version, why_not
from tests.redis_server import RedisServer

#: Members that come within this time join in one rebalance.
_GROUPS_FORM_AT_ONCE = {"group.initial.rebalance.delay.ms": "2000"}
_PACKAGES = ("confluent-kafka", "faststream", "quixstreams", "redis", "hiredis", "sentry-arroyo")
_VERSIONS = f"""
import importlib.metadata, json
names = {_PACKAGES!r}
print(json.dumps({{name: importlib.metadata.version(name) for name in names
                  if any(importlib.metadata.distributions(name=name))}}))
"""


def _versions(python: Path) -> dict[str, str]:
    done = subprocess.run([python, "-c", _VERSIONS], capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(done.stdout)
    return found


def surroundings() -> dict[str, object]:
    """What the figures depend on."""
    return {
        **environment(),
        "kafka": version(),
        "packages": _versions(Path(sys.executable)),
        "packages_of_peers": _versions(THEIRS) if THEIRS.exists() else {},
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--results", type=Path, required=True)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument(
        "--events-by-call", type=int, default=0, help="for peers with a call per event; 0: as --events"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--processes", type=_numbers, default=[1, 2, 4, 8])
    parser.add_argument("--peers", type=lambda text: text.split(","), default=[*PROGRAMS, *OURS])
    options = parser.parse_args()
    if unknown := set(options.peers) - set(TITLES):
        parser.error(f"--peers: {', '.join(sorted(unknown))} is none of {', '.join(TITLES)}")
    return options


def _open(path: Path) -> Results:
    """What the file holds of this commit; else nothing."""
    here = surroundings()
    if path.exists():
        found = Results.read(path)
        if found.environment["commit"] == here["commit"]:
            return found
    return Results(here, [])


def main() -> int:
    options = _arguments()
    if reason := why_not():
        print(f"peers: no real Kafka: {reason}", file=sys.stderr)
        return 1
    results = _open(options.results)
    failed = 0
    with KafkaServer(overrides=_GROUPS_FORM_AT_ONCE) as kafka, RedisServer() as redis:
        servers = Servers(kafka, redis)
        for number in range(1, options.rounds + 1):
            for processes in options.processes:
                for peer in options.peers:
                    if any(run.round == number for run in results.of(peer, processes)):
                        continue
                    events = options.events
                    if peer in ONE_CALL_PER_EVENT:
                        events = options.events_by_call or events
                    try:
                        run = drain(peer, processes, number, events, servers)
                    except Exception as error:  # the others are to be measured all the same
                        failed += 1
                        print(f"round {number}: {TITLES[peer]}, {processes}: FAILED: {error}", flush=True)
                        continue
                    results.runs.append(run)
                    results.write(options.results)
                    print(
                        f"round {number}: {TITLES[peer]}, {processes}: {run.events_per_s:,.0f} events/s, "
                        f"us CPU/event {run.peer_us:.1f} + {run.redis_us:.1f} Redis, load {run.load:.1f}",
                        flush=True,
                    )
    print("", *tables(results), sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
