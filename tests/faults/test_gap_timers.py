"""Gap timers tell the truth (CONTRACT 4.2): what stood still does not count, and a true gap closes in time.

Beside these: test_ownership.py has a Redis that is seen to be away and a killed Kafka.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import psutil  # type: ignore[import-untyped]
import pytest
from confluent_kafka import Producer

from eventproc._reorder import partition_of
from eventproc.workload import Workload
from tests.faults.conftest import Deploy
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import ACT, PACED, Deployment, event
from tests.integration.supervised import wait_for

pytestmark = pytest.mark.timeout(240)

GAP_TIMEOUT_MS = 1500
#: Where nothing may be given up: a loaded machine takes a while to send the missing event.
PATIENCE_MS = 6000
#: Longer than that by so much that a timer that runs meanwhile is found out.
STOP_S = 8.0
#: After the outage, before the missing event comes: well within a timeout that starts anew.
SOON_S = 0.3
#: How much later than its timeout a gap may close.
LATE_MS = 250
#: It is to be read in several times the gap timeout; EVENTPROC_TEST_BACKLOG=500000 is the full size.
BACKLOG = int(os.environ.get("EVENTPROC_TEST_BACKLOG", "50000"))


def pause(seconds: float) -> None:
    """An outage takes its time."""
    until = time.monotonic() + seconds
    wait_for(lambda: time.monotonic() >= until, seconds + 10)


def parked(it: Deployment, user: str = "u") -> None:
    """Seq 2 is missing, and it is waited for."""
    it.send(event(user, 1), event(user, 3))
    it.until(lambda: it.worker()["parked"] == 1, "the parked event", 10)
    assert it.order(user) == [1]


def filled(it: Deployment, user: str = "u") -> None:
    """Seq 2 has come while it was still waited for."""
    it.final(f"{user}-2", f"{user}-3")
    assert it.gaps(user) == []
    assert it.order(user) == [1, 2, 3]
    it.idle()
    assert [worker["restarts"] for worker in it.status()["workers"]] == [0] * it.partitions
    assert it.stop() == 0


# --- nothing that stands still makes a gap ------------------------------------------------------------------


@pytest.mark.parametrize("where", ["between runs", "in a handler"])
def test_a_stopped_worker(where: str, embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, gap_timeout_ms=PATIENCE_MS, handler=ACT)
    it.start()
    if where == "in a handler":
        it.send(event("u", 1), event("u", 3), event("other", 1, do=("sleep", 1000)))
        it.until(lambda: it.redis.exists("inflight:other-1"), "the handler's run")
    else:
        parked(it)
    worker = psutil.Process(it.worker_pids()[0])
    worker.suspend()
    pause(STOP_S)
    worker.resume()
    pause(SOON_S)
    it.send(event("u", 2))
    filled(it)


def test_a_kafka_that_does_not_answer(kafka_broker: BrokerUnderTest, deploy: Deploy) -> None:
    assert kafka_broker.kafka is not None
    it = deploy(kafka_broker, gap_timeout_ms=PATIENCE_MS).start()
    parked(it)
    kafka_broker.kafka.pause()
    try:
        pause(STOP_S)
    finally:
        kafka_broker.kafka.resume()
    pause(SOON_S)
    it.send(event("u", 2))
    filled(it)


def test_a_redis_that_does_not_answer(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    """For less than `redis_timeout_ms`, so that no call has failed."""
    it = deploy(embedded_broker, gap_timeout_ms=PATIENCE_MS, redis_timeout_ms=60_000).start()
    parked(it)
    it.server.freeze()
    try:
        pause(STOP_S)
    finally:
        it.server.thaw()
    pause(SOON_S)
    it.send(event("u", 2))
    filled(it)


def test_a_worker_that_does_not_read(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    """The handler is behind, so reading is paused for longer than the timeout.

    A pause counts only after a second of it, which must be over well before the timeout is.
    """
    it = deploy(embedded_broker, gap_timeout_ms=PATIENCE_MS, handler=PACED, batch_max=2)
    it.pace(0)
    it.start()
    parked(it)
    it.pace(200)
    it.send(*(event(f"slow{number}", 1) for number in range(90)))
    it.until(lambda: it.worker()["state"] == "paused", "the pause")
    pause(STOP_S)
    assert it.worker()["state"] == "paused"
    it.send(event("u", 2))
    it.pace(0)
    filled(it)


def test_a_backlog(kafka_broker: BrokerUnderTest, deploy: Deploy) -> None:
    """What is missing lies at its end, and is there when the timeout is over, but not read by then."""
    it = deploy(kafka_broker, gap_timeout_ms=200, max_replay_records=10 * BACKLOG, max_parked=10 * BACKLOG)
    it.send(event("u", 1), event("u", 3))
    it.produce(Workload(topic=it.topic, users=BACKLOG // 10, shuffle_window=500))
    it.send(event("u", 2))
    begun = time.monotonic()
    it.start()
    it.until(lambda: it.status_of("u-1"), "its beginning")
    it.final("u-3", timeout_s=200)
    assert time.monotonic() - begun > 5 * 0.2
    it.idle(200)
    assert it.order("u") == [1, 2, 3]
    assert it.metric("gaps_closed_total") == 0
    assert it.stop() == 0


def test_slow_handlers_do_not_keep_a_gap_open(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    """Time in a handler is neither a stop of the process nor a Kafka or Redis that keeps it waiting."""
    it = deploy(embedded_broker, gap_timeout_ms=GAP_TIMEOUT_MS, handler=ACT)
    it.start()
    slow = [event(f"slow{number}", 1, do=("sleep", 1200)) for number in range(12)]
    it.send(event("u", 1), event("u", 3), *slow)
    it.final("u-3")
    assert it.gaps("u") == ["2-2:timeout"]
    assert not all(it.status_of(made["id"]) for made in slow)  # it was not only their end that let it close
    it.idle()
    assert it.stop() == 0


# --- a true gap closes --------------------------------------------------------------------------------------


@pytest.fixture
def aborting(kafka_broker: BrokerUnderTest) -> Iterator[Producer]:
    """A producer with transactions."""
    producer = Producer(
        {"bootstrap.servers": kafka_broker.bootstrap, "transactional.id": "aborting", "log_level": 0}
    )
    producer.init_transactions(30)
    yield producer
    producer.close()


def test_behind_an_aborted_transaction(
    kafka_broker: BrokerUnderTest, deploy: Deploy, aborting: Producer
) -> None:
    """The partition's end is no record: it is reached all the same."""
    it = deploy(kafka_broker, gap_timeout_ms=GAP_TIMEOUT_MS).start()
    parked(it)
    aborting.begin_transaction()
    for number in range(5):
        aborting.produce(it.topic, f"{number}".encode(), b"u", partition=partition_of("u", 1))
    aborting.flush(10)
    aborting.abort_transaction(10)
    it.final("u-3", timeout_s=20)
    assert it.gaps("u") == ["2-2:timeout"]
    it.idle()
    assert it.floors() == it.ends_of()
    assert it.stop() == 0


