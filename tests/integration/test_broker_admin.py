"""Topics and offsets from the outside, and what is said when something is wrong."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from eventproc.broker.admin import (
    Admin,
    cluster_id,
    committed_offsets,
    partition_offsets,
    prepare_topics,
    watermarks,
)
from eventproc.broker.embedded import is_embedded
from eventproc.broker.producer import EventProducer
from eventproc.clock import SystemClock
from eventproc.effects import Offsets
from eventproc.errors import ConfigError, DependencyError
from tests.integration.audit.world import commit
from tests.integration.conftest import BrokerUnderTest, make_settings

CLOCK = SystemClock()


def test_existing_topics_are_left_alone(broker: BrokerUnderTest) -> None:
    settings = broker.settings(kafka_topic=broker.topics(3))
    assert prepare_topics(settings) == 3


def test_missing_topics_are_created(kafka_broker: BrokerUnderTest) -> None:
    name = "made-by-prepare"
    settings = kafka_broker.settings(kafka_topic=name, topic_partitions=5)
    assert prepare_topics(settings) == 5
    assert prepare_topics(settings) == 5
    with Admin(settings) as admin:
        assert admin.partition_count(f"{name}.dlq") == 5


@pytest.mark.parametrize("name", ["absent", "absent.dlq"])
def test_missing_topic_is_named_with_the_remedy(kafka_broker: BrokerUnderTest, name: str) -> None:
    topic = kafka_broker.topics()
    names = {"kafka_topic": name} if name == "absent" else {"kafka_topic": topic, "kafka_dlq_topic": name}
    settings = kafka_broker.settings(**names, create_topics=False)
    with pytest.raises(ConfigError, match=f"topic {name} does not exist.*kafka-topics.sh.*--topic {name} "):
        prepare_topics(settings)


def test_looking_for_a_topic_does_not_create_it(broker: BrokerUnderTest) -> None:
    settings = broker.settings()
    with Admin(settings) as admin:
        assert admin.partition_count("looked-for") == 0
        assert admin.partition_count("looked-for") == 0


def test_embedded_broker_cannot_create(embedded_broker: BrokerUnderTest) -> None:
    with pytest.raises(ConfigError, match="embedded broker has no topic not-there"):
        prepare_topics(embedded_broker.settings(kafka_topic="not-there"))


def test_offsets_of_all_partitions(broker: BrokerUnderTest) -> None:
    settings = broker.settings(kafka_topic=broker.topics(3))
    producer = EventProducer(settings, linger_ms=1)
    for partition in (0, 0, 2):
        producer.produce(None, b"{}", partition=partition)
    assert producer.flush(20) == 0
    producer.close()
    assert watermarks(settings) == {0: (0, 2), 1: (0, 0), 2: (0, 1)}
    assert committed_offsets(settings) == {0: -1, 1: -1, 2: -1}
    assert partition_offsets(settings) == {0: Offsets(0, 2, -1), 1: Offsets(0, 0, -1), 2: Offsets(0, 1, -1)}


def test_under_load_the_end_is_not_behind_the_commit(
    embedded_broker: BrokerUnderTest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the two queries a record arrives, is processed and committed."""
    settings = embedded_broker.settings()
    left = ["once"]

    def then_move(query: Callable[..., Any]) -> Callable[..., Any]:
        def asked(*arguments: Any) -> Any:
            answer = query(*arguments)
            if left:
                left.pop()
                producer = EventProducer(settings, linger_ms=1)
                producer.produce(None, b"{}", partition=0)
                assert producer.flush(20) == 0
                producer.close()
                commit(settings, {0: 1})
            return answer

        return asked

    for name in ("watermarks", "committed"):
        monkeypatch.setattr(Admin, name, then_move(getattr(Admin, name)))
    (offsets,) = partition_offsets(settings).values()
    assert not left
    assert offsets.committed <= offsets.high == 1


def test_brokers_are_told_apart(broker: BrokerUnderTest) -> None:
    assert is_embedded(cluster_id(broker.settings())) == (broker.kind == "embedded")


def test_nobody_there_names_the_address(unused_port: int) -> None:
    settings = make_settings(kafka_bootstrap_servers=f"127.0.0.1:{unused_port}")
    started = CLOCK.monotonic_ms()
    with pytest.raises(DependencyError, match=f"127.0.0.1:{unused_port}.*kafka_bootstrap_servers"):
        prepare_topics(settings)
    assert CLOCK.monotonic_ms() - started < 15_000


def test_name_that_does_not_resolve() -> None:
    settings = make_settings(kafka_bootstrap_servers="no-such-host.invalid:9092")
    with pytest.raises(DependencyError, match=r"no-such-host\.invalid.*kafka_bootstrap_servers"):
        prepare_topics(settings, timeout_ms=1000)


def test_tls_against_a_plain_broker(kafka_broker: BrokerUnderTest) -> None:
    settings = kafka_broker.settings(kafka_config={"security.protocol": "SSL"})
    with pytest.raises(ConfigError, match=r"security\.protocol"):
        prepare_topics(settings)


def test_sasl_against_a_plain_broker(kafka_broker: BrokerUnderTest) -> None:
    config = {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "me",
        "sasl.password": "wrong-password-9",
    }
    settings = kafka_broker.settings(kafka_config=config)
    with pytest.raises(ConfigError, match=r"sasl|security\.protocol") as caught:
        prepare_topics(settings)
    assert "wrong-password-9" not in str(caught.value)


@pytest.fixture
def mute_server() -> Iterator[int]:
    """Something that listens and never answers."""
    held: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept() -> None:
            while True:
                try:
                    held.append(listener.accept()[0])
                except OSError:
                    return

        thread = threading.Thread(target=accept)
        thread.start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    for connection in held:
        connection.close()


def test_something_else_listens_there(mute_server: int) -> None:
    settings = make_settings(kafka_bootstrap_servers=f"127.0.0.1:{mute_server}")
    with pytest.raises(DependencyError, match=f"127.0.0.1:{mute_server}"):
        prepare_topics(settings, timeout_ms=1000)
