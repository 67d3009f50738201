"""Writing to Kafka: dead letters one by one with their fate, and events in bulk."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from eventproc._entry import headers_of
from eventproc.broker.client import LOG, check_config, client_config, is_away, is_missing, kafka_error
from eventproc.effects import Entry, Headers, Record
from eventproc.errors import Transient
from eventproc.settings import Settings

_log = logging.getLogger(__name__)

Outcome = Transient | None
Origin = tuple[str, int]

ERROR_MAX_CHARS = 512
_POINTER_KEY_MAX_BYTES = 65_536
_OWN_HEADERS = frozenset(
    ("eventproc-reason", "eventproc-error", "eventproc-attempts", "eventproc-origin", "eventproc-pointer")
)

#: What every producer of ours is: acknowledged by all replicas, idempotent, partitioned as others do.
FIXED: dict[str, Any] = {"acks": "all", "enable.idempotence": True, "partitioner": "murmur2_random"}

_DEAD_LETTER_DEFAULTS: dict[str, Any] = {
    "linger.ms": 5,
    "compression.type": "lz4",
    "message.max.bytes": 64_000_000,  # the broker knows its own limit, and says so
    "batch.size": 65_536,  # so a record near that limit is alone in its batch, and alone refused
    "message.timeout.ms": 30_000,
    "topic.metadata.propagation.max.ms": 5_000,  # so long it is believed that a topic may yet come up
    "queue.buffering.max.messages": 20_000,
    "queue.buffering.max.kbytes": 131_072,
}

_BULK_DEFAULTS: dict[str, Any] = {
    "compression.type": "lz4",
    "batch.num.messages": 10_000,
    "batch.size": 1_000_000,
    "queue.buffering.max.messages": 200_000,
    "queue.buffering.max.kbytes": 262_144,
    "message.timeout.ms": 60_000,
}

#: What no retry heals: the record itself is refused.
_PERMANENT = frozenset(
    (
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_TIMESTAMP,
        KafkaError._BAD_MSG,
        KafkaError._INVALID_ARG,
    )
)


def connect(settings: Settings, config: dict[str, Any]) -> Producer:
    """A producer; ConfigError for properties that librdkafka refuses."""
    try:
        return Producer(config, logger=LOG)
    except (KafkaException, ValueError, TypeError) as error:
        raise check_config(settings, error) from error


class DeadLetterProducer:
    """Puts records into the dead-letter topic, with why and from where (CONTRACT 4.7).

    A record that Kafka will never take (too large) is replaced by a pointer: the same key, a small JSON
    object naming its place, header `eventproc-pointer: 1`; counted in `pointers`. Everything else that
    goes wrong may be over the next time. Its client is made at the first dead letter. One thread only.
    """

    def __init__(self, settings: Settings) -> None:
        self.pointers = 0
        self.down = False
        self.last_error = ""
        self._settings = settings
        self._topic = settings.dlq_topic
        self._producer: Producer | None = None
        self._done: list[tuple[Entry, Outcome]] = []
        self._open = 0  # sent, fate not known yet
        self._broken = False
        fixed = {**FIXED, "error_cb": self._on_error}
        self._config = client_config(settings, _DEAD_LETTER_DEFAULTS, fixed)

    @property
    def pending(self) -> int:
        """Letters whose fate `poll` has not told yet."""
        return self._open + len(self._done)

    def send(self, entry: Entry, origin: Origin) -> None:
        """Produce `entry`'s record; `origin` is its topic and partition. `poll` tells what came of it."""
        record = entry.record
        self._open += 1
        headers = _headers(entry, origin, _original(record))
        self._produce(entry, record.key(), record.value(), headers, partial(self._on_letter, entry, origin))

    def poll(self) -> list[tuple[Entry, Outcome]]:
        """Fates since the last call: None (acknowledged), or a Transient: to be sent again."""
        if self._producer is not None:
            self._serve(self._producer, 0)
            if self._broken:
                self._replace()
        done, self._done = self._done, []
        return done

    def flush(self, timeout_s: float) -> bool:
        """Wait until every letter's fate is known; False when some are still open. `poll` tells them."""
        if self._producer is None:
            return True
        self._serve(self._producer, timeout_s)
        return not self._open

    def close(self) -> None:
        """Give up what is still open, unacknowledged."""
        producer, self._producer = self._producer, None
        if producer is not None:
            producer.purge()
            self._serve(producer, 1)
            producer.close()

    def _serve(self, producer: Producer, timeout_s: float) -> None:
        """Serve delivery reports, with a timeout until there are no more to come.

        librdkafka's fatal errors are raised here, whatever error_cb is; what else there is comes after them.
        """
        for _ in range(2):
            try:
                producer.flush(timeout_s) if timeout_s else producer.poll(0)
            except KafkaException as error:
                self._on_error(kafka_error(error))
            else:
                return

    def _produce(
        self,
        entry: Entry,
        key: bytes | None,
        value: bytes | None,
        headers: Headers,
        fate: Callable[..., None],
    ) -> None:
        if self._producer is None:
            self._producer = connect(self._settings, self._config)
        try:
            self._producer.produce(self._topic, value=value, key=key, headers=list(headers), on_delivery=fate)
        except BufferError:
            self._finish(entry, Transient(f"the local queue for {self._topic} is full"))
        except KafkaException as error:
            fate(kafka_error(error), None)

    def _on_letter(
        self, entry: Entry, origin: Origin, error: KafkaError | None, _message: Message | None
    ) -> None:
        if error is not None and error.code() in _PERMANENT:
            self._send_pointer(entry, origin, error)
        else:
            self._settle(entry, error)

    def _send_pointer(self, entry: Entry, origin: Origin, error: KafkaError) -> None:
        topic, number = origin
        value = {
            "topic": topic,
            "partition": number,
            "offset": entry.offset,
            "id": entry.id,
            "reason": entry.reason,
            "error": error.str()[:ERROR_MAX_CHARS],
        }
        key = entry.record.key()
        if key is not None and len(key) > _POINTER_KEY_MAX_BYTES:
            key = None
        headers = [*_headers(entry, origin, []), ("eventproc-pointer", b"1")]
        self._produce(entry, key, json.dumps(value).encode(), headers, partial(self._on_pointer, entry))

    def _on_pointer(self, entry: Entry, error: KafkaError | None, _message: Message | None) -> None:
        if error is None:
            self.pointers += 1
        self._settle(entry, error)

    def _settle(self, entry: Entry, error: KafkaError | None) -> None:
        if error is None:
            self.down = False
            self._finish(entry, None)
            return
        self.last_error = error.str()
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._broken = True
        self._finish(entry, Transient(f"dead letter to {self._topic}: {error.str()}{_remedy(error)}"))

    def _finish(self, entry: Entry, outcome: Outcome) -> None:
        self._open -= 1
        self._done.append((entry, outcome))

    def _on_error(self, error: KafkaError) -> None:
        """Called inside poll(): sets fields, never raises."""
        self.last_error = error.str()
        if error.fatal():
            self._broken = True
        elif is_away(error):
            self.down = True

    def _replace(self) -> None:
        """An idempotent producer that has lost its place in the sequence refuses all further records."""
        _log.warning("dead-letter producer started anew topic=%s error=%s", self._topic, self.last_error)
        self._broken = False
        self.close()


