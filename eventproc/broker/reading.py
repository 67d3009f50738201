"""Reading whole topics, for commands that only look: no group is joined, nothing is committed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition

from eventproc.broker.client import LOG, check_config, client_config, explain, kafka_error
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
_BATCH = 1000
_TIMEOUT_S = 10.0
_WAIT_S = 0.2
_OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
#: A topic that should have records but brings none for this long is given up.
_SILENCE_MS = 20_000


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

    def read(self, topic: str, ranges: Mapping[int, tuple[int, int]]) -> Iterator[Message]:
        """Every record between these offsets (partition -> first, one past the last).

        In offset order within a partition, partitions mixed. A range ends early where its partition does.
        """
        ends = {number: high for number, (low, high) in ranges.items() if low < high}
        targets = [TopicPartition(topic, number, ranges[number][0]) for number in ends]
        if not targets:
            return
        try:
            # librdkafka looks for the leaders of an unknown topic once a second only
            self._consumer.list_topics(topic, _TIMEOUT_S)
            self._consumer.assign(targets)
        except KafkaException as error:
            raise explain(kafka_error(error), f"assigning {topic}", self._address) from error
        heard_ms = self._clock.monotonic_ms()
        while ends:
            first = self._consumer.poll(_WAIT_S)
            if first is None:
                if self._clock.monotonic_ms() - heard_ms > _SILENCE_MS:
                    raise DependencyError(
                        f"reading {topic} brought nothing for {_SILENCE_MS} ms (Kafka at {self._address})"
                    )
                continue
            heard_ms = self._clock.monotonic_ms()
            for message in (first, *self._consumer.consume(_BATCH, 0)):
                number, offset, problem = message.partition(), message.offset(), message.error()
                if problem is not None:
                    if problem.code() == KafkaError._PARTITION_EOF:
                        ends.pop(number or 0, None)
                    else:
                        self._check(problem, f"{topic}/{number}")
                elif number in ends and offset is not None:
                    if offset < ends[number]:
                        yield message
                    if offset >= ends[number] - 1:
                        del ends[number]
                        self._consumer.incremental_unassign([TopicPartition(topic, number)])

    def _check(self, problem: KafkaError, name: str) -> None:
        """Raise what cannot be waited out."""
        if problem.code() in _OUT_OF_RANGE:
            raise ConfigError(
                f"{name} lost records while they were read: its retention is too short, or the embedded "
                "broker dropped them"
            )
        if problem.fatal():
            raise explain(problem, f"reading {name}", self._address)

    def close(self) -> None:
        self._consumer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
