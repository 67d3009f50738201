"""The comparison with the peers runs apart (`make peers`). Here: that its plain loops and its check work.

The two loops need no packages of their own. They run on a real Kafka, in a group of two processes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE
from benchmarks.peers.drain import PARTITIONS, Servers, backlog, check, drain
from benchmarks.peers.results import OURS, Results, Run, bars
from benchmarks.peers.task import SCRIPT, effect
from eventproc.settings import Settings
from eventproc.workload import produce
from tests.kafka_server import KafkaServer, why_not
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(600)

EVENTS = 2_000 if SMOKE else 20_000
PROCESSES = 2


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    if reason := why_not():
        pytest.skip(f"no real Kafka: {reason}")
    with KafkaServer() as kafka, RedisServer() as redis:
        yield Servers(kafka, redis)


@pytest.mark.parametrize("peer", ["loop", "pipeline"])
def test_plain_loop(benchmark: Any, figures: Figures, servers: Servers, peer: str) -> None:
    runs: list[Run] = []
    benchmark.pedantic(
        lambda: runs.append(drain(peer, PROCESSES, 1, EVENTS, servers)),  # fails when its check does
        rounds=1,
    )
    figures.add(
        events_per_s=round(runs[0].events_per_s),
        peer_us=round(runs[0].peer_us, 1),
        redis_us=round(runs[0].redis_us, 1),
        processes=PROCESSES,
        audit="clean",
    )


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        ("", ""),
        ("left out", "199 of 200 events are processed"),
        ("out of order", "reordered"),
        ("pushed twice", "doubled"),
    ],
)
def test_check_notices(servers: Servers, tmp_path: Path, damage: str, told: str) -> None:
    """One event's effects are left out, or wrong."""
    topic = f"check-{time.time_ns()}"
    redis = servers.redis.client()
    redis.flushall()
    settings = Settings.model_validate(
        {
            "kafka_bootstrap_servers": servers.kafka.bootstrap,
            "kafka_topic": topic,
            "kafka_group_id": topic,
            "redis_url": servers.redis.url,
            "topic_partitions": PARTITIONS,
        }
    )
    workload = backlog(topic, 200)
    produce(settings, workload, tmp_path / "ledger")
    events = [orjson.loads(record.value or b"") for record in workload.main()]
    if damage == "left out":
        del events[-1]
    elif damage == "out of order":
        events.reverse()
    script = redis.register_script(SCRIPT)
    for event in events:
        assert script(*effect(event)) == 1
    if damage == "pushed twice":
        redis.rpush(f"order:{events[-1]['userId']}", events[-1]["payload"]["seq"])
    if told:
        with pytest.raises(AssertionError, match=told):
            check(settings, tmp_path / "ledger", 200)
    else:
        assert script(*effect(events[0])) == 0, "a duplicate must have no effect"
        check(settings, tmp_path / "ledger", 200)


def test_bars_compare_the_best_of_each() -> None:
    def run(peer: str, processes: int, events_per_s: int) -> Run:
        return Run(peer, processes, 1, events_per_s, 1.0, 1.0, 1.0, 1.0, 0.0)

    results = Results({}, [run("loop", 1, 3_000), run("loop", 2, 10_000), run("pipeline", 1, 45_000)])
    results.runs += [run(OURS[0], 4, 41_000), run(OURS[1], 8, 50_000)]
    verdicts = [line.rpartition("|")[0].rpartition("|")[2].strip() for line in bars(results)[2:]]
    assert verdicts == ["met", "missed", "met", "met"]
