"""Every kind of fault alone under load: it hits, all comes right, the checker finds nothing.

It strikes until it has hit, or as often as EVENTPROC_TEST_FAULT_HITS says.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eventproc.workload import Workload
from tests.faults.chaos.fault import Fault, Loss
from tests.faults.chaos.ground import Ground
from tests.faults.chaos.mock_broker import MockServers
from tests.faults.chaos.registry import FAULTS, MIXED
from tests.faults.chaos.servers import Behind, Servers
from tests.integration.supervised import wait_for
from tests.kafka_server import KafkaUnavailable, why_not

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("chaos")]

HITS = int(os.environ.get("EVENTPROC_TEST_FAULT_HITS", "1"))
MISSES = 3
RATE_PER_S = 1500
#: The load goes on for as long as it takes to inject; this much is there to be produced.
EVENTS = 60_000
SEED = 1
#: Redis forgets: a host that stands by may find the partition free before its owner knows.
FORGETFUL = [name for name, fault in MIXED.items() if fault.loss != "nothing"]


@pytest.fixture(scope="module")
def servers() -> Iterator[Servers]:
    if reason := why_not():
        pytest.skip(f"no real Kafka: {reason}")
    try:
        servers = Servers().__enter__()
    except KafkaUnavailable as error:
        pytest.skip(f"no real Kafka: {error}")
    yield servers
    servers.__exit__(None, None, None)


@pytest.fixture(scope="module")
def mock_servers() -> Iterator[MockServers]:
    with MockServers() as servers:
        yield servers


def workload_for(topic: str, loss: Loss) -> Workload:
    """Everything that may happen to an event, as far as what comes of it is decided by the log alone."""
    mixed: dict[str, Any] = {"duplicate_ratio": 0.02, "stale": 20, "conflicts": 20, "missing_seqs": 10}
    if loss == "effects":  # a copy of what is lost is no duplicate any more
        mixed = {}
    return Workload(
        topic=topic,
        users=EVENTS // 50,
        events_per_user=50,
        shuffle_window=50,
        failing_ratio=0.02,
        unsequenced_ratio=0.01,
        invalid_records=20,
        tombstones=5,
        rate=RATE_PER_S,
        **mixed,
    )


@pytest.mark.parametrize("name", FAULTS)
def test_alone(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    fault = FAULTS[name]
    servers: Behind = request.getfixturevalue("servers" if name in MIXED else "mock_servers")
    strike(fault, servers, tmp_path, fault.hosts)


@pytest.mark.parametrize("name", FORGETFUL)
def test_alone_with_a_host_that_stands_by(name: str, servers: Servers, tmp_path: Path) -> None:
    strike(FAULTS[name], servers, tmp_path, 2)


def strike(fault: Fault, servers: Behind, folder: Path, hosts: int) -> None:
    """Let it happen under load until it has hit, and judge what came of it."""
    rng = random.Random(f"{SEED}/{fault.name}")
    hits: list[int] = []
    with Ground(servers, folder, hosts=hosts) as ground:
        ground.start()
        load = ground.put_under(workload_for(ground.topic, fault.loss))
        while sum(map(bool, hits)) < HITS and len(hits) < HITS + MISSES:
            injection = fault.inject(ground, rng)
            _pass_time(injection.lasts_s)
            hits.append(injection.heal())
            _pass_time(0.3)
        load.stop()
        ground.drain()
        report = ground.judge()
        assert report.clean, f"{json.dumps(report.as_json(), indent=1)}\n{ground.hosts[0].log()[-3000:]}"
        ground.stop()
    assert sum(map(bool, hits)) == HITS, hits


def _pass_time(seconds: float) -> None:
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= until, seconds + 10)
