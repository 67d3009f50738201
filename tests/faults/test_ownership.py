"""Supervisors, Redis and Kafka that die, stop or forget, under load (CONTRACT 4.10, 6, 7)."""

from __future__ import annotations

import signal
import time
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from eventproc.workload import Workload
from tests.faults.conftest import Deploy
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import PACED, Deployment, event, gone
from tests.integration.supervised import wait_for

pytestmark = pytest.mark.timeout(120)

#: So slow that a backlog is never done while a test looks at it.
SLOW_MS = 40


def workload_for(it: Deployment, **changes: Any) -> Workload:
    """About 1,000 events at once."""
    described: dict[str, Any] = {
        "users": 100,
        "shuffle_window": 100,
        "duplicate_ratio": 0.05,
        "failing_ratio": 0.02,
        "missing_seqs": 2,
        "invalid_records": 3,
        "stale": 3,
        "conflicts": 3,
        **changes,
    }
    return Workload(topic=it.topic, **described)


def underway(it: Deployment) -> None:
    """Start it on its backlog, slowly; wait until each partition has done something, none all."""
    it.pace(SLOW_MS)
    it.start()
    it.until(lambda: all(it.floors().values()), "the first floors")
    assert all(it.floors()[number] < end for number, end in it.ends_of().items())


