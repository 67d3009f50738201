"""The breaker through real workers: what stops, who is told, and how it goes on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import ACT, Deployment, event
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)

MOST = 3


@pytest.fixture
def it(broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer() as server:
        deployment = Deployment(
            broker, server, tmp_path, partitions=2, handler=ACT, dlq_max_consecutive=MOST, max_attempts=2
        )
        yield deployment
        deployment.close()


def stopped(it: Deployment) -> bool:
    return "stopped by the breaker" in (it.worker(0)["last_error"] or "")


def test_a_partition_stops_before_one_dead_letter_too_many_and_goes_on_when_told(it: Deployment) -> None:
    (it.runs / "away").touch()
    it.start()
    users = [it.user(f"sick{n}-", 0) for n in range(20)]
    it.send(*(event(user, seq, do=("fail-while", "away")) for seq in (1, 2) for user in users))
    it.until(lambda: stopped(it), "stopped")

    # told everywhere, with the remedy
    worker = it.worker(0)
    assert worker["state"] == "paused"
    assert "`eventproc-supervisor resume --partition 0` goes on" in worker["last_error"]
    code, body = it.readiness()
    assert code == 503
    assert "resume --partition 0" in body["partitions"]["0"]["reasons"][0]
    assert body["partitions"]["1"]["reasons"] == []
    assert it.metric("breaker_open") == it.metric("breaker_open", partition="0") == 1
    [line] = [line for line in it.log().splitlines() if " dead_letters_stopped " in line]
    for word in ("partition=0", "id=", "user=", "error=", "resume --partition 0"):
        assert word in line

    # nothing more happens there, while other partitions work
    healthy = it.user("well", 1)
    it.send(event(healthy, 1))
    it.final(f"{healthy}-1")
    assert len(it.elements("dlq:list")) == it.worker(0)["dead_letters"] == MOST
    assert it.floors()[0] < 2 * len(users)

    # it goes on for as many as before, when nothing was mended
    assert it.resume(0) == [{"partition": 0, "resumed": True}, {"ok": True}]
    it.until(lambda: stopped(it) and len(it.elements("dlq:list")) == 2 * MOST, "stopped again")

    # and to the end, when it was
    (it.runs / "away").unlink()
    assert it.resume() == [
        {"partition": 0, "resumed": True}, {"partition": 1, "resumed": False}, {"ok": True}
    ]  # fmt: skip
    it.idle()
    assert len(it.elements("dlq:list")) == 2 * MOST
    assert it.worker(0)["state"] == "running"
    assert it.metric("breaker_open") == 0
    assert it.readiness()[0] == 200
    it.audit(crashed=True, ledger=False)  # the runs that were undone come twice
    assert it.stop() == 0


def test_a_stopped_partition_drains_and_its_next_worker_begins_anew(it: Deployment) -> None:
    (it.runs / "away").touch()
    it.start()
    users = [it.user(f"sick{n}-", 0) for n in range(10)]
    it.send(*(event(user, 1, do=("fail-while", "away")) for user in users))
    it.until(lambda: stopped(it), "stopped")
    (it.runs / "away").unlink()
    it.restart(0)
    it.idle()
    assert len(it.elements("dlq:list")) == MOST
    assert it.worker(0)["restarts"] == 1
    it.audit(crashed=True, ledger=False)
    assert it.stop() == 0
