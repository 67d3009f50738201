"""Reading and committing, on both brokers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

import pytest
from confluent_kafka import Message, Producer

from eventproc.broker.admin import committed_offsets
from eventproc.broker.consumer import OffsetOutOfRange, PartitionConsumer
from eventproc.broker.producer import EventProducer
from eventproc.clock import SystemClock
from eventproc.effects import Offsets
from eventproc.errors import ConfigError, DependencyError, Transient
from eventproc.settings import Settings
from tests.integration.conftest import BrokerUnderTest, make_settings

CLOCK = SystemClock()
Open = Callable[..., PartitionConsumer]


@pytest.fixture
def consumer_of() -> Iterator[Open]:
    """Make consumers that are closed at the end."""
    made: list[PartitionConsumer] = []

    def make(settings: Settings, partition: int = 0) -> PartitionConsumer:
        made.append(PartitionConsumer(settings, partition, CLOCK))
        return made[-1]

    yield make
    for consumer in made:
        consumer.close()


def produce(settings: Settings, count: int, *, start: int = 0, partition: int = 0) -> None:
    """Write records whose value is their number."""
    producer = EventProducer(settings, linger_ms=5)
    for number in range(start, start + count):
        producer.produce(b"key", json.dumps(number).encode(), partition=partition)
    assert producer.flush(20) == 0
    producer.close()
    assert (producer.acked, dict(producer.failed)) == (count, {})


def read(consumer: PartitionConsumer, count: int, timeout_s: float = 20.0) -> list[Message]:
    """Consume until `count` records are there."""
    records: list[Message] = []
    deadline = CLOCK.monotonic_ms() + timeout_s * 1000
    while len(records) < count and CLOCK.monotonic_ms() < deadline:
        records += consumer.consume(min(500, count - len(records)), 0.1)
    assert len(records) == count
    return records


def numbers(records: list[Message]) -> list[int]:
    return [json.loads(record.value() or b"null") for record in records]


def wait_for(
    consumer: PartitionConsumer, condition: Callable[[], object], what: str, timeout_s: float = 20.0
) -> None:
    """Serve the consumer until `condition`; it must find nothing to read meanwhile."""
    deadline = CLOCK.monotonic_ms() + timeout_s * 1000
    while not condition():
        assert CLOCK.monotonic_ms() < deadline, f"{what} did not come: {consumer.last_error}"
        assert consumer.consume(500, 0.02) == []


def end_of(consumer: PartitionConsumer, timeout_s: float = 20.0) -> int:
    consumer.request_end()
    answers: list[int] = []

    def answered() -> bool:
        end = consumer.poll_end()
        answers.extend([end] if end is not None else [])
        return bool(answers)

    wait_for(consumer, answered, "the end offset", timeout_s)
    return answers[0]


class TestReading:
    def test_records_come_in_order_and_position_follows(
        self, broker: BrokerUnderTest, consumer_of: Open
    ) -> None:
        settings = broker.settings()
        produce(settings, 3000)
        consumer = consumer_of(settings)
        consumer.seek(0)
        assert numbers(read(consumer, 3000)) == list(range(3000))
        assert consumer.position == 3000
        assert consumer.lag() == 0

    def test_only_its_own_partition(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings(kafka_topic=broker.topics(2))
        produce(settings, 5, partition=0)
        produce(settings, 5, start=100, partition=1)
        consumer = consumer_of(settings, 1)
        consumer.seek(0)
        assert numbers(read(consumer, 5)) == list(range(100, 105))

    def test_first_record_is_not_lingered_for(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings()
        produce(settings, 1)
        consumer = consumer_of(settings)
        consumer.seek(0)
        started = CLOCK.monotonic_ms()
        assert len(consumer.consume(500, 20.0)) == 1
        assert CLOCK.monotonic_ms() - started < 10_000

    def test_max_records_bounds_a_batch(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings()
        produce(settings, 50)
        consumer = consumer_of(settings)
        consumer.seek(0)
        assert numbers(consumer.consume(1, 10.0)) == [0]
        assert numbers(read(consumer, 49)) == list(range(1, 50))

    @pytest.mark.parametrize("target", [0, 7, 2500])
    def test_seek_throws_away_what_was_fetched(
        self, broker: BrokerUnderTest, consumer_of: Open, target: int
    ) -> None:
        settings = broker.settings()
        produce(settings, 3000)
        consumer = consumer_of(settings)
        for turn in range(20):  # with more and less in the local queue
            consumer.seek(turn * 50)
            assert numbers(read(consumer, 1 + turn * 20))[0] == turn * 50
            consumer.seek(target)
            assert consumer.position == target
            assert numbers(read(consumer, 100)) == list(range(target, target + 100))

    def test_a_seek_ends_a_pause(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings()
        produce(settings, 100)
        consumer = consumer_of(settings)
        consumer.seek(0)
        read(consumer, 50)
        consumer.pause()
        consumer.seek(7)
        assert numbers(read(consumer, 50)) == list(range(7, 57))

    def test_position_reaches_the_end_of_an_empty_partition(
        self, broker: BrokerUnderTest, consumer_of: Open
    ) -> None:
        settings = broker.settings()
        consumer = consumer_of(settings)
        assert consumer.offsets(10) == Offsets(0, 0, -1)
        consumer.seek(0)
        assert end_of(consumer) == 0
        assert consumer.position == 0

    def test_pause_holds_and_resume_goes_on(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings()
        produce(settings, 10)
        consumer = consumer_of(settings)
        consumer.seek(0)
        read(consumer, 10)
        consumer.pause()
        produce(settings, 5, start=10)
        assert end_of(consumer) == 15  # served without a record, although five are there
        consumer.resume()
        assert numbers(read(consumer, 5)) == [10, 11, 12, 13, 14]


class TestEnd:
    def test_end_is_of_after_the_request(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings()
        produce(settings, 5)
        consumer = consumer_of(settings)
        consumer.seek(0)
        read(consumer, 5)
        assert consumer.poll_end() is None  # nobody asked
        consumer.request_end()
        produce(settings, 5, start=5)
        assert end_of_pending_or_new(consumer) == 10

    def test_reached_by_position_behind_an_aborted_transaction(
        self, kafka_broker: BrokerUnderTest, consumer_of: Open
    ) -> None:
        settings = kafka_broker.settings()
        produce(settings, 3)
        consumer = consumer_of(settings)
        consumer.seek(0)
        read(consumer, 3)
        producer = transactional(settings)
        producer.begin_transaction()
        for number in range(4):
            producer.produce(settings.kafka_topic, json.dumps(number).encode(), partition=0)
        producer.flush(10)
        assert end_of(consumer) == 7  # although none of it may be read yet
        assert consumer.position == 3
        producer.abort_transaction(10)
        wait_for(consumer, lambda: end_of(consumer) == 8, "the end after the abort")
        wait_for(consumer, lambda: consumer.position == 8, "the end of the partition")
        producer.begin_transaction()
        producer.produce(settings.kafka_topic, b"77", partition=0)
        producer.commit_transaction(10)
        producer.close()
        assert numbers(read(consumer, 1)) == [77]
        wait_for(consumer, lambda: consumer.position == 10, "the commit marker")
        assert end_of(consumer) == 10
        assert consumer.offsets(10).high == 10


def end_of_pending_or_new(consumer: PartitionConsumer) -> int:
    """Ask anew while an earlier question is open: the newer counts."""
    consumer.request_end()
    deadline = CLOCK.monotonic_ms() + 20_000
    while CLOCK.monotonic_ms() < deadline:
        consumer.consume(500, 0.02)
        end = consumer.poll_end()
        if end is not None:
            return end
    raise AssertionError("no end offset")


def transactional(settings: Settings) -> Producer:
    producer = Producer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "transactional.id": f"tx-{settings.kafka_topic}",
            "log_level": 0,
        }
    )
    producer.init_transactions(30)
    return producer


class TestCommit:
    def test_committed_offset_is_there_for_the_next_consumer(
        self, broker: BrokerUnderTest, consumer_of: Open
    ) -> None:
        settings = broker.settings(kafka_group_id="readers")
        produce(settings, 20)
        first = consumer_of(settings)
        first.seek(0)
        read(first, 20)
        first.commit(3)
        first.commit(7)
        wait_for(first, lambda: first.committed == 7, "the commit")
        first.commit(12)
        assert first.flush_commits(20)
        second = consumer_of(settings)
        assert second.offsets(10) == Offsets(0, 20, 12)
        assert committed_offsets(settings) == {0: 12}
        second.seek(12)
        assert numbers(read(second, 8)) == list(range(12, 20))

    def test_nothing_is_committed_by_itself(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings(kafka_group_id="silent")
        produce(settings, 5)
        first = consumer_of(settings)
        first.seek(0)
        read(first, 5)
        first.close()
        assert consumer_of(settings).offsets(10).committed == -1


class TestErrors:
    @pytest.mark.parametrize("kind", ["topic", "partition"])
    def test_missing_topic_or_partition_is_named(
        self, broker: BrokerUnderTest, consumer_of: Open, kind: str
    ) -> None:
        settings = broker.settings()
        if kind == "topic" and broker.kind == "kafka":
            consumer = consumer_of(broker.settings(kafka_topic="nowhere"))
            match = "nowhere/0"
        else:
            consumer = consumer_of(settings, 5)
            match = f"{settings.kafka_topic}/5"
        with pytest.raises(ConfigError, match=match):
            consumer.offsets(10)

    def test_offset_beyond_the_end_is_out_of_range(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings()
        produce(settings, 5)
        consumer = consumer_of(settings)
        consumer.seek(50)
        with pytest.raises(OffsetOutOfRange, match=r"offset 50 .*on_offset_out_of_range"):
            read(consumer, 1)

    def test_out_of_range_goes_on_at_the_earliest_when_told(
        self, kafka_broker: BrokerUnderTest, consumer_of: Open
    ) -> None:
        """An offset below the low watermark, as retention leaves it."""
        settings = kafka_broker.settings(on_offset_out_of_range="earliest")
        produce(settings, 10)
        delete_records(settings, 6)
        consumer = consumer_of(settings)
        assert consumer.offsets(10).low == 6
        consumer.seek(2)
        assert numbers(read(consumer, 4)) == [6, 7, 8, 9]

    def test_a_log_that_went_back_is_refused(self, broker: BrokerUnderTest, consumer_of: Open) -> None:
        settings = broker.settings(on_offset_out_of_range="earliest")
        produce(settings, 5)
        consumer = consumer_of(settings)
        consumer.seek(50)
        with pytest.raises(OffsetOutOfRange, match="went back from offset 50 to 0"):
            read(consumer, 1)

    def test_protected_properties_are_refused(self, broker: BrokerUnderTest) -> None:
        settings = broker.settings(kafka_config={"enable.auto.commit": "true"})
        with pytest.raises(ConfigError, match=r"enable\.auto\.commit"):
            PartitionConsumer(settings, 0, CLOCK)

    def test_unknown_properties_are_named(self, broker: BrokerUnderTest) -> None:
        settings = broker.settings(kafka_config={"no.such.thing": "1"})
        with pytest.raises(ConfigError, match=r"no\.such\.thing"):
            PartitionConsumer(settings, 0, CLOCK)

    def test_nobody_there_is_transient(self, consumer_of: Open, unused_port: int) -> None:
        consumer = consumer_of(make_settings(kafka_bootstrap_servers=f"127.0.0.1:{unused_port}"))
        with pytest.raises(Transient, match=f"127.0.0.1:{unused_port}"):
            consumer.offsets(1)
        consumer.seek(0)
        wait_for(consumer, lambda: consumer.down, "down")
        assert "refused" in consumer.last_error
        consumer.request_end()
        assert consumer.poll_end() is None


def delete_records(settings: Settings, before: int) -> None:
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    client = AdminClient({"bootstrap.servers": settings.kafka_bootstrap_servers})
    target = TopicPartition(settings.kafka_topic, 0, before)
    for future in client.delete_records([target]).values():
        future.result(20)


class TestOutage:
    def test_killed_and_restarted(self, kafka_broker: BrokerUnderTest, consumer_of: Open) -> None:
        server = kafka_broker.kafka
        assert server is not None
        settings = kafka_broker.settings(kafka_group_id="outage")
        produce(settings, 10)
        consumer = consumer_of(settings)
        consumer.seek(0)
        read(consumer, 10)
        consumer.commit(5)
        wait_for(consumer, lambda: consumer.committed == 5, "the commit")
        server.kill()
        wait_for(consumer, lambda: consumer.down, "down")
        consumer.commit(10)
        consumer.request_end()
        server.start()
        wait_for(consumer, lambda: not consumer.down, "up", 60)
        assert end_of(consumer) == 10
        wait_for(consumer, lambda: consumer.committed == 10, "the commit after the outage", 60)
        produce(settings, 5, start=10)
        assert numbers(read(consumer, 5)) == [10, 11, 12, 13, 14]
        assert not consumer.down

    def test_stopped_in_its_tracks(self, kafka_broker: BrokerUnderTest, consumer_of: Open) -> None:
        """A broker that hangs answers no question about the end, and catches up."""
        server = kafka_broker.kafka
        assert server is not None
        settings = kafka_broker.settings()
        produce(settings, 3)
        consumer = consumer_of(settings)
        consumer.seek(0)
        read(consumer, 3)
        server.pause()
        try:
            consumer.request_end()
            deadline = CLOCK.monotonic_ms() + 1500
            while CLOCK.monotonic_ms() < deadline:
                assert consumer.consume(10, 0.05) == []
                assert consumer.poll_end() is None
        finally:
            server.resume()
        assert end_of(consumer, 60) == 3

    def test_embedded_broker_gone(self, consumer_of: Open) -> None:
        from eventproc.broker.embedded import EmbeddedBroker

        with EmbeddedBroker({"events": 1}) as gone:
            settings = make_settings(kafka_bootstrap_servers=gone.bootstrap_servers)
            produce(settings, 3)
            consumer = consumer_of(settings)
            consumer.seek(0)
            read(consumer, 3)
            assert not consumer.down
        wait_for(consumer, lambda: consumer.down, "down")
        with pytest.raises(DependencyError):
            consumer.offsets(1)
