"""Dead letters and bulk writing, on both brokers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition

from eventproc.broker.consumer import PartitionConsumer
from eventproc.broker.embedded import PARTITION_MAX_BYTES, EmbeddedBroker, check_not_dropped
from eventproc.broker.producer import DeadLetterProducer, EventProducer, Outcome
from eventproc.clock import SystemClock
from eventproc.effects import Entry
from eventproc.errors import DependencyError, Transient
from eventproc.settings import Settings
from tests.faults.chaos.mock_broker import MockServers
from tests.faults.chaos.proxy import PRODUCE
from tests.integration.conftest import BrokerUnderTest, make_settings

CLOCK = SystemClock()


class FakeRecord:
    """A record as a consumer would hand it over."""

    def __init__(
        self, key: bytes | None, value: bytes | None, headers: list[tuple[str, bytes | None]] | None
    ) -> None:
        self._key, self._value, self._headers = key, value, headers

    def offset(self) -> int:
        return 7

    def key(self) -> bytes | None:
        return self._key

    def value(self) -> bytes | None:
        return self._value

    def timestamp(self) -> tuple[int, int]:
        return (1, 0)

    def headers(self) -> Any:
        return self._headers


def letter(
    value: bytes | None = b"{}", *, key: bytes | None = b"u1", error: str = "boom", **more: Any
) -> Entry:
    record = FakeRecord(key, value, more.pop("headers", None))
    return Entry(
        offset=7, record=record, id="e1", user="u1", attempts=3, error=error, reason="handler", **more
    )


@pytest.fixture
def letters(broker: BrokerUnderTest) -> Iterator[tuple[DeadLetterProducer, Settings]]:
    settings = broker.settings(kafka_topic=broker.topics(4))
    producer = DeadLetterProducer(settings)
    yield producer, settings
    producer.close()


def fates(producer: DeadLetterProducer, count: int, timeout_s: float = 20) -> list[tuple[Entry, Outcome]]:
    found: list[tuple[Entry, Outcome]] = []
    deadline = CLOCK.monotonic_ms() + timeout_s * 1000
    while len(found) < count:
        assert CLOCK.monotonic_ms() < deadline, producer.last_error
        producer.flush(0.05)
        found += producer.poll()
    return found


@pytest.fixture
def faulty_servers() -> Iterator[MockServers]:
    with MockServers() as servers:
        yield servers


def test_a_fatal_error_costs_one_letter_a_second_try(faulty_servers: MockServers) -> None:
    """librdkafka raises it out of poll(), and refuses everything from then on."""
    settings = faulty_servers.broker.settings()
    producer = DeadLetterProducer(settings)
    try:
        producer.send(letter(), (settings.kafka_topic, 0))
        assert [fate for _, fate in fates(producer, 1)] == [None]
        faulty_servers.kafka.order(f"errors {PRODUCE} {KafkaError.OUT_OF_ORDER_SEQUENCE_NUMBER} 1")
        producer.send(letter(), (settings.kafka_topic, 0))
        assert isinstance(fates(producer, 1)[0][1], Transient)
        producer.send(letter(), (settings.kafka_topic, 0))
        assert [fate for _, fate in fates(producer, 1)] == [None]
    finally:
        producer.close()


def read_all(settings: Settings, topic: str, partitions: int, count: int) -> list[Message]:
    consumer = Consumer(
        {"bootstrap.servers": settings.kafka_bootstrap_servers, "group.id": "check", "fetch.wait.max.ms": 10}
    )
    try:
        consumer.assign([TopicPartition(topic, number, 0) for number in range(partitions)])
        found: list[Message] = []
        deadline = CLOCK.monotonic_ms() + 20_000
        while len(found) < count:
            assert CLOCK.monotonic_ms() < deadline, f"{len(found)} of {count} records"
            found += consumer.consume(100, 0.1)
        return found
    finally:
        consumer.close()


class TestDeadLetters:
    def test_record_and_headers(self, letters: tuple[DeadLetterProducer, Settings]) -> None:
        producer, settings = letters
        original: list[tuple[str, bytes | None]] = [
            ("event-id", b"e1"),
            ("event-id", b"twice"),
            ("nothing", None),
            ("eventproc-origin", b"old/1/2"),
            ("eventproc-reason", b"late"),
        ]
        entry = letter(b"\x00\xff raw", headers=original, error="x" * 600)
        producer.send(entry, ("events", 3))
        assert fates(producer, 1) == [(entry, None)]
        [message] = read_all(settings, settings.dlq_topic, 4, 1)
        assert (message.key(), message.value()) == (b"u1", b"\x00\xff raw")
        assert message.headers() == [
            ("event-id", b"e1"),
            ("event-id", b"twice"),
            ("nothing", None),
            ("eventproc-reason", b"handler"),
            ("eventproc-error", b"x" * 512),
            ("eventproc-attempts", b"3"),
            ("eventproc-origin", b"events/3/7"),
        ]
        assert producer.pointers == 0

    def test_no_key_no_value_and_odd_text(self, letters: tuple[DeadLetterProducer, Settings]) -> None:
        producer, settings = letters
        producer.send(letter(None, key=None, error="lone \ud800"), ("events", 0))
        assert [outcome for _, outcome in fates(producer, 1)] == [None]
        [message] = read_all(settings, settings.dlq_topic, 4, 1)
        assert (message.key(), message.value()) == (None, None)
        assert ("eventproc-error", b"lone ?") in (message.headers() or [])

    def test_key_decides_the_partition_as_murmur2(self, letters: tuple[DeadLetterProducer, Settings]) -> None:
        producer, settings = letters
        for key in (b"user-1", b"user-2", b"user-3"):
            producer.send(letter(key=key), ("events", 0))
        fates(producer, 3)
        found = {m.key(): m.partition() for m in read_all(settings, settings.dlq_topic, 4, 3)}
        # (murmur2(key) & 0x7fffffff) % 4, as Kafka's Java client computes it
        assert found == {key: murmur2(key) % 4 for key in (b"user-1", b"user-2", b"user-3")}

    def test_too_large_leaves_a_pointer_and_spares_its_neighbours(
        self, kafka_broker: BrokerUnderTest
    ) -> None:
        settings = kafka_broker.settings()
        producer = DeadLetterProducer(settings)
        small, large = letter(b"small"), letter(bytes(range(256)) * 6000 + NOISE)
        for entry in (small, large, small):
            producer.send(entry, (settings.kafka_topic, 0))
        outcomes = fates(producer, 3)
        assert [outcome for _, outcome in outcomes] == [None, None, None]
        assert producer.pointers == 1
        producer.close()
        messages = read_all(settings, settings.dlq_topic, 1, 3)
        values = sorted((m.value() or b"" for m in messages), key=len)
        assert values[:2] == [b"small", b"small"]
        [pointer] = [m for m in messages if m.value() != b"small"]
        content = json.loads(pointer.value() or b"")
        assert content.pop("error")
        assert content == {
            "topic": settings.kafka_topic, "partition": 0, "offset": 7, "id": "e1", "reason": "handler"
        }  # fmt: skip
        assert pointer.key() == b"u1"
        assert ("eventproc-pointer", b"1") in (pointer.headers() or [])
        assert ("eventproc-origin", f"{settings.kafka_topic}/0/7".encode()) in (pointer.headers() or [])

    def test_nobody_there_is_transient(self, unused_port: int) -> None:
        settings = make_settings(
            kafka_bootstrap_servers=f"127.0.0.1:{unused_port}", kafka_config={"message.timeout.ms": "300"}
        )
        producer = DeadLetterProducer(settings)
        entry = letter()
        producer.send(entry, ("events", 0))
        assert producer.pending == 1
        [(same, outcome)] = fates(producer, 1)
        assert same is entry
        assert isinstance(outcome, Transient)
        assert producer.down
        assert producer.pending == 0
        producer.close()

    def test_full_local_queue_is_transient(self, unused_port: int) -> None:
        settings = make_settings(
            kafka_bootstrap_servers=f"127.0.0.1:{unused_port}",
            kafka_config={"queue.buffering.max.messages": "1"},
        )
        producer = DeadLetterProducer(settings)
        for _ in range(2):
            producer.send(letter(), ("events", 0))
        [(_, outcome)] = producer.poll()
        assert isinstance(outcome, Transient)
        assert "full" in str(outcome)
        producer.close()

    def test_survives_a_restart_of_the_broker(self, kafka_broker: BrokerUnderTest) -> None:
        server = kafka_broker.kafka
        assert server is not None
        settings = kafka_broker.settings()
        producer = DeadLetterProducer(settings)
        producer.send(letter(b"1"), ("events", 0))
        fates(producer, 1)
        server.kill()
        producer.send(letter(b"2"), ("events", 0))
        server.start()
        [(entry, outcome)] = fates(producer, 1, 60)
        while outcome is not None:  # as a worker does
            assert isinstance(outcome, Transient)
            producer.send(entry, ("events", 0))
            [(entry, outcome)] = fates(producer, 1, 60)
        values = {m.value() for m in read_all(settings, settings.dlq_topic, 1, 2)}
        assert values == {b"1", b"2"}
        producer.close()


#: Bytes that no compression gets small.
NOISE = bytes((i * i * 7919 + i // 251) % 256 for i in range(2_000_000))


def murmur2(key: bytes) -> int:
    """Kafka's murmur2 with the sign bit off: the obvious way, for keys of the test."""
    mask, m = 0xFFFFFFFF, 0x5BD1E995
    value = 0x9747B28C ^ len(key)
    whole = len(key) // 4 * 4
    for at in range(0, whole, 4):
        k = int.from_bytes(key[at : at + 4], "little") * m & mask
        value = (value * m & mask) ^ ((k ^ k >> 24) * m & mask)
    if rest := key[whole:]:
        value = (value ^ int.from_bytes(rest, "little")) * m & mask
    value = (value ^ value >> 13) * m & mask
    return (value ^ value >> 15) & 0x7FFFFFFF