def test_an_open_transaction_holds_it_open(
    kafka_broker: BrokerUnderTest, deploy: Deploy, aborting: Producer
) -> None:
    """What is missing has been acknowledged behind it, and nobody can read it before that has ended."""
    it = deploy(kafka_broker, gap_timeout_ms=GAP_TIMEOUT_MS).start()
    parked(it)
    aborting.begin_transaction()
    aborting.produce(it.topic, b"", b"u", partition=0)
    aborting.flush(10)
    it.send(event("u", 2))
    pause(2 * GAP_TIMEOUT_MS / 1000)
    aborting.abort_transaction(10)
    filled(it)


@pytest.mark.parametrize("kind", ["embedded", "kafka"])
def test_a_true_gap_on_a_silent_partition_closes_in_time(
    kind: str, request: pytest.FixtureRequest, deploy: Deploy
) -> None:
    """Seven times; timers that run late do so each time, a host that stands still starts them anew once."""
    it = deploy(request.getfixturevalue(f"{kind}_broker"), gap_timeout_ms=GAP_TIMEOUT_MS, handler=ACT)
    it.start()
    late = []
    for number in range(7):
        user = f"u{number}"
        it.send(event(user, 1), event(user, 3))
        acked_ms = time.monotonic_ns() // 1_000_000
        it.final(f"{user}-3")
        (begin_ms,) = [begin for id, _, begin, _ in it.times() if id == f"{user}-3"]
        late.append(begin_ms - acked_ms - GAP_TIMEOUT_MS)
    assert sorted(late)[len(late) // 2] <= LATE_MS, late
    assert it.stop() == 0