def _remedy(error: KafkaError) -> str:
    if is_missing(error):
        return "; create the topic"
    if error.code() in _PERMANENT:  # a pointer is as small as can be
        return "; even a pointer record is refused: raise max.message.bytes of the topic"
    return ""


def _original(record: Record) -> Headers:
    try:
        return headers_of(record)
    except ValueError:
        return [("eventproc-headers", b"lost: a name is not UTF-8")]


def _headers(entry: Entry, origin: Origin, original: Headers) -> Headers:
    topic, number = origin
    return [
        *((name, value) for name, value in original if name not in _OWN_HEADERS),
        ("eventproc-reason", entry.reason.encode()),
        ("eventproc-error", entry.error[:ERROR_MAX_CHARS].encode("utf-8", "replace")),
        ("eventproc-attempts", b"%d" % entry.attempts),
        ("eventproc-origin", f"{topic}/{number}/{entry.offset}".encode()),
    ]


class EventProducer:
    """Writes events in bulk, as other producers of the topic would (murmur2, acks=all, idempotent).

    `linger_ms` trades latency for larger batches; large batches are what the embedded broker needs (one
    is fetched at a time, and they compress better). Fates: `on_acked(tag, partition, offset)` is called
    inside `produce`, `poll` and `flush`, once per acknowledged record, and must not raise; what failed is
    counted by reason in `failed`.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        linger_ms: int = 100,
        on_acked: Callable[[Any, int, int], None] | None = None,
    ) -> None:
        self.acked = 0
        self.failed: Counter[str] = Counter()
        self.last_error = ""
        self._topic = settings.kafka_topic
        self._on_acked = on_acked
        defaults = {**_BULK_DEFAULTS, "linger.ms": linger_ms}
        fixed = {**FIXED, "error_cb": self._on_error}
        self._producer = connect(settings, client_config(settings, defaults, fixed))

    def produce(
        self,
        key: bytes | None,
        value: bytes | None,
        headers: Headers | None = None,
        *,
        partition: int = -1,
        tag: Any = None,
    ) -> None:
        """Queue one record; waits while the local queue is full. `partition` -1: by key.

        Raises KafkaException when the record can never be sent (too large).
        """
        fate = partial(self._on_delivery, tag)
        while True:
            try:
                self._producer.produce(
                    self._topic,
                    value=value,
                    key=key,
                    partition=partition,
                    headers=list(headers or []),
                    on_delivery=fate,
                )
            except BufferError:
                self._producer.poll(0.05)
            else:
                return

    def poll(self) -> None:
        """Serve delivery reports; call it now and then while producing."""
        self._producer.poll(0)

    def flush(self, timeout_s: float) -> int:
        """Wait for all fates; how many are still open after `timeout_s`."""
        return self._producer.flush(timeout_s)

    def close(self) -> None:
        """Give up what is still open."""
        self._producer.purge()
        self._producer.flush(1)
        self._producer.close()

    def _on_delivery(self, tag: Any, error: KafkaError | None, message: Message) -> None:
        if error is not None:
            self.failed[error.name()] += 1
            self.last_error = error.str()
            return
        self.acked += 1
        if self._on_acked is not None:
            partition, offset = message.partition(), message.offset()
            if partition is not None and offset is not None:
                self._on_acked(tag, partition, offset)

    def _on_error(self, error: KafkaError) -> None:
        self.last_error = error.str()
