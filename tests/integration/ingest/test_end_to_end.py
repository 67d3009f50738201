"""The whole way, HTTP to Redis: the supervisor runs the API beside its workers."""

from __future__ import annotations

import http.client
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import pytest

from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import Deployment, event
from tests.redis_server import RedisServer

pytestmark = [pytest.mark.timeout(300), pytest.mark.xdist_group("ingest_kafka")]

USERS = 20
EACH = 30


@pytest.fixture
def deployment(kafka_broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer() as server:
        # however slow the machine is: nothing times out, and no gap closes while its events are still sent
        patient: dict[str, Any] = {
            "gap_timeout_ms": 60_000,
            "api_timeout_ms": 30_000,
            "heartbeat_timeout_ms": 120_000,
        }
        it = Deployment(kafka_broker, server, tmp_path, partitions=2, api_port=0, **patient)
        yield it
        it.close()


def post(it: Deployment, path: str, body: Any) -> tuple[int, Any]:
    url = urlsplit(it.status()["supervisor"]["api"]["url"])
    connection = http.client.HTTPConnection(url.netloc, timeout=30)
    try:
        connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_shuffled_posts_are_processed_in_order_and_each_once(deployment: Deployment) -> None:
    it = deployment.start("--api")
    events = [event(f"u{n}", seq) for n in range(USERS) for seq in range(1, EACH + 1)]
    events += events[::10]  # the same ids again
    Random(5).shuffle(events)
    singles, batched = events[:40], events[40:]
    for one in singles:
        assert post(it, "/events", one) == (202, {"eventId": one["id"], "status": "accepted"})
    for at in range(0, len(batched), 200):
        status, answer = post(it, "/events/batch", {"events": batched[at : at + 200]})
        assert status == 202
        assert {result["status"] for result in answer["results"]} == {"accepted"}
    _, failing = post(it, "/events", {"userId": "bad", "type": "test", "payload": {"fail": True}})
    it.settle()

    for n in range(USERS):
        assert it.order(f"u{n}") == list(range(1, EACH + 1))
    assert it.hash(f"event:{failing['eventId']}")["status"] == "failed"
    assert it.elements("dlq:list") == [failing["eventId"]]
    it.idle()
    it.audit(crashed=False, ledger=False)
    _, limited = post(it, "/events/batch", {"events": [event("fast")] * 150})
    statuses = [result["status"] for result in limited["results"]]
    assert statuses == ["accepted"] * 100 + ["rate_limited"] * 50
    restart(it)
    pid = it.status()["supervisor"]["api"]["pid"]
    assert it.stop() == 0
    assert not psutil.pid_exists(pid)


def restart(it: Deployment) -> None:
    """The API is started again when it dies, and ends with the supervisor."""
    first = it.status()["supervisor"]["api"]["pid"]
    psutil.Process(first).send_signal(signal.SIGKILL)
    it.until(lambda: it.status()["supervisor"]["api"]["restarts"] == 1, "a restart")
    it.until(lambda: it.status()["supervisor"]["api"]["pid"] not in (None, first), "another")
    it.until(lambda: reachable(it), "an accepted event")
    assert "api died" in it.log()


def reachable(it: Deployment) -> bool:
    try:
        return post(it, "/events", event("u", 1))[0] == 202
    except OSError:
        return False
