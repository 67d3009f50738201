"""Async handlers (CONTRACT section 5) through real workers, on both brokers."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from eventproc.workload import Workload
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import ACT_ASYNC, PACED_ASYNC, Deployment, event
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def it(broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer() as server:
        made = Deployment(broker, server, tmp_path, handler=ACT_ASYNC, shutdown_timeout_s=20)
        yield made
        made.close()


@pytest.fixture
def on_embedded(embedded_broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer() as server:
        made = Deployment(embedded_broker, server, tmp_path, handler=ACT_ASYNC, shutdown_timeout_s=20)
        yield made
        made.close()


def spans(it: Deployment) -> dict[str, list[tuple[int, int]]]:
    """Begin and end (ms) of every run, by user, in order."""
    found: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for id, _attempt, begin_ms, end_ms in it.times():
        found[id.rpartition("-")[0]].append((begin_ms, end_ms))
    return {user: sorted(runs) for user, runs in found.items()}


def test_users_run_beside_each_other_and_the_events_of_one_in_order(it: Deployment) -> None:
    users = [f"u{n}" for n in range(60)]
    it.send(*(event(user, seq, do=("sleep", 100)) for seq in range(1, 6) for user in users))
    it.start()
    it.idle()
    assert all(it.order(user) == [1, 2, 3, 4, 5] for user in users)
    runs = spans(it)
    assert all(before[1] <= after[0] for user in users for before, after in pairwise(runs[user]))
    begun = min(begin_ms for user in users for begin_ms, _ in runs[user])
    ended = max(end_ms for user in users for _, end_ms in runs[user])
    assert ended - begun < 60 * 5 * 100 / 4  # one after the other it would be four times that, at least
    assert it.audit(crashed=False, ledger=False).totals.reruns == 0
    assert it.metric("handler_runs_total") == 300
    assert it.stop() == 0
    assert it.committed() == it.ends_of()


def test_failures_of_every_kind_hold_only_their_user(it: Deployment) -> None:
    it.choose(retry_backoff_ms=300)
    it.send(
        event("slow", 1, do=("sleep", 2000)),
        event("again", 1, do=("fail", 2)),
        event("again", 2),
        event("reject", 1, do=("reject", "no")),
        event("reject", 2),
        event("cancel", 1, do=("cancelled", 0)),
        event("leave", 1, do=("exit", 3)),
        event("leave", 2),
        event("block", 1, do=("block", 300)),
        event("free", id="free"),
    )
    it.start()
    it.idle()
    assert it.order("again") == [1, 2]
    assert it.hash("event:again-1")["attempts"] == "3"
    assert it.hash("dlq:reject-1")["reason"] == "rejected"
    assert it.hash("dlq:cancel-1")["error"].startswith("CancelledError")
    assert it.hash("dlq:leave-1")["error"].startswith("SystemExit")
    assert it.order("reject") == it.order("leave") == [2]
    assert it.order("slow") == it.order("block") == [1]
    assert it.status_of("free") == "processed"
    ended = {id: end_ms for id, _attempt, _begin_ms, end_ms in it.times()}
    assert ended["again-2"] < ended["slow-1"]
    assert it.worker()["restarts"] == 0
    it.audit(crashed=False, ledger=False)
    assert it.locks() == []
    assert it.stop() == 0


def test_a_drain_awaits_what_runs_and_begins_nothing(it: Deployment) -> None:
    it.choose(concurrency=5)
    it.send(*(event(f"u{n}", 1, do=("sleep", 2000)) for n in range(20)))
    it.start()
    it.until(lambda: sum(it.begun(f"u{n}-1") for n in range(20)) == 5, "five runs")
    assert it.stop() == 0
    done = [n for n in range(20) if it.status_of(f"u{n}-1") == "processed"]
    assert len(done) == 5
    assert sum(it.begun(f"u{n}-1") for n in range(20)) == 5
    assert it.locks() == []
    it.start()
    it.idle()
    assert it.audit(crashed=False, ledger=False).totals.reruns == 0
    assert it.stop() == 0


def test_locks_outlive_a_handler_that_blocks_the_loop(on_embedded: Deployment) -> None:
    it = on_embedded
    it.choose(inflight_ttl_ms=6000, lease_ms=6000, gap_timeout_ms=60_000)
    (it.runs / "block").touch()
    it.send(event("gap", 2), event("block", 1, do=("while", "block")), event("beside", 1, do=("sleep", 100)))
    it.start()
    it.until(lambda: it.begun("block-1"), "its run")
    it.see_renewed("inflight:block-1")
    (it.runs / "block").unlink()
    it.final("block-1", "beside-1")
    assert it.worker()["restarts"] == 0
    assert it.begun("block-1") == 1
    assert it.metric("redis_calls_total", call="renew") > 0
    assert it.stop() == 0
    assert it.locks() == []


def test_a_fenced_worker_lets_handlers_end_and_throws_their_results_away(on_embedded: Deployment) -> None:
    it = on_embedded
    it.choose(lease_ms=3000)
    it.send(event("u", 1, do=("sleep", 2500)))
    it.start()
    it.until(lambda: it.begun("u-1"), "its run")
    key = f"partition:{it.topic}:0"
    epoch = int(it.hash(key)["epoch"]) + 1_000_000
    it.redis.hset(key, mapping={"epoch": epoch, "owner": "elsewhere:7:1/0/x"})
    it.until(lambda: "fenced" in it.log(), "the fence")
    assert len(list(it.times())) == 1  # it has ended
    assert it.status_of("u-1") == ""
    it.final("u-1")
    assert it.begun("u-1") == 2
    it.idle()
    assert it.stop() == 0


def test_what_redis_loses_is_run_again_once_what_runs_has_ended(on_embedded: Deployment) -> None:
    it = on_embedded
    it.send(event("u", 1, do=("sleep", 3000)), event("v", 1))
    it.start()
    it.until(lambda: it.begun("u-1") and it.status_of("v-1"), "its run")
    it.redis.flushall()
    it.until(lambda: it.metric("rewinds_total") == 1, "the rewind")
    it.idle()
    runs = spans(it)["u"]
    assert len(runs) == 2
    assert runs[0][1] <= runs[1][0]
    assert it.worker()["restarts"] == 0
    assert it.stop() == 0


def test_a_worker_killed_under_a_workload_of_everything(on_embedded: Deployment) -> None:
    it = on_embedded
    it.choose(handler=PACED_ASYNC)
    it.pace(30)
    workload = Workload(
        topic=it.topic,
        users=100,
        shuffle_window=100,
        duplicate_ratio=0.05,
        failing_ratio=0.02,
        missing_seqs=2,
        invalid_records=3,
        unsequenced_ratio=0.02,
        stale=3,
        conflicts=3,
    )
    it.produce(workload)
    it.start()
    it.until(lambda: it.metric("handler_runs_total") > 200, "some work")
    os.kill(it.worker()["pid"], signal.SIGKILL)
    it.idle()
    totals = it.audit(crashed=True).totals
    assert totals.processed > 900
    assert it.dead_letters() != []
    assert it.metric("dead_letters_total", reason="crash") == 0
    assert it.locks() == []
    assert it.stop() == 0
