"""Batch handlers (CONTRACT section 5) through real workers, on both brokers."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventproc.workload import Workload
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import ACT_BATCH, PACED_BATCH, Deployment, event
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def it(broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer() as server:
        made = Deployment(broker, server, tmp_path, handler=ACT_BATCH, shutdown_timeout_s=20)
        yield made
        made.close()


@pytest.fixture
def on_embedded(embedded_broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer() as server:
        made = Deployment(embedded_broker, server, tmp_path, handler=ACT_BATCH, shutdown_timeout_s=20)
        yield made
        made.close()


def batches(it: Deployment) -> list[list[str]]:
    """Ids of each batch that was begun, in order."""
    file = it.runs / "0.batches"
    return [line.split() for line in file.read_text().splitlines()] if file.exists() else []


def test_batches_of_one_of_each_user_in_order(it: Deployment) -> None:
    it.choose(handler_batch_max=25)
    users = [f"u{n}" for n in range(60)]
    it.send(*(event(user, seq, do=("sleep", 1)) for seq in range(1, 6) for user in users))
    it.start()
    it.idle()
    assert all(it.order(user) == [1, 2, 3, 4, 5] for user in users)
    given = batches(it)
    assert sum(len(ids) for ids in given) == 300
    assert 10 < max(len(ids) for ids in given) <= 25
    for ids in given:
        assert len({id.rpartition("-")[0] for id in ids}) == len(ids)
    assert it.audit(crashed=False, ledger=False).totals.reruns == 0
    assert it.metric("handler_runs_total") == 300
    assert it.stop() == 0
    assert it.committed() == it.ends_of()


def test_what_fails_in_a_batch_fails_alone_and_holds_only_its_user(it: Deployment) -> None:
    it.choose(retry_backoff_ms=200)
    it.send(
        event("again", 1, do=("fail", 2)),
        event("again", 2),
        event("bad", 1, do=("fail", 9)),
        event("bad", 2),
        event("reject", 1, do=("reject", "no")),
        event("reject", 2),
        event("leave", 1, do=("exit", 3)),
        event("leave", 2),
        *(event("good", seq) for seq in range(1, 6)),
        event("free", id="free"),
    )
    it.start()
    it.idle()
    assert it.order("again") == [1, 2]
    assert it.hash("event:again-1")["attempts"] == "3"
    assert it.hash("dlq:bad-1")["attempts"] == "3"
    assert it.hash("dlq:bad-1")["error"].startswith("RuntimeError: attempt 3 of bad-1 fails (handlers_for_")
    assert it.hash("dlq:reject-1")["reason"] == "rejected"
    assert it.hash("dlq:leave-1")["error"].startswith("SystemExit")
    assert it.order("bad") == it.order("reject") == it.order("leave") == [2]
    assert it.order("good") == [1, 2, 3, 4, 5]
    assert all(it.begun(f"good-{seq}") == 1 for seq in range(1, 6))
    ended = {id: end_ms for id, _attempt, _begin_ms, end_ms in it.times()}
    assert ended["good-5"] < ended["again-1"] <= ended["again-2"]
    assert len(it.dead_letters()) == 3
    assert it.worker()["restarts"] == 0
    it.audit(crashed=False, ledger=False)
    assert it.locks() == []
    assert it.stop() == 0


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ("nothing", "TypeError: batch handler act_batch returned NoneType None: return a list"),
        ("too few", "ValueError: batch handler act_batch returned"),
        ("words", "TypeError: batch handler act_batch returned str 'fine' as outcome 0 of"),
        ("raise", "ConnectionError: all of them (handlers_for_tests.py:"),
    ],
)
def test_a_wrong_answer_fails_all_of_its_batch_and_nothing_else(
    on_embedded: Deployment, how: str, told: str
) -> None:
    it = on_embedded
    it.choose(max_attempts=2)
    it.send(event("wrong", 1, do=("answer", how)), event("wrong", 2))
    it.start()
    it.idle()
    assert it.hash("dlq:wrong-1")["error"].startswith(told)
    assert it.hash("dlq:wrong-1")["attempts"] == "2"
    assert it.order("wrong") == [2]
    assert it.worker()["restarts"] == 0
    # beside others: what shared a batch with it each time shares its fate, and all of that is told
    it.send(event("wrong", 3, do=("answer", how)), event("beside", 1), event("after", 1), event("after", 2))
    it.idle()
    together = [ids for ids in batches(it) if "wrong-3" in ids]
    for id in ("beside-1", "after-1"):
        failed = sum(id in ids for ids in together)
        assert it.status_of(id) == ("failed" if failed == 2 else "processed")
        assert it.hash(f"event:{id}")["attempts"] == str(min(2, failed + 1))
    assert it.status_of("after-2") == "processed"
    it.audit(crashed=False, ledger=False)
    assert it.stop() == 0


def test_a_drain_awaits_the_batch_and_begins_none(it: Deployment) -> None:
    it.choose(handler_batch_max=5)
    it.send(*(event(f"u{n}", 1, do=("sleep", 300)) for n in range(20)))
    it.start()
    it.until(lambda: batches(it), "a batch")
    assert it.stop() == 0
    given = batches(it)
    ids = [id for batch in given for id in batch]
    assert 0 < len(ids) < 20
    assert {id for n in range(20) if it.status_of(id := f"u{n}-1") == "processed"} == set(ids)
    assert it.locks() == []
    it.start()
    it.idle()
    assert it.audit(crashed=False, ledger=False).totals.reruns == 0
    assert it.stop() == 0


def test_locks_outlive_a_long_batch_and_the_loop_goes_on(on_embedded: Deployment) -> None:
    it = on_embedded
    it.choose(inflight_ttl_ms=6000, lease_ms=6000)
    (it.runs / "long").touch()
    it.send(event("long", 1, do=("while", "long")))
    it.start()
    it.until(lambda: it.begun("long-1"), "its batch")
    it.send(event("next", 1))
    it.see_renewed("inflight:long-1")
    (it.runs / "long").unlink()
    it.final("long-1", "next-1")
    assert it.worker()["restarts"] == 0
    assert it.begun("long-1") == 1
    assert it.metric("redis_calls_total", call="renew") > 0
    assert it.stop() == 0
    assert it.locks() == []


def test_a_worker_killed_under_a_workload_of_everything(on_embedded: Deployment) -> None:
    it = on_embedded
    it.choose(handler=PACED_BATCH)
    it.pace(40)
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
