"""Reading whole topics and offsets, for commands that only look: no group is joined, nothing is committed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import Any, NamedTuple, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from eventproc.broker.client import LOG, check_config, client_config, explain, kafka_error
from eventproc.broker.embedded import is_embedded
from eventproc.clock import Clock, SystemClock
from eventproc.errors import ConfigError, DependencyError
from eventproc.settings import Settings

_DEFAULTS: dict[str, Any] = {
    "queued.max.messages.kbytes": 16_384,
    "fetch.queue.backoff.ms": 5,
    "fetch.wait.max.ms": 100,
}
_FIXED: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
}
_TIMEOUT_S = 10.0
_BATCH = 1000
#: A topic that should have records but brings none for this long is given up.
_SILENCE_MS = 20_000


class Watermarks(NamedTuple):
    """Offsets of the oldest record that is kept and of the next one to be written."""

    low: int
    high: int


class TopicReader:
    """One consumer for any topic; raises DependencyError or ConfigError, named, whatever goes wrong."""

    def __init__(self, settings: Settings, clock: Clock | None = None) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._address = settings.kafka_bootstrap_servers
        fixed = {**_FIXED, "group.id": settings.kafka_group_id}
        try:
            self._consumer = Consumer(client_config(settings, _DEFAULTS, fixed), logger=LOG)
        except (KafkaException, ValueError, TypeError) as error:
            raise check_config(settings, error) from error
        self.embedded = False

    def partitions(self, topic: str) -> list[int]:
        """The topic's partitions; empty when there is no such topic."""
        try:
            metadata = self._consumer.list_topics(topic, timeout=_TIMEOUT_S)
        except KafkaException as error:
            raise explain(kafka_error(error), f"looking up topic {topic}", self._address) from error
        self.embedded = is_embedded(metadata.cluster_id)
        found = metadata.topics[topic]
        if found.error is not None:
            if found.error.code() == KafkaError.UNKNOWN_TOPIC_OR_PART:
                return []
            raise explain(found.error, f"looking up topic {topic}", self._address)
        return sorted(found.partitions)

    def watermarks(self, topic: str) -> dict[int, Watermarks]:
        """Of each partition, asked anew."""
        found = {}
        for partition in self.partitions(topic):
            try:
                low, high = self._consumer.get_watermark_offsets(
                    TopicPartition(topic, partition), _TIMEOUT_S, False
                )
            except KafkaException as error:
                what = f"reading the offsets of {topic}/{partition}"
                raise explain(kafka_error(error), what, self._address) from error
            found[partition] = Watermarks(low, high)
        return found

    def committed(self, topic: str) -> dict[int, int]:
        """The group's committed offset of each partition, -1 where there is none."""
        targets = [TopicPartition(topic, partition) for partition in self.partitions(topic)]
        if not targets:
            return {}
        try:
            found = self._consumer.committed(targets, _TIMEOUT_S)
        except KafkaException as error:
            what = f"reading the committed offsets of {self._settings.kafka_group_id}"
            raise explain(kafka_error(error), what, self._address) from error
        return {target.partition: max(target.offset, -1) for target in found}

    def read(self, topic: str, ranges: Mapping[int, Watermarks]) -> Iterator[Message]:
        """Every record of the topic between these offsets, in offset order within a partition.

        Partitions are read one after the other. A range ends early where the partition does.
        """
        for partition, (low, high) in sorted(ranges.items()):
            if low < high:
                yield from self._read(topic, partition, low, high)

    def _read(self, topic: str, partition: int, low: int, high: int) -> Iterator[Message]:
        target = TopicPartition(topic, partition, low)
        try:
            self._consumer.assign([target])
        except KafkaException as error:
            raise explain(kafka_error(error), f"assigning {topic}/{partition}", self._address) from error
        heard_ms = self._clock.monotonic_ms()
        while True:
            batch = self._consumer.consume(_BATCH, 0.05)
            for message in batch:
                error = message.error()
                offset = message.offset()
                if error is None and offset is not None:
                    if offset >= high:
                        return
                    yield message
                    if offset == high - 1:
                        return
                elif error is not None and error.code() == KafkaError._PARTITION_EOF:
                    return
                elif error is not None and error.code() in (
                    KafkaError._AUTO_OFFSET_RESET,
                    KafkaError.OFFSET_OUT_OF_RANGE,
                ):
                    raise ConfigError(
                        f"{topic}/{partition} lost the records from offset {low} on while they were read: "
                        "its retention is too short, or the embedded broker dropped them"
                    )
                elif error is not None and error.fatal():
                    raise explain(error, f"reading {topic}/{partition}", self._address)
            if batch:
                heard_ms = self._clock.monotonic_ms()
            elif self._clock.monotonic_ms() - heard_ms > _SILENCE_MS:
                raise DependencyError(
                    f"reading {topic}/{partition} brought nothing for {_SILENCE_MS} ms (Kafka at {self._address})"
                )

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
