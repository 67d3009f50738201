"""Reading one partition: assigned by hand, committed explicitly, its end asked without waiting."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from confluent_kafka import (
    OFFSET_BEGINNING,
    OFFSET_END,
    Consumer,
    KafkaError,
    KafkaException,
    Message,
    TopicPartition,
)

from eventproc.broker.client import LOG, check_config, client_config, explain, is_away, kafka_error
from eventproc.broker.embedded import check_not_dropped, is_embedded
from eventproc.broker.end_query import EndQuery
from eventproc.clock import Clock
from eventproc.effects import Offsets
from eventproc.errors import ConfigError, DependencyError, Transient
from eventproc.settings import Settings

if TYPE_CHECKING:
    Errors = ConfigError | DependencyError

_log = logging.getLogger(__name__)

#: One partition per process, eight processes per host: small local queues, refilled early. A few reads are
#: kept ahead: more would be unpacked while the first events wait, and be out of the processor's cache then.
_DEFAULTS: dict[str, Any] = {
    "queued.max.messages.kbytes": 16_384,
    "queued.min.messages": 2_000,
    "fetch.queue.backoff.ms": 20,
    "fetch.wait.max.ms": 100,
    "fetch.min.bytes": 1,
    "fetch.error.backoff.ms": 100,
    "fetch.message.max.bytes": 1_048_576,
    "fetch.max.bytes": 16_777_216,
    "check.crcs": False,
}

_FIXED: dict[str, Any] = {
    "enable.auto.commit": False,
    "enable.auto.offset.store": False,
    "enable.partition.eof": True,
    "isolation.level": "read_committed",
    "auto.offset.reset": "error",
}

_OUT_OF_RANGE = (KafkaError._AUTO_OFFSET_RESET, KafkaError.OFFSET_OUT_OF_RANGE)
#: While the broker is away, it is asked this often whether it is back.
_PROBE_MS = 250
_COMMIT_MS = 50
_COMMIT_RETRY_MS = 500


class OffsetOutOfRange(ConfigError):
    """The offset to read is not in the log; `on_offset_out_of_range` says what to do instead."""


class PartitionConsumer:
    """One partition of `kafka_topic`, read by one thread.

    Nothing is read before the first `seek`. `position` is the next offset to read as far as known: one
    past the last record, or the offset of the partition's end (which lies beyond transaction markers and
    aborted records). `down` tells that the broker cannot be reached, for the reason `last_error`; it goes
    off by itself once the broker answers a query made since, also when there is nothing to read (records
    in the local queue prove nothing). Both are kept up only while `consume` is called.
    """

    def __init__(self, settings: Settings, partition: int, clock: Clock) -> None:
        self.position = -1
        self.committed = -1
        self.down = False
        self.errors = 0  # so far
        self.last_error = ""
        self._settings = settings
        self._topic = settings.kafka_topic
        self._partition = partition
        self._clock = clock
        self._name = f"{self._topic}/{partition}"
        self._address = settings.kafka_bootstrap_servers
        self._wanted = -1
        self._commit_failed = False
        self._sent = -1  # offset of the commit under way, -1: none
        self._sent_ms = -_COMMIT_MS  # when the last one was made
        self._fatal: KafkaError | None = None
        self._closed = False
        fixed = {**_FIXED, "group.id": settings.kafka_group_id}
        config = client_config(settings, _DEFAULTS, fixed)
        config |= {"error_cb": self._on_error, "on_commit": self._on_commit}
        try:
            self._consumer = Consumer(config, logger=LOG)
        except (KafkaException, ValueError, TypeError) as error:
            raise check_config(settings, error) from error
        self._query = EndQuery(settings, partition, clock)

    # --- offsets ------------------------------------------------------------------------------------

    def offsets(self, timeout_s: float) -> Offsets:
        """Low and high watermark (as this isolation level may read) and committed offset; a round trip.

        Raises Transient when the broker is away, ConfigError when the partition does not exist or may not
        be read.
        """
        target = TopicPartition(self._topic, self._partition)
        try:
            low, high = self._consumer.get_watermark_offsets(target, timeout_s, False)
            found = self._consumer.committed([target], timeout_s)[0]
        except KafkaException as error:
            if self._is_known(timeout_s):  # librdkafka calls a partition unknown when its leader is away
                text = f"reading the offsets of {self._name}: {kafka_error(error).str()}"
                raise Transient(f"{text} (Kafka at {self._address})") from error
            raise self._explain(kafka_error(error), "reading the offsets of") from error
        if found.error is not None:
            raise self._explain(found.error, "reading the committed offset of")
        self.down = False
        if low > 0 and self._is_embedded(timeout_s):
            check_not_dropped(low, found.offset, self._topic, self._partition)
        return Offsets(low, high, found.offset if found.offset >= 0 else -1)

    def _is_embedded(self, timeout_s: float) -> bool:
        try:
            return is_embedded(self._consumer.list_topics(self._topic, timeout_s).cluster_id)
        except KafkaException as error:
            raise self._explain(kafka_error(error), "reading the metadata of") from error

    def lag(self) -> int:
        """Records between `position` and the partition's end as the last fetch told it; no round trip."""
        if self.position < 0:
            return 0
        target = TopicPartition(self._topic, self._partition)
        _low, high = self._consumer.get_watermark_offsets(target, cached=True)
        return max(0, high - self.position)

    # --- reading ------------------------------------------------------------------------------------

    def seek(self, offset: int) -> None:
        """Read from `offset` on; everything fetched before is thrown away, also what is queued locally.

        A pause ends with it.
        """
        self._assign(offset)
        self.resume()  # librdkafka keeps a partition paused when it is assigned anew
        self.position = offset

    def consume(self, max_records: int, timeout_s: float) -> list[Message]:
        """Records in offset order, at most `max_records`; empty when none came within `timeout_s`.

        What is there is returned at once; only when nothing is, the first record is waited for. Callbacks
        (commit replies, connection errors) are served as well. Raises OffsetOutOfRange, or
        DependencyError when librdkafka cannot go on.
        """
        if timeout_s > 0:
            until_ms = self._clock.monotonic_ms() + timeout_s * 1000
            first = self._consumer.poll(timeout_s)
            if first is not None and self._is_at_end(first):  # told after every read, and leads to nothing
                first = self._consumer.poll(max(until_ms - self._clock.monotonic_ms(), 0) / 1000)
            batch = [first] if first is not None else []
            if batch and max_records > 1:
                batch += self._consumer.consume(max_records - 1, 0)
        else:
            batch = self._consumer.consume(max_records, 0)
        records = [message for message in batch if message.error() is None]
        if records:
            self._advance(records[0].offset(), records[-1].offset())
        if len(records) < len(batch):
            self._serve_errors(batch)
        if self._fatal is not None:
            raise DependencyError(f"reading {self._name}: {self._fatal.str()} (Kafka at {self._address})")
        self._upkeep()
        return records

    def pause(self) -> None:
        """Fetch no more; `consume` still serves callbacks and what is queued is kept."""
        self._consumer.pause([TopicPartition(self._topic, self._partition)])

    def resume(self) -> None:
        """Fetch again."""
        self._consumer.resume([TopicPartition(self._topic, self._partition)])

    # --- the partition's end ------------------------------------------------------------------------

    def request_end(self) -> None:
        """Ask the broker for the partition's end offset; does not wait. An earlier answer is forgotten."""
        self._query.request()

    def poll_end(self) -> int | None:
        """The end offset, of a query made after `request_end`; None while there is no answer.

        A failed query is made again. `position` reaches the answer, also when the log ends with aborted
        records or markers.
        """
        return self._query.poll()

    # --- commits ------------------------------------------------------------------------------------

    def commit(self, offset: int) -> None:
        """Commit `offset` in the background; the newest offset wins.

        One commit is under way at a time, and one is made in 50 ms: while events trickle in, each would
        make one. What was put off, and after half a second what failed, is made by a later `consume`.
        `committed` is the last acknowledged one.
        """
        self._wanted = offset
        self._commit_if_due()

    def flush_commits(self, timeout_s: float) -> bool:
        """Wait until the newest offset is committed; False when it is not in time.

        For the end of a worker: records that arrive meanwhile are thrown away.
        """
        deadline = self._clock.monotonic_ms() + int(timeout_s * 1000)
        self._consumer.unassign()
        while self._wanted != self.committed and self._clock.monotonic_ms() < deadline:
            if self._sent < 0:
                self._send_commit()
            self._consumer.poll(0.02)
        return self._wanted == self.committed

    def close(self) -> None:
        """Close the handles; nothing may be called after it."""
        if not self._closed:
            self._closed = True
            self._query.close()
            self._consumer.close()

    # --- inside -------------------------------------------------------------------------------------

    def _is_known(self, timeout_s: float) -> bool:
        """Whether the broker knows the partition; Transient when it does not answer."""
        try:
            found = self._consumer.list_topics(self._topic, timeout_s).topics[self._topic]
        except KafkaException as error:
            raise self._explain(kafka_error(error), "looking for") from error
        return found.error is None and self._partition in found.partitions

    def _assign(self, offset: int) -> None:
        try:
            self._consumer.assign([TopicPartition(self._topic, self._partition, offset)])
        except KafkaException as error:
            raise self._explain(kafka_error(error), "assigning") from error

    def _advance(self, first: int | None, last: int | None) -> None:
        if first is None or last is None:  # only messages that are still to be produced have none
            raise RuntimeError("a fetched record without offset")
        if first < self.position:
            raise OffsetOutOfRange(
                f"{self._name} went back from offset {self.position} to {first}: the topic was created anew "
                f"or truncated. To go on elsewhere, set on_offset_out_of_range to earliest or latest and "
                f"start the supervisor again; eventproc offsets show tells where the partitions stand"
            )
        self.position = last + 1

    def _is_at_end(self, message: Message) -> bool:
        """Whether it only tells that the log ends where it is known to end."""
        error = message.error()
        return (
            error is not None
            and error.code() == KafkaError._PARTITION_EOF
            and message.offset() == self.position
        )

    def _serve_errors(self, batch: list[Message]) -> None:
        for message in batch:
            error = message.error()
            if error is None:
                continue
            if error.code() == KafkaError._PARTITION_EOF:
                offset = message.offset()
                if offset is not None and offset > self.position:
                    self.position = offset
                continue
            self.errors += 1
            if error.code() in _OUT_OF_RANGE:
                self._out_of_range(error)
            elif error.fatal():
                self._fatal = error
            else:
                self._set_down(error)

    def _out_of_range(self, error: KafkaError) -> None:
        policy = self._settings.on_offset_out_of_range
        if policy == "stop":
            raise OffsetOutOfRange(
                f"offset {self.position} of {self._name} is not in the log any more ({error.str()}): set "
                f"on_offset_out_of_range to earliest or latest to go on elsewhere"
            )
        place = (self._topic, self._partition, self.position, policy)
        _log.warning("offset out of range topic=%s partition=%d offset=%d policy=%s", *place)
        self._assign(OFFSET_BEGINNING if policy == "earliest" else OFFSET_END)

    def _upkeep(self) -> None:
        self._query.serve()
        if self._wanted != self.committed:
            self._commit_if_due()
        if self.down:
            self._query.probe(_PROBE_MS)
            self.down = not self._query.alive

    def _commit_if_due(self) -> None:
        pause_ms = _COMMIT_RETRY_MS if self._commit_failed else _COMMIT_MS
        if self._sent < 0 and self._clock.monotonic_ms() - self._sent_ms >= pause_ms:
            self._send_commit()

    def _send_commit(self) -> None:
        self._commit_failed = False
        self._sent_ms = self._clock.monotonic_ms()
        target = TopicPartition(self._topic, self._partition, self._wanted)
        try:
            self._consumer.commit(offsets=[target], asynchronous=True)
        except KafkaException as error:
            self.errors += 1
            self._commit_failed = True
            self.last_error = kafka_error(error).str()
        else:
            self._sent = self._wanted

    def _on_commit(self, error: KafkaError | None, partitions: list[TopicPartition]) -> None:
        """Called inside consume(): sets fields, never raises."""
        failure = error or (partitions[0].error if partitions else None)
        if failure is None:
            self.committed = self._sent
        else:
            self.errors += 1
            self._commit_failed = True
            self.last_error = f"commit of {self._sent}: {failure.str()}"
        self._sent = -1

    def _on_error(self, error: KafkaError) -> None:
        """Called inside consume(): sets fields, never raises."""
        self.errors += 1
        if error.fatal():
            self._fatal = error
        elif is_away(error):
            self._set_down(error)

    def _set_down(self, error: KafkaError) -> None:
        if not self.down or error.code() != KafkaError._ALL_BROKERS_DOWN:  # that one tells no reason
            self.last_error = error.str()
        self.down = True
        self._query.forget()

    def _explain(self, error: KafkaError, doing: str) -> Errors:
        return explain(error, f"{doing} {self._name}", self._address)
