"""What the settings that docs/tuning.md recommends change: CPU time and memory for each event.

Every variant drains the same backlog in a deployment of its own, all of them in turns, so that a slow hour of
the machine is everybody's. There are no bars: these are choices. CPU time is compared, rather than events/s,
because it depends less on what else the machine does.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from eventproc.workload import Workload

pytestmark = pytest.mark.timeout(1800)

ROUNDS = 1 if SMOKE else 3
USERS = 100 if SMOKE else 1000
EVENTS = 40 * USERS
_LEAST_S = 0.01

SMALL_QUEUE = {"queued.max.messages.kbytes": "1024", "queued.min.messages": "1000"}
VARIANTS: dict[str, dict[str, Any]] = {
    "default": {},
    "locking_partition": {"locking": "partition"},
    "batch_max_100": {"batch_max": 100},
    "batch_max_2000": {"batch_max": 2000},
    "order_max_len_10": {"order_max_len": 10},
    "small_queue": {"kafka_config": json.dumps(SMALL_QUEUE)},
}
if SMOKE:
    VARIANTS = {name: VARIANTS[name] for name in ("default", "order_max_len_10")}


@dataclass(frozen=True, slots=True)
class Run:
    """One drain: us of CPU time and bytes of Redis for each event; MiB of all workers together."""

    redis_us: float
    workers_us: float
    redis_bytes: float
    workers_mib: float
    events_per_s: float


def data_bytes(server: redis.Redis) -> int:
    """What Redis uses, without its clients' buffers."""
    info: dict[str, int] = server.info("memory")
    return info["used_memory"] - info["mem_clients_normal"]


def private_bytes(pid: int) -> int:
    """Memory that no other process shares."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def run(settings: dict[str, Any]) -> Run:
    """Drain one backlog; the audit must be clean."""
    workload = Workload(
        users=USERS,
        events_per_user=EVENTS // USERS,
        shuffle_window=0,
        payload_bytes=0,
        start_ms=time.time_ns() // 1_000_000,
    )
    with Deployment(**settings) as deployment:
        with deployment.frozen():
            deployment.produce(workload)
        with redis.Redis.from_url(deployment.settings.redis_url.get_secret_value()) as server:
            bytes_before, used_before = data_bytes(server), deployment.usage()
            begun = time.perf_counter()
            deployment.thaw()
            deployment.wait_processed(EVENTS, _LEAST_S)
            elapsed_s = time.perf_counter() - begun
            used = deployment.usage() - used_before
            taken = data_bytes(server) - bytes_before
        workers = [worker["pid"] for worker in deployment.status()["workers"]]
        memory = sum(map(private_bytes, workers))
        assert deployment.audit().totals.processed == EVENTS
    return Run(
        used.redis / EVENTS * 1e6,
        used.workers / EVENTS * 1e6,
        taken / EVENTS,
        memory / 2**20,
        EVENTS / elapsed_s,
    )


def test_tuning(benchmark: Any, figures: Figures) -> None:
    runs: dict[str, list[Run]] = {name: [] for name in VARIANTS}

    def turn() -> None:
        for name, settings in VARIANTS.items():
            runs[name].append(run(settings))

    benchmark.pedantic(turn, rounds=ROUNDS)
    for name, found in runs.items():
        figures.add(
            **{
                name: "  ".join(
                    f"{value}={statistics.median(getattr(one, value) for one in found):.1f}"
                    for value in Run.__slots__
                )
            }
        )
    figures.add(events=EVENTS, users=USERS, load_average=round(os.getloadavg()[0], 1))