def pause(seconds: float) -> None:
    """An outage takes its time."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= until, seconds + 10)


def untouched(it: Deployment) -> None:
    """No worker has died of it."""
    assert [worker["restarts"] for worker in it.status()["workers"]] == [0] * it.partitions


# --- the supervisor -----------------------------------------------------------------------------------


def test_a_killed_supervisor_takes_its_workers_along_and_the_next_one_claims_at_once(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    # the lease is longer than this test waits
    it = deploy(embedded_broker, partitions=2, handler=PACED, lease_ms=600_000)
    it.produce(workload_for(it))
    underway(it)
    pids = it.children()
    assert len(pids) >= 3
    assert it.process is not None
    assert psutil.Process(it.process.pid).num_threads() == 1  # its children are forks
    it.signal(signal.SIGKILL)
    it.ends()
    gone(pids, 2)
    assert it.locks() != []

    it.pace(0)
    it.start()
    it.idle()
    assert it.audit(crashed=True).totals.processed > 900
    assert it.stop() == 0


def test_term_under_load_leaves_nothing_behind(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, partitions=2, handler=PACED, shutdown_timeout_s=10)
    it.produce(workload_for(it, failing_ratio=0))  # a retry that is cut short would run again
    underway(it)
    pids = it.children()
    begun = time.monotonic()
    assert it.stop() == 0
    assert time.monotonic() - begun < 10
    gone(pids, 1)
    assert it.locks() == []
    assert it.committed() == it.floors()
    assert all(it.floors()[number] < end for number, end in it.ends_of().items())
    assert "Traceback" not in it.log()

    it.pace(0)
    it.start()
    it.idle()
    assert it.audit(crashed=False).totals.reruns == 0
    assert it.stop() == 0


def test_a_partition_taken_by_another_host_is_given_up_until_its_lease_is_over(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker, lease_ms=4000).start()
    it.send(event("u", 1))
    it.final("u-1")
    key = f"partition:{it.topic}:0"
    it.redis.hset(
        key, mapping={"epoch": int(it.hash(key)["epoch"]) + 1_000_000, "owner": "elsewhere:7:1/0/x"}
    )
    it.send(event("u", 2))
    it.until(lambda: it.worker()["state"] == "standby", "the standby")
    assert "elsewhere:7:1" in it.worker()["last_error"]
    assert it.order("u") == [1]
    it.final("u-2")
    assert it.worker()["restarts"] == 1
    it.idle()
    it.audit(crashed=True, ledger=False)
    assert it.stop() == 0


def test_takeover_does_not_wait_for_a_lease(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, lease_ms=600_000)
    owner: dict[Any, Any] = {"epoch": 1, "owner": "elsewhere:7:1/0/x", "rev": 0, "offset": 0}
    it.redis.hset(
        f"partition:{it.topic}:0",
        mapping={**owner, "seen_ms": time.time_ns() // 1_000_000, "schema": 1},
    )
    it.send(event("u", 1))
    it.start(ready=False)
    it.until(lambda: "standing by" in it.log(), "the standby")
    assert it.stop() == 0
    assert it.order("u") == []
    it.start("--takeover")
    it.final("u-1")
    assert it.stop() == 0


# --- Redis forgets ------------------------------------------------------------------------------------


def goes_on(it: Deployment) -> None:
    """After Redis has lost everything: users from before adopt their lowest seq, new ones begin at 1."""
    it.send(event("old", 3), event("new", 1), event("new", 2))
    it.final("old-3", "new-2")
    assert it.order("old") == [3]
    assert it.gaps("old") == ["1-2:reset"]
    assert it.order("new") == [1, 2]
    it.idle()
    untouched(it)
    it.audit(crashed=True, ledger=False)


def test_a_flushed_redis_is_gone_on_with_at_the_floor(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker).start()
    end = it.send(event("old", 1), event("old", 2))[-1] + 1
    it.idle()
    it.redis.flushall()
    it.until(lambda: it.metric("rewinds_total") == 1, "the rewind")
    it.until(lambda: it.floors()[0] == end, "the floor from before")
    assert it.hash(f"partition:{it.topic}:0")["baseline"] == str(end)
    goes_on(it)
    assert it.metric("rewinds_total") == 1
    assert it.stop() == 0


def test_a_redis_that_comes_back_empty_is_gone_on_with_at_the_floor(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker).start()
    end = it.send(event("old", 1), event("old", 2))[-1] + 1
    it.idle()
    it.server.restart()
    it.until(lambda: it.floors()[0] == end, "the floor from before")
    goes_on(it)
    assert it.metric("rewinds_total") == 1
    assert it.stop() == 0


def test_a_redis_flushed_under_load_loses_only_what_it_had(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker, partitions=2, handler=PACED)
    it.produce(workload_for(it, missing_seqs=0, stale=0, conflicts=0, failing_ratio=0))
    underway(it)
    it.redis.flushall()
    it.until(lambda: it.metric("rewinds_total") >= 1, "the rewind")
    it.pace(0)
    it.idle()
    untouched(it)
    for number, end in it.ends_of().items():
        fields = it.hash(f"partition:{it.topic}:{number}")
        assert 0 < int(fields["baseline"]) < end
    it.audit(crashed=True)
    assert it.stop() == 0


def test_flushed_scripts_are_loaded_again(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, partitions=2, handler=PACED)
    it.produce(workload_for(it))
    underway(it)
    it.redis.script_flush()
    it.pace(0)
    it.idle()
    untouched(it)
    assert it.metric("rewinds_total") == 0
    it.audit(crashed=False)
    assert it.stop() == 0


# --- Redis is away ------------------------------------------------------------------------------------


def test_a_redis_that_is_killed_and_keeps_its_data_is_waited_for(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker, persistent=True, partitions=2, handler=PACED)
    it.produce(workload_for(it))
    underway(it)
    it.server.kill()
    it.until(lambda: all(w["state"] == "paused" for w in it.status()["workers"]), "the workers wait")
    assert all(w["last_error"].startswith("Redis") for w in it.status()["workers"])
    assert it.metric("redis_errors_total") >= 2
    assert it.metric("kafka_errors_total") == 0
    it.server.start()
    it.pace(0)
    it.idle()
    untouched(it)
    it.until(lambda: all(w["state"] == "running" for w in it.status()["workers"]), "the workers run")
    it.audit(crashed=False)
    assert it.stop() == 0


def test_a_frozen_redis_makes_no_false_gap(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, gap_timeout_ms=3000, redis_timeout_ms=500).start()
    it.send(event("u", 1), event("u", 3))
    it.until(lambda: it.worker()["parked"] == 1, "the parked event")
    it.server.freeze()
    try:
        pause(4)  # longer than the gap timeout
        it.send(event("u", 2))
    finally:
        it.server.thaw()
    it.final("u-3")
    assert it.order("u") == [1, 2, 3]
    assert it.gaps("u") == []
    it.idle()
    untouched(it)
    it.audit(crashed=False, ledger=False)
    assert it.stop() == 0


# --- Kafka is away ------------------------------------------------------------------------------------


def test_a_killed_kafka_is_waited_for_and_makes_no_false_gap(
    kafka_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    assert kafka_broker.kafka is not None
    it = deploy(kafka_broker, partitions=2, handler=PACED, gap_timeout_ms=8000)
    it.produce(workload_for(it, missing_seqs=0))
    waiting = it.user("waiting", 0)
    it.send(event(waiting, 1), event(waiting, 3))
    underway(it)
    kafka_broker.kafka.kill()
    it.until(lambda: all(w["state"] == "paused" for w in it.status()["workers"]), "the workers wait")
    assert all(w["last_error"].startswith("Kafka") for w in it.status()["workers"])
    assert it.metric("kafka_errors_total") >= 2
    assert it.metric("redis_errors_total") == 0
    pause(9)  # longer than the gap timeout
    kafka_broker.kafka.start()
    it.pace(0)
    it.send(event(waiting, 2))
    it.final(f"{waiting}-3")
    assert it.order(waiting) == [1, 2, 3]
    assert it.gaps(waiting) == []
    it.idle()
    untouched(it)
    totals = it.audit(crashed=False).totals
    assert totals.gaps == 0
    assert totals.failed > 5
    assert it.stop() == 0


# --- foreign keys -------------------------------------------------------------------------------------


def test_a_foreign_key_sets_its_user_aside_until_it_is_gone(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker).start()
    it.send(event("known", 1))
    it.final("known-1")
    it.redis.rename("order:known", "kept")
    it.redis.set("order:known", "x")
    it.redis.set("order:new", "x")
    it.redis.rpush("event:hash-1", "x")
    blocked = ("known", "new", "hash")
    it.send(*(event(user, seq) for user in ("known", "new", "hash", "free") for seq in (1, 2)))
    it.final("free-2")
    it.until(lambda: it.metric("users_set_aside") == 3, "all three are set aside")
    assert any(f"user {user} is set aside: key" in it.worker()["last_error"] for user in blocked)
    for user, key in (("known", "order:known"), ("new", "order:new"), ("hash", "event:hash-1")):
        assert f"foreign_key partition=0 user={user} redis_key={key} " in it.log()
    assert it.metric("foreign_keys_total") == 3
    assert it.redis.get("order:known") == "x"
    assert it.status_of("known-2") == it.status_of("new-1") == ""
    assert it.status_of("hash-2") == ""  # it stands behind hash-1
    it.send(event("free", 3))
    it.final("free-3")

    it.redis.delete("order:new", "event:hash-1")
    it.redis.rename("kept", "order:known")
    it.final("known-2", "new-2", "hash-2")
    assert [it.order(user) for user in (*blocked, "free")] == [[1, 2], [1, 2], [1, 2], [1, 2, 3]]
    it.until(lambda: it.metric("users_set_aside") == 0, "nobody is set aside")
    it.idle()
    untouched(it)
    it.audit(crashed=False, ledger=False)
    assert it.stop() == 0
