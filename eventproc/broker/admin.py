"""Topics, watermarks and group offsets, asked before the work and from the outside."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from typing import Any, Self, TypeVar

from confluent_kafka import (
    Consumer,
    IsolationLevel,
    KafkaError,
    KafkaException,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient, ClusterMetadata, NewTopic  # type: ignore[attr-defined]

from eventproc.broker.client import EARLIEST, LATEST, LOG, check_config, client_config, explain, kafka_error
from eventproc.broker.embedded import is_embedded
from eventproc.clock import Clock, SystemClock
from eventproc.effects import Offsets
from eventproc.errors import ConfigError, DependencyError, Transient
from eventproc.settings import Settings

_TIMEOUT_MS = 10_000
_STEP_MS = 500
_Client = TypeVar("_Client", AdminClient, Consumer)
_PAUSE_MS = 50


class Admin:
    """One admin connection; `with Admin(settings) as admin`. Every call ends within about `timeout_ms`."""

    def __init__(self, settings: Settings, clock: Clock | None = None, timeout_ms: int = _TIMEOUT_MS) -> None:
        self._settings = settings
        self._clock = clock or SystemClock()
        self._timeout_ms = timeout_ms
        self._address = settings.kafka_bootstrap_servers
        self._last: KafkaError | None = None
        self._client: AdminClient | None = self._connect(AdminClient, {})

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self._client = None

    def metadata(self) -> ClusterMetadata:
        """All brokers and topics. DependencyError when nobody answers, ConfigError when access is denied.

        All topics, because asking for one may create it, with the broker's own number of partitions.
        """
        deadline = self._deadline()
        while True:
            try:
                return self._open().list_topics(timeout=_STEP_MS / 1000)
            except KafkaException as error:
                self._open().poll(0)
                self._check(kafka_error(error), deadline)

    def partition_count(self, topic: str) -> int:
        """Partitions of `topic`, 0 when it does not exist."""
        found = self.metadata().topics.get(topic)
        if found is None or (found.error is not None and not found.partitions):
            return 0
        return len(found.partitions)

    def create_topic(self, topic: str, partitions: int) -> None:
        """Create `topic` and wait until its partitions have leaders; does not mind if it exists by now."""
        if is_embedded(self.metadata().cluster_id):
            raise ConfigError(f"the embedded broker has no topic {topic}, and cannot create one")
        spec = NewTopic(topic, partitions, self._settings.topic_replication_factor)
        future: Future[Any] = self._open().create_topics([spec], operation_timeout=5.0, request_timeout=8.0)[
            topic
        ]
        try:
            self._wait(future)
        except KafkaException as error:
            code = kafka_error(error).code()
            if code != KafkaError.TOPIC_ALREADY_EXISTS:
                raise self._cannot_create(topic, partitions, kafka_error(error)) from error
        self._await_leaders(topic)

    def watermarks(self, topic: str) -> dict[int, tuple[int, int]]:
        """Low and high watermark of each partition, the latter as a reader of committed records sees it."""
        count = self.existing(topic)
        low = self._list_offsets(topic, count, EARLIEST)
        high = self._list_offsets(topic, count, LATEST)
        return {number: (low[number], high[number]) for number in range(count)}

    def ends(self, topic: str, count: int) -> dict[int, int]:
        """End offsets of the partitions that have a leader; one attempt. Raises if there is none."""
        asked: Mapping[TopicPartition, Future[Any]] = self._open().list_offsets(
            {TopicPartition(topic, number): LATEST for number in range(count)},
            isolation_level=IsolationLevel.READ_COMMITTED,
            request_timeout=self._timeout_ms / 1000,
        )
        found: dict[int, int] = {}
        failure: DependencyError | ConfigError | None = None
        for target, future in asked.items():
            try:
                found[target.partition] = int(self._wait(future).offset)
            except KafkaException as error:
                failure = explain(kafka_error(error), "asking for the ends", self._address)
        if failure is not None and not found:
            raise failure
        return found

    def committed(self, topic: str, group: str) -> dict[int, int]:
        """The group's committed offset of each partition, -1 where it has none."""
        targets = [TopicPartition(topic, number) for number in range(self.existing(topic))]
        # Not AdminClient.list_consumer_group_offsets: while the coordinator is being loaded, librdkafka 2.16
        # crashes in it (rd_kafka_cgrp_op without a group).
        consumer = self._connect(Consumer, {"group.id": group})
        try:
            deadline = self._deadline()
            while True:
                try:
                    found = consumer.committed(targets, _STEP_MS / 1000)
                    if error := next((target.error for target in found if target.error is not None), None):
                        raise KafkaException(error)
                    return {target.partition: max(-1, target.offset) for target in found}
                except KafkaException as error:
                    self._check(kafka_error(error), deadline)
        finally:
            consumer.close()

    def _connect(self, kind: type[_Client], fixed: dict[str, Any]) -> _Client:
        config = client_config(self._settings, {}, {**fixed, "error_cb": self._on_error})
        try:
            return kind(config, logger=LOG)
        except (KafkaException, ValueError, TypeError) as error:
            raise check_config(self._settings, error) from error

    def existing(self, topic: str) -> int:
        """Partitions of `topic`; ConfigError when it does not exist."""
        count = self.partition_count(topic)
        if count == 0:
            raise ConfigError(
                f"topic {topic} does not exist (Kafka at {self._address}); {_how_to_create(topic)}"
            )
        return count

    def _list_offsets(self, topic: str, count: int, which: Any) -> dict[int, int]:
        deadline = self._deadline()
        while True:
            asked: Mapping[TopicPartition, Future[Any]] = self._open().list_offsets(
                {TopicPartition(topic, number): which for number in range(count)},
                isolation_level=IsolationLevel.READ_COMMITTED,
                request_timeout=5.0,
            )
            try:
                return {target.partition: int(self._wait(future).offset) for target, future in asked.items()}
            except KafkaException as error:
                self._check(kafka_error(error), deadline)

    def _await_leaders(self, topic: str) -> None:
        deadline = self._deadline()
        while True:
            found = self.metadata().topics.get(topic)
            if found is not None and found.partitions and _all_led(found.partitions.values()):
                return
            if self._clock.monotonic_ms() >= deadline:
                raise Transient(f"topic {topic} has no leaders yet (Kafka at {self._address})")
            self._clock.sleep_ms(_PAUSE_MS)

    def _wait(self, future: Future[Any]) -> Any:
        """The future's result, with callbacks served meanwhile; its own timeout ends it."""
        while not future.done():
            self._open().poll(0.05)
        return future.result()

    def _check(self, error: KafkaError, deadline: int) -> None:
        """Return when it is worth trying again, else raise what is wrong."""
        seen = self._last or error
        for reason in (explain(seen, "connecting", self._address), explain(error, "asking", self._address)):
            if isinstance(reason, ConfigError):
                raise reason
        if self._clock.monotonic_ms() >= deadline:
            raise DependencyError(
                f"Kafka at {self._address} does not answer ({seen.str()}): is it running, and is "
                f"kafka_bootstrap_servers right?"
            )
        self._clock.sleep_ms(_PAUSE_MS)

    def _cannot_create(self, topic: str, partitions: int, error: KafkaError) -> ConfigError | DependencyError:
        reason = explain(error, f"creating topic {topic}", self._address)
        if error.retriable() or error.code() in (KafkaError._TIMED_OUT, KafkaError._TRANSPORT):
            return reason
        return ConfigError(f"{reason}; {_how_to_create(topic, partitions)}")

    def _deadline(self) -> int:
        return self._clock.monotonic_ms() + self._timeout_ms

    def _open(self) -> AdminClient:
        if self._client is None:
            raise RuntimeError("this Admin is closed")
        return self._client

    def _on_error(self, error: KafkaError) -> None:
        """Called inside poll(): keeps what says most, never raises."""
        if self._last is not None and error.code() == KafkaError._ALL_BROKERS_DOWN:
            return
        if self._last is None or not isinstance(explain(self._last, "", ""), ConfigError):
            self._last = error


