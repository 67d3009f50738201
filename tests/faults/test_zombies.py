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


def memory(server: RedisServer) -> dict[bytes, Any]:
    """All that Redis holds."""
    client = server.client()
    return {key: client.dump(key) for key in client.scan_iter(count=1000)}


def stopped(it: Deployment, point: str, **mixed: Any) -> int:
    """The worker that is stopped there under load, with work left behind for its successor."""
    it.start(crash_at=f"{point}:{BEFORE_A_WRITE[point]}:stop:0")
    look = stopped_worker(it, 0)
    it.produce(Workload(topic=it.topic, users=50, shuffle_window=50, rate=1000, **mixed))
    pid: int = it.until(look, f"the stop at {point}")
    it.send(event("behind", 1))
    return pid


def woken(a: Deployment, pid: int, b: Deployment, floor: int) -> None:
    """Replaced by the other host's worker, it wakes, changes nothing, and stands by; the other goes on.

    No fence stops its commit to Kafka, which is that of a `floor` that Redis had.
    """
    b.start(crash_at="before_load:1:stop:0")
    b.until(stopped_worker(b, 0), "the successor, before its first write")
    taken = memory(b.server)

    os.kill(pid, signal.SIGCONT)
    a.until(lambda: a.worker()["state"] == "standby", "the zombie's end")
    assert "has been taken by another owner" in a.log()
    assert "fenced: another owner has the partition, standing by" in a.log()
    assert memory(b.server) == taken
    assert a.committed()[0] <= floor

    os.kill(b.worker_pids()[0], signal.SIGCONT)
    b.idle()
    assert [a.worker()["state"], b.worker()["state"]] == ["standby", "running"]


def ended(a: Deployment, b: Deployment) -> None:
    """Both end in order, and leave nothing behind."""
    assert a.stop() == b.stop() == 0
    assert a.locks() == []
    assert a.committed() == a.floors() == a.ends_of()


@pytest.mark.parametrize(
    ("point", "configuration"),
    [(point, Configuration("sync", "event")) for point in BEFORE_A_WRITE]
    + [("before_finalize", Configuration("async", "partition", 3))],
    ids=str,
)
def test_a_zombie_writes_nothing(point: str, configuration: Configuration, hosts: Hosts) -> None:
    a, b = hosts(configuration)
    pid = stopped(
        a,
        point,
        duplicate_ratio=0.05,
        failing_ratio=0.04,
        unsequenced_ratio=0.02,
        missing_seqs=2,
        stale=3,
        conflicts=3,
        invalid_records=3,
    )
    before = a.hash(f"partition:{a.topic}:0")
    woken(a, pid, b, a.floors()[0])
    assert int(b.hash(f"partition:{b.topic}:0")["epoch"]) > int(before["epoch"])
    totals = a.audit(crashed=True, ledger=False).totals
    assert totals.processed > 400
    assert totals.failed > 10
    ended(a, b)


def test_a_zombie_writes_nothing_into_a_redis_that_was_emptied_meanwhile(hosts: Hosts) -> None:
    """Its own claim is not there any more, nor is any revision: only its successor's epoch tells."""
    a, b = hosts(Configuration("sync", "event"))
    pid = stopped(a, "before_finalize")
    floor = a.floors()[0]
    a.redis.flushall()
    woken(a, pid, b, floor)
    assert "redis_was_empty" in b.log()
    a.audit(crashed=True, ledger=False)
    ended(a, b)


def test_a_zombies_commit_does_not_last(hosts: Hosts) -> None:
    a, b = hosts(Configuration("sync", "event"))
    pid = stopped(a, "before_commit")
    b.start()
    b.idle()
    os.kill(pid, signal.SIGCONT)
    a.until(lambda: a.worker()["state"] == "standby", "the zombie's end")
    b.until(lambda: b.committed() == b.ends_of(), "the commit once more", 30)
    ended(a, b)
