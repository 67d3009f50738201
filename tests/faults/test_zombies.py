"""A worker stopped exactly before it writes, replaced by another host's, and woken (CONTRACT 6, fence).

Its successor is stopped before its own first write: whatever changes then was written by the zombie, and no
revision of the successor's stands in its way, only the fence.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventproc.workload import Workload
from tests.faults.chaos.configurations import Configuration
from tests.faults.test_crash_points import stopped_worker
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import Deployment, event
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)

#: Each is passed often by 500 events in batches of 20.
BEFORE_A_WRITE = {"before_acquire": 8, "before_finalize": 5, "before_commit": 2}
#: The first host never takes anything back: it is to be seen standing by.
FOR_EVER_MS = 600_000
LEASE_MS = 1000

Hosts = Callable[[Configuration], tuple[Deployment, Deployment]]


@pytest.fixture
def hosts(embedded_broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Hosts]:
    """Two deployments on one topic and one Redis, as on two hosts; their runs are in one record."""
    made: list[Deployment] = []
    server = RedisServer().start()
    topic = embedded_broker.topics(1)

    def make(configuration: Configuration) -> tuple[Deployment, Deployment]:
        for name, lease_ms in (("a", FOR_EVER_MS), ("b", LEASE_MS)):
            folder = tmp_path / name
            folder.mkdir()
            settings = {**configuration.settings, "lease_ms": lease_ms, "inflight_ttl_ms": FOR_EVER_MS}
            settings |= {"heartbeat_timeout_ms": FOR_EVER_MS}
            settings |= {"kafka_topic": topic, "batch_max": 20, "commit_interval_ms": 20}
            settings |= {"simulate_runs_dir": str(made[0].runs)} if made else {}
            made.append(Deployment(embedded_broker, server, folder, **settings))
        return made[0], made[1]

    yield make
    for it in made:
        it.close()
    server.close()


def workload_for(it: Deployment) -> Workload:
    return Workload(
        topic=it.topic,
        users=50,
        shuffle_window=50,
        duplicate_ratio=0.05,
        failing_ratio=0.04,
        unsequenced_ratio=0.02,
        missing_seqs=2,
        stale=3,
        conflicts=3,
        invalid_records=3,
        rate=1000,
    )


def memory(server: RedisServer) -> dict[bytes, Any]:
    """All that Redis holds."""
    client = server.client()
    return {key: client.dump(key) for key in client.scan_iter(count=1000)}


@pytest.mark.parametrize(
    ("point", "configuration"),
    [(point, Configuration("sync", "event")) for point in BEFORE_A_WRITE]
    + [("before_finalize", Configuration("async", "partition", 3))],
    ids=str,
)
def test_a_zombie_writes_nothing(point: str, configuration: Configuration, hosts: Hosts) -> None:
    a, b = hosts(configuration)
    a.start(crash_at=f"{point}:{BEFORE_A_WRITE[point]}:stop:0")
    look = stopped_worker(a, 0)
    a.produce(workload_for(a))
    pid = a.until(look, f"the stop at {point}")
    a.send(event("behind", 1))  # there is work for its successor in any case
    before = a.hash(f"partition:{a.topic}:0")

    b.start(crash_at="before_load:1:stop:0")
    b.until(stopped_worker(b, 0), "the successor, before its first write")
    taken = memory(b.server)
    assert int(b.hash(f"partition:{b.topic}:0")["epoch"]) > int(before["epoch"])

    os.kill(pid, signal.SIGCONT)
    a.until(lambda: a.worker()["state"] == "standby", "the zombie's end")
    assert "has been taken by another owner" in a.log()
    assert "fenced: another owner has the partition, standing by" in a.log()
    assert memory(b.server) == taken
    assert a.committed()[0] <= a.floors()[0]

    os.kill(b.worker_pids()[0], signal.SIGCONT)
    b.idle()
    assert [a.worker()["state"], b.worker()["state"]] == ["standby", "running"]
    totals = a.audit(crashed=True, ledger=False).totals
    assert totals.processed > 400
    assert totals.failed > 10
    assert a.stop() == b.stop() == 0
    assert a.locks() == []
    assert a.committed() == a.floors() == a.ends_of()