def _all_led(partitions: Iterable[Any]) -> bool:
    return all(partition.leader >= 0 for partition in partitions)


def _how_to_create(topic: str, partitions: int = 8) -> str:
    return (
        f"set create_topics, or run: kafka-topics.sh --bootstrap-server <broker> --create --topic {topic} "
        f"--partitions {partitions}"
    )


def prepare_topics(settings: Settings, clock: Clock | None = None, timeout_ms: int = _TIMEOUT_MS) -> int:
    """See that both topics exist, creating them where allowed; the partitions of `kafka_topic`.

    A dead-letter topic is created with as many partitions as the events' topic has, so that a user's
    dead letters stay in order. Raises ConfigError or DependencyError with the remedy.
    """
    with Admin(settings, clock, timeout_ms) as admin:
        count = _prepare(admin, settings, settings.kafka_topic, settings.topic_partitions)
        _prepare(admin, settings, settings.dlq_topic, count)
    return count


def _prepare(admin: Admin, settings: Settings, topic: str, partitions: int) -> int:
    if count := admin.partition_count(topic):
        return count
    if not settings.create_topics:
        raise ConfigError(
            f"topic {topic} does not exist (Kafka at {settings.kafka_bootstrap_servers}), and create_topics "
            f"is off; {_how_to_create(topic, partitions)}"
        )
    admin.create_topic(topic, partitions)
    return admin.partition_count(topic)


def watermarks(settings: Settings) -> dict[int, tuple[int, int]]:
    """Low and high watermark of each partition of `kafka_topic`."""
    with Admin(settings) as admin:
        return admin.watermarks(settings.kafka_topic)


def committed_offsets(settings: Settings) -> dict[int, int]:
    """The group's committed offset of each partition of `kafka_topic`, -1 where it has none."""
    with Admin(settings) as admin:
        return admin.committed(settings.kafka_topic, settings.kafka_group_id)


def partition_offsets(settings: Settings) -> dict[int, Offsets]:
    """Watermarks and committed offset of each partition of `kafka_topic`."""
    with Admin(settings) as admin:
        # in this order: under load the end is never behind what was committed
        committed = admin.committed(settings.kafka_topic, settings.kafka_group_id)
        marks = admin.watermarks(settings.kafka_topic)
    return {n: Offsets(low, high, committed.get(n, -1)) for n, (low, high) in marks.items()}


def cluster_id(settings: Settings) -> str:
    """The cluster's id; `embedded.is_embedded` knows an embedded broker by it."""
    with Admin(settings) as admin:
        return admin.metadata().cluster_id or ""