class TestEvents:
    def test_every_acknowledged_record_is_told_with_its_place(self, broker: BrokerUnderTest) -> None:
        settings = broker.settings(kafka_topic=broker.topics(4))
        told: dict[int, tuple[int, int]] = {}

        def on_acked(tag: Any, partition: int, offset: int) -> None:
            told[tag] = (partition, offset)

        producer = EventProducer(settings, linger_ms=5, on_acked=on_acked)
        for number in range(2000):
            producer.produce(
                b"user-%d" % (number % 50), b"%d" % number, [("event-id", b"%d" % number)], tag=number
            )
        assert producer.flush(20) == 0
        producer.close()
        assert (producer.acked, len(told)) == (2000, 2000)
        for message in read_all(settings, settings.kafka_topic, 4, 2000):
            number = int(message.value() or b"")
            assert told[number] == (message.partition(), message.offset())
            assert message.partition() == murmur2(message.key() or b"") % 4
            assert message.headers() == [("event-id", b"%d" % number)]

    def test_a_backlog_of_25000_a_partition_fits_into_the_embedded_broker(self) -> None:
        with EmbeddedBroker({"events": 1, "events.dlq": 1}) as broker:
            settings = make_settings(
                kafka_bootstrap_servers=broker.bootstrap_servers, kafka_config=broker.client_config
            )
            producer = EventProducer(settings)
            for number in range(25_000):
                producer.produce(
                    b"user-%d" % number, incompressible_event(number), [("event-id", b"%032x" % number)]
                )
            assert producer.flush(20) == 0
            producer.close()
            consumer = PartitionConsumer(settings, 0, CLOCK)
            offsets = consumer.offsets(10)
            consumer.close()
            assert (offsets.low, offsets.high) == (0, 25_000)
            check_not_dropped(offsets.low, "events", 0)

    def test_what_the_embedded_broker_drops_is_noticed(self) -> None:
        with EmbeddedBroker({"events": 1}) as broker:
            settings = make_settings(kafka_bootstrap_servers=broker.bootstrap_servers)
            producer = EventProducer(settings)
            for start in range(0, 2 * PARTITION_MAX_BYTES, 500_000):
                producer.produce(b"u", (NOISE * 2)[start % 251 :][:500_000] + b"%d" % start)
            producer.flush(20)
            producer.close()
            consumer = PartitionConsumer(settings, 0, CLOCK)
            with pytest.raises(DependencyError, match=r"dropped the first \d+ records of events/0"):
                consumer.offsets(10)
            consumer.close()


def incompressible_event(number: int) -> bytes:
    """About 220 bytes, a third of them random, as ids are."""
    noise = f"{(number * 0x9E3779B97F4A7C15F39CC0605CEDC834) % (1 << 128):032x}"
    document = {
        "id": noise,
        "userId": f"user-{number % 5000}",
        "type": "order.created",
        "payload": {"seq": number // 5000 + 1, "amount": number * 7919 % 1_000_003, "note": noise[::-1]},
        "timestamp": 1_700_000_000_000 + number,
    }
    return json.dumps(document).encode()
