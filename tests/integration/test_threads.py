"""Sync handlers in threads (`handler_threads`) through real workers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import ACT, Deployment, event
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def it(broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer() as server:
        made = Deployment(broker, server, tmp_path, handler=ACT, handler_threads=8, shutdown_timeout_s=20)
        yield made
        made.close()


def test_users_run_beside_each_other_in_order_and_a_slow_one_holds_up_nobody(it: Deployment) -> None:
    users = [f"u{n}" for n in range(16)]
    it.choose(retry_backoff_ms=100)
    it.send(event("slow", 1, do=("sleep", 3000)), event("again", 1, do=("fail", 2)), event("again", 2))
    it.send(*(event(user, seq, do=("sleep", 20)) for seq in range(1, 4) for user in users))
    it.start()
    it.idle()
    assert all(it.order(user) == [1, 2, 3] for user in users)
    assert it.order("again") == [1, 2]
    assert it.hash("event:again-1")["attempts"] == "3"
    spans = {id: (begin_ms, end_ms) for id, _attempt, begin_ms, end_ms in it.times()}
    for user in users:
        runs = [spans[f"{user}-{seq}"] for seq in (1, 2, 3)]
        assert all(before[1] <= after[0] for before, after in pairwise(runs))
        assert runs[-1][1] < spans["slow-1"][1]
    it.audit(crashed=False, ledger=False)
    assert it.locks() == []
    assert it.stop() == 0


def test_a_drain_awaits_what_runs_and_begins_nothing(it: Deployment) -> None:
    it.send(*(event(f"u{n}", 1, do=("sleep", 1500)) for n in range(20)))
    it.start()
    it.until(lambda: sum(it.begun(f"u{n}-1") for n in range(20)) == 8, "eight runs")
    assert it.stop() == 0
    assert len([n for n in range(20) if it.status_of(f"u{n}-1") == "processed"]) == 8
    assert it.locks() == []
