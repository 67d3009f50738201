"""CONTRACT 4.7 through a real worker when the dead-letter topic makes trouble."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient

from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import ACT, Deployment, event, headers_of
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def it(broker: BrokerUnderTest, tmp_path: Path) -> Iterator[Deployment]:
    with RedisServer() as server:
        deployment = Deployment(broker, server, tmp_path, handler=ACT)
        yield deployment
        deployment.close()


def test_a_record_too_large_for_the_topic_leaves_a_pointer_that_is_counted(it: Deployment) -> None:
    it.choose(kafka_config=it.broker.kafka_config | {"message.max.bytes": "2000"})
    it.start()
    producer = Producer({"bootstrap.servers": it.settings.kafka_bootstrap_servers})  # without that limit
    large = event("u", 1, do=("reject", "no"), filler=os.urandom(4000).hex())
    producer.produce(it.topic, orjson.dumps(large), b"u")
    assert producer.flush(20) == 0
    it.send(event("u", 2, do=("reject", "no")), event("u", 3))
    it.idle()
    it.audit(crashed=False, ledger=False)
    pointer, whole = sorted(
        it.dead_letters(), key=lambda letter: "eventproc-pointer" not in dict(headers_of(letter))
    )
    assert orjson.loads(pointer.value() or b"")["id"] == "u-1"
    assert orjson.loads(whole.value() or b"")["id"] == "u-2"
    it.until(lambda: it.metric("dlq_pointers_total") == 1, "the pointer in the metrics")
    assert it.stop() == 0


def test_a_full_local_queue_loses_and_reorders_nothing(it: Deployment) -> None:
    it.choose(kafka_config=it.broker.kafka_config | {"queue.buffering.max.messages": "20"})
    it.start()
    it.send(*(event(f"u{n % 50}", n // 50 + 1, do=("reject", "no")) for n in range(2000)))
    it.idle()
    it.audit(crashed=False, ledger=False)
    assert len({dict(headers_of(letter))["eventproc-origin"] for letter in it.dead_letters()}) == 2000
    assert "the local queue for" in it.log()
    assert it.stop() == 0


def test_a_topic_that_is_gone_holds_the_floor_and_is_told(
    kafka_broker: BrokerUnderTest, tmp_path: Path
) -> None:
    with RedisServer() as server:
        config = {"topic.metadata.propagation.max.ms": "200", "message.timeout.ms": "2000"}
        it = Deployment(kafka_broker, server, tmp_path, handler=ACT, kafka_config=config)
        try:
            it.start()
            topic = it.settings.dlq_topic
            admin = AdminClient({"bootstrap.servers": it.settings.kafka_bootstrap_servers})
            admin.delete_topics([topic])[topic].result(20)
            it.send(event("u", 1, do=("reject", "no")), event("u", 2), event("v", 1))
            it.final("u-1", "u-2", "v-1")
            it.until(lambda: "create the topic" in (it.worker()["last_error"] or ""), "the trouble in status")
            assert "dead_letter_not_acknowledged" in it.log()
            assert it.floors() == {0: 0}
            assert it.committed() == {0: 0}
            kafka_broker.create(topic, 1)
            it.idle()
            it.audit(crashed=False, ledger=False)
            it.until(lambda: not it.worker()["last_error"], "that it is over")
            assert it.stop() == 0
        finally:
            it.close()
