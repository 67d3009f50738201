"""Dead letters and bulk writing, on both brokers."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka
import psutil  # type: ignore[import-untyped]
import pytest
from confluent_kafka import Consumer, KafkaError, Message, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from eventproc._entry import headers_of
from eventproc.broker.admin import Admin
from eventproc.broker.consumer import PartitionConsumer
from eventproc.broker.embedded import PARTITION_MAX_BYTES, EmbeddedBroker, MockCluster, check_not_dropped
from eventproc.broker.producer import DeadLetterProducer, EventProducer, Outcome
from eventproc.clock import SystemClock
from eventproc.effects import Entry
from eventproc.errors import DependencyError, Transient
from eventproc.settings import Settings
from tests.faults.chaos.mock_broker import MockServers
from tests.faults.chaos.proxy import PRODUCE
from tests.integration.conftest import BrokerUnderTest, make_settings
from tests.integration.supervised import wait_for

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


def test_a_letter_that_is_refused_before_a_later_one_is_taken_is_not_lost(
    faulty_servers: MockServers,
) -> None:
    settings = faulty_servers.broker.settings()
    producer = DeadLetterProducer(settings)
    producer.send(letter(), (settings.kafka_topic, 0))
    assert [fate for _, fate in fates(producer, 1)] == [None]
    faulty_servers.kafka.order("rtt 300")
    faulty_servers.kafka.order(f"errors {PRODUCE} {KafkaError.NOT_ENOUGH_REPLICAS} 1")
    for number in (1, 2):
        producer.send(letter(), (settings.kafka_topic, number))
        producer.flush(0.1)  # the second is sent before the first is answered
    assert [fate for _, fate in fates(producer, 2)] == [None, None]
    found = read_all(settings, settings.dlq_topic, 1, 3)
    origins = [dict(message.headers() or [])["eventproc-origin"] for message in found]
    assert origins == [f"{settings.kafka_topic}/{number}/7".encode() for number in (0, 1, 2)]
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
            if CLOCK.monotonic_ms() > deadline:
                with Admin(settings) as admin:
                    raise AssertionError(f"{len(found)} of {count} records, {admin.watermarks(topic)}")
            found += consumer.consume(100, 0.1)
        return found
    finally:
        consumer.close()


def send_until_acknowledged(producer: DeadLetterProducer, entry: Entry) -> None:
    """Send again, as a worker does, until Kafka has it."""
    deadline = CLOCK.monotonic_ms() + 60_000
    outcome: Outcome = Transient("not sent yet")
    while outcome is not None:
        assert CLOCK.monotonic_ms() < deadline, outcome
        producer.send(entry, ("events", 0))
        [(_, outcome)] = fates(producer, 1)


def set_topic_config(settings: Settings, topic: str, name: str, value: str) -> None:
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    client = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    for future in client.incremental_alter_configs(
        [ConfigResource(ConfigResource.Type.TOPIC, topic, incremental_configs=[entry])]
    ).values():
        future.result()


class LateCluster(MockCluster):
    """The embedded broker in this process, whose answers can be held back."""

    def delay_answers_to_produce(self, count: int, ms: int) -> None:
        """The next so many produce requests are carried out, but answered late."""
        push = self._library.rd_kafka_mock_broker_push_request_error_rtts
        push.restype = ctypes.c_int
        pairs = [ctypes.c_int(0), ctypes.c_int(ms)] * count
        produce, broker = ctypes.c_int16(0), ctypes.c_int32(1)
        assert push(ctypes.c_void_p(self._cluster), broker, produce, ctypes.c_size_t(count), *pairs) == 0


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

    def test_what_this_client_may_not_send_leaves_a_pointer_too(self, broker: BrokerUnderTest) -> None:
        settings = broker.settings(kafka_config={"message.max.bytes": "2000"})
        producer = DeadLetterProducer(settings)
        producer.send(letter(NOISE[:5000], headers=[("big", NOISE[:5000])]), ("events", 0))
        assert [outcome for _, outcome in fates(producer, 1)] == [None]
        assert producer.pointers == 1
        producer.close()
        [pointer] = read_all(settings, settings.dlq_topic, 1, 1)
        assert json.loads(pointer.value() or b"")["offset"] == 7
        assert ("eventproc-origin", b"events/0/7") in (pointer.headers() or [])

    def test_not_even_a_pointer_is_transient_and_says_what_to_do(self, kafka_broker: BrokerUnderTest) -> None:
        settings = kafka_broker.settings()
        set_topic_config(settings, settings.dlq_topic, "max.message.bytes", "100")
        producer = DeadLetterProducer(settings)
        producer.send(letter(NOISE[:500]), ("events", 0))
        [(entry, outcome)] = fates(producer, 1)
        assert isinstance(outcome, Transient)
        assert "raise max.message.bytes of the topic" in str(outcome)
        assert producer.pointers == 0
        set_topic_config(settings, settings.dlq_topic, "max.message.bytes", "1000000")
        send_until_acknowledged(producer, entry)
        producer.close()
        [message] = read_all(settings, settings.dlq_topic, 1, 1)
        assert message.value() == NOISE[:500]

    def test_a_missing_topic_is_waited_for(self, broker: BrokerUnderTest) -> None:
        settings = broker.settings(kafka_dlq_topic=f"{broker.topics()}.absent")
        settings.kafka_config.update({"topic.metadata.propagation.max.ms": "200"})
        producer = DeadLetterProducer(settings)
        producer.send(letter(), ("events", 0))
        [(entry, outcome)] = fates(producer, 1)
        if broker.kind == "kafka":  # the embedded one makes what it is asked for
            assert isinstance(outcome, Transient)
            assert str(outcome).endswith("; create the topic")
            broker.create(settings.dlq_topic, 1)
            send_until_acknowledged(producer, entry)
            outcome = None
        assert outcome is None
        producer.close()
        assert len(read_all(settings, settings.dlq_topic, 1, 1)) == 1

    def test_a_lost_acknowledgement_makes_copies_at_most(self, broker: BrokerUnderTest) -> None:
        """The records are in the log, the answers are late: what is sent again has the same origin."""
        mock = LateCluster()
        quick = {"socket.timeout.ms": "500", "message.timeout.ms": "1500", "retry.backoff.ms": "10"}
        if broker.kind == "embedded":
            mock.create_topic("events.dlq", 1)
            settings = make_settings(kafka_bootstrap_servers=mock.bootstrap_servers, kafka_config=quick)
        else:
            settings = broker.settings(kafka_config=quick)
        producer = DeadLetterProducer(settings)
        send_until_acknowledged(producer, letter(b"first"))
        server = broker.kafka
        if server is None:
            mock.delay_answers_to_produce(3, 2000)
        else:
            server.pause()
            wait_for(lambda: psutil.Process(server.pid).status() == psutil.STATUS_STOPPED)
        producer.send(letter(b"second"), ("events", 0))
        try:
            [(entry, outcome)] = fates(producer, 1)
        finally:
            if server is not None:
                server.resume()
        assert isinstance(outcome, Transient)
        send_until_acknowledged(producer, entry)
        producer.close()
        messages = read_all(settings, settings.dlq_topic, 1, 2 if server else 3)
        assert {m.value() for m in messages} == {b"first", b"second"}
        assert all(("eventproc-origin", b"events/0/7") in (m.headers() or []) for m in messages)

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
            check_not_dropped(offsets.low, -1, "events", 0)

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


def produce_with_header(bootstrap_servers: str, topic: str, name: bytes) -> None:
    """As a producer in another language may: Python's own takes only names that are text."""
    folder = Path(confluent_kafka.__file__).parents[1] / "confluent_kafka.libs"
    [path] = folder.glob("librdkafka-*")
    kafka = ctypes.CDLL(str(path))
    pointer, text, number, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_int, ctypes.c_size_t
    kafka.rd_kafka_conf_new.restype = kafka.rd_kafka_new.restype = pointer
    error = ctypes.create_string_buffer(512)
    conf = pointer(kafka.rd_kafka_conf_new())
    kafka.rd_kafka_conf_set(conf, b"bootstrap.servers", bootstrap_servers.encode(), error, size(512))
    handle = pointer(kafka.rd_kafka_new(number(0), conf, error, size(512)))
    assert handle.value, error.value
    value = (number(4), text(b"no JSON"), size(7))
    header = (number(9), text(name), text(b"x"), ctypes.c_ssize_t(1))
    place = (number(1), text(topic.encode()), number(3), ctypes.c_int32(0))
    assert kafka.rd_kafka_producev(handle, *place, *value, *header, number(0)) == 0
    assert kafka.rd_kafka_flush(handle, number(10_000)) == 0
    kafka.rd_kafka_destroy(handle)


def test_headers_that_cannot_be_read_are_left_out_and_that_is_told(
    letters: tuple[DeadLetterProducer, Settings],
) -> None:
    producer, settings = letters
    topic = settings.kafka_topic
    produce_with_header(settings.kafka_bootstrap_servers, topic, b"caf\xe9")
    consumer = PartitionConsumer(settings, 0, CLOCK)
    consumer.seek(0)
    [record] = wait_for(lambda: consumer.consume(10, 1))
    entry = Entry(0, record, f"{topic}-0-0")
    entry.reason, entry.error = "invalid", "value is not JSON"
    for _ in range(2):  # the second time, confluent-kafka hands out what is broken as if it were good
        with pytest.raises(ValueError, match="the name of one is not UTF-8"):
            headers_of(record)
        producer.send(entry, (topic, 0))
    assert [outcome for _, outcome in fates(producer, 2)] == [None, None]
    for message in read_all(settings, settings.dlq_topic, 4, 2):
        headers = dict(message.headers() or [])
        assert message.value() == b"no JSON"
        assert headers["eventproc-reason"] == b"invalid"
        assert headers["eventproc-headers"] == b"lost: a name is not UTF-8"
    consumer.close()
