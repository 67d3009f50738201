"""The main job on both brokers: a mixed workload through real workers, audited against its ledger."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Message

from eventproc.broker.reading import TopicReader
from eventproc.workload import Workload
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import Deployment, headers_of
from tests.integration.supervised import wait_for
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(180)

PARTITIONS = 8
OWN_HEADERS = ("eventproc-reason", "eventproc-error", "eventproc-attempts", "eventproc-origin")


@pytest.fixture
def deployment(
    request: pytest.FixtureRequest, broker: BrokerUnderTest, tmp_path: Path
) -> Iterator[Deployment]:
    """With two partitions, unless a test asks for more."""
    with RedisServer() as server:
        it = Deployment(broker, server, tmp_path, partitions=getattr(request, "param", 2))
        yield it
        it.close()


def workload_for(topic: str, **changes: Any) -> Workload:
    """About 5,000 events with everything that may happen to one."""
    described: dict[str, Any] = {
        "users": 500,
        "shuffle_window": 300,
        "duplicate_ratio": 0.05,
        "failing_ratio": 0.01,
        "missing_seqs": 6,
        "late_events": 10,
        "invalid_records": 30,
        "unsequenced_ratio": 0.02,
        "stale": 8,
        "conflicts": 8,
        "tombstones": 5,
        **changes,
    }
    return Workload(topic=topic, **described)


def effects(it: Deployment) -> dict[str, Any]:
    """Everything in Redis but the positions, which tell of the workers."""
    found: dict[str, Any] = {}
    for key in it.redis.scan_iter(count=5000):
        if key.startswith("partition:"):
            continue
        kind = it.redis.type(key)
        found[key] = {"hash": it.redis.hgetall, "string": it.redis.get, "list": it.elements}[str(kind)](key)
    return found


def origin(letter: Message) -> str:
    return dict(headers_of(letter))["eventproc-origin"].decode()


def records_of(it: Deployment) -> dict[str, Message]:
    """Every record of the topic, by topic/partition/offset."""
    with TopicReader(it.settings) as reader:
        ranges = {number: (0, end) for number, end in it.ends_of().items()}
        return {f"{it.topic}/{m.partition()}/{m.offset()}": m for m in reader.read(it.topic, ranges)}


@pytest.mark.parametrize("deployment", [PARTITIONS], indirect=True)
def test_a_mixed_workload_is_processed_by_the_rules(deployment: Deployment) -> None:
    it = deployment.start()
    it.produce(workload_for(it.topic))
    it.idle()

    report = it.audit(crashed=False)
    totals = report.totals
    assert totals.processed > 4800
    assert totals.failed > 20
    assert totals.skipped == 10 + 8
    assert totals.conflicts == 8
    assert totals.invalid == 30
    assert totals.tombstones == 5
    assert totals.gap_seqs == 6 + 10
    assert totals.reruns == 0
    assert it.locks() == []
    assert [worker["lag"] for worker in it.status()["workers"]] == [0] * PARTITIONS
    assert [worker["restarts"] for worker in it.status()["workers"]] == [0] * PARTITIONS
    assert it.metric("events_total", outcome="processed") == totals.processed
    assert it.metric("events_total", outcome="failed") == totals.failed
    assert it.metric("events_total", outcome="skipped") == totals.skipped
    assert it.metric("events_total", outcome="invalid") == totals.invalid

    letters, records = it.dead_letters(), records_of(it)
    assert len({origin(letter) for letter in letters}) == len(letters) == len(it.elements("dlq:list"))
    for letter in letters:
        record, headers = records[origin(letter)], headers_of(letter)
        assert (letter.key(), letter.value()) == (record.key(), record.value())
        assert headers[: -len(OWN_HEADERS)] == headers_of(record)
        assert tuple(name for name, _ in headers[-len(OWN_HEADERS) :]) == OWN_HEADERS
        assert len(dict(headers)["eventproc-error"]) > 0
    assert it.stop() == 0
    assert it.committed() == it.ends_of() == it.floors()


def test_records_that_are_read_again_change_nothing(deployment: Deployment) -> None:
    it = deployment.start()
    it.produce(workload_for(it.topic, users=100))
    it.idle()
    first = it.audit(crashed=False).totals
    before = effects(it)
    assert it.stop() == 0

    for number in range(it.partitions):
        it.redis.hset(f"partition:{it.topic}:{number}", "offset", 0)
    it.start()
    it.idle()
    assert it.metric("records_consumed_total") == sum(it.ends_of().values())  # all were read again
    assert it.metric("handler_runs_total") == 0
    assert effects(it) == before
    totals = it.audit(crashed=False).totals
    assert (totals.processed, totals.failed, totals.skipped) == (first.processed, first.failed, first.skipped)
    assert totals.runs == first.runs
    assert it.stop() == 0


def test_two_deployments_on_one_redis_are_kept_apart_by_their_prefix(
    broker: BrokerUnderTest, deployment: Deployment, tmp_path: Path
) -> None:
    one = deployment
    one.choose(key_prefix="one:")
    folder = tmp_path / "two"
    folder.mkdir()
    two = Deployment(broker, one.server, folder, partitions=2, key_prefix="two:")
    try:
        one.start()
        two.start()
        for it in (one, two):
            it.produce(workload_for(it.topic, users=50, late_events=3))
        for it in (one, two):
            it.idle()
            it.audit(crashed=False)
        assert {key.partition(":")[0] for key in one.redis.scan_iter(count=5000)} == {"one", "two"}
        assert two.stop() == 0
        assert one.stop() == 0
    finally:
        two.close()


@pytest.mark.skipif(not Path("/proc/self/autogroup").exists(), reason="this kernel has no autogroups")
def test_workers_give_way_to_other_sessions(deployment: Deployment) -> None:
    """Niceness alone counts for nothing between sessions, and a Redis on this host has one of its own."""
    deployment.choose(worker_nice=7)
    deployment.start()
    own = os.nice(0)
    for worker in deployment.status()["workers"]:
        assert os.getpriority(os.PRIO_PROCESS, worker["pid"]) == own + 7
        autogroup = Path(f"/proc/{worker['pid']}/autogroup")
        wait_for(partial(_reads, autogroup, f"nice {own + 7}\n"), 30, str(autogroup))


def _reads(path: Path, end: str) -> bool:
    return path.read_text().endswith(end)
