"""Publishing for asyncio: many records at once, and for each whether Kafka has acknowledged it."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from confluent_kafka import KafkaError, KafkaException, Message, Producer

from eventproc.broker.client import client_config, kafka_error
from eventproc.broker.producer import FIXED, connect
from eventproc.settings import Settings

_log = logging.getLogger(__name__)

_POLL_S = 0.1
_UNLIMITED = 2**31
_OVERHEAD_BYTES = 4096  # of a record beyond key and value
_DEFAULTS: dict[str, Any] = {
    "linger.ms": 2,
    "compression.type": "lz4",
    "queue.buffering.max.messages": 100_000,
    "queue.buffering.max.kbytes": 524_288,
}


class Outgoing(NamedTuple):
    """One record."""

    key: bytes
    value: bytes
    headers: list[tuple[str, bytes]]


class _Batch:
    """Records that were given together; `fates` is filled by librdkafka's thread and by ours."""

    __slots__ = ("done", "fates", "size")

    def __init__(self, size: int, done: asyncio.Future[None]) -> None:
        self.size = size
        self.fates: list[tuple[int, str]] = []  # index, reason
        self.done = done


class Publisher:
    """One idempotent producer, used from one event loop.

    librdkafka is polled by a thread of its own, which wakes the loop once for all batches that a poll has
    completed. `down` says that no broker can be reached; it ends with the next acknowledgement, or `up()`.
    """

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for a `kafka_config` that cannot be used."""
        self.down = False
        self.last_error = ""
        self._settings = settings
        self._topic = settings.kafka_topic
        defaults = {
            **_DEFAULTS,
            "message.max.bytes": max(1_000_000, settings.max_event_bytes + _OVERHEAD_BYTES),
            "message.timeout.ms": settings.api_timeout_ms,
        }
        self._config = client_config(settings, defaults, {**FIXED, "error_cb": self._on_error})
        self._reserved = 0
        self._broken = False
        self._producer = connect(settings, self._config)
        self._capacity = int(self._config["queue.buffering.max.messages"]) or _UNLIMITED
        self._completed: deque[_Batch] = deque()
        self._closing = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, name="publisher", daemon=True)

    def start(self) -> None:
        """Begin to serve; to be called in the event loop that will publish."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    # --- room -----------------------------------------------------------------------------------------

    @property
    def queued(self) -> int:
        """Records in the local queue: not sent, or not acknowledged yet."""
        return len(self._producer)

    def reserve(self, records: int) -> bool:
        """Keep room in the local queue for so many; False when it is too full. `release` gives it back."""
        taken = self.queued + self._reserved
        if taken and taken + records > self._capacity:
            return False
        self._reserved += records
        return True

    def release(self, records: int) -> None:
        """The reserved records are published, or will not be."""
        self._reserved -= records

    # --- publishing -----------------------------------------------------------------------------------

    async def publish(self, records: Sequence[Outgoing], timeout_s: float) -> list[str]:
        """Produce them in this order; what came of each: "" once all replicas have it, else why not.

        One that was not acknowledged may be in the topic all the same.
        """
        assert self._loop is not None
        if self._broken:
            self._replace()
        batch = _Batch(len(records), self._loop.create_future())
        producer, topic = self._producer, self._topic
        for index, record in enumerate(records):
            try:
                producer.produce(
                    topic,
                    record.value,
                    record.key,
                    headers=record.headers,  # type: ignore[arg-type]  # read only
                    on_delivery=partial(self._on_delivery, batch, index),
                )
            except BufferError:
                self._tell(batch, index, "the local queue is full")
            except KafkaException as error:
                self._tell(batch, index, kafka_error(error).str())
        if len(batch.fates) < batch.size:
            await asyncio.wait([batch.done], timeout=timeout_s)
        reasons = [f"not acknowledged by Kafka within {timeout_s:.1f} s"] * len(records)
        for index, reason in batch.fates:
            reasons[index] = reason
        return reasons

    def up(self) -> None:
        """A broker has answered somebody else."""
        self.down = False

    def close(self, timeout_s: float) -> int:
        """Wait until all that was produced is acknowledged; how many were not in `timeout_s`."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        left = self._producer.flush(timeout_s)
        self._producer.purge()
        self._producer.flush(1)
        self._producer.close()
        return left

    # --- in librdkafka's callbacks, so inside poll, flush and produce ---------------------------------

    def _on_delivery(self, batch: _Batch, index: int, error: KafkaError | None, _: Message) -> None:
        if error is None:
            self.down = False
            self._tell(batch, index, "")
            return
        self.last_error = error.str()
        if error.fatal() or error.code() == KafkaError._FATAL:
            self._broken = True
        self._tell(batch, index, error.str())

    def _tell(self, batch: _Batch, index: int, reason: str) -> None:
        # Two threads may come here for one batch. Appending is atomic, so that the one that comes last
        # sees all; should both see all, the second finds the future done.
        batch.fates.append((index, reason))
        if len(batch.fates) == batch.size:
            self._completed.append(batch)

    def _on_error(self, error: KafkaError) -> None:
        self.last_error = error.str()
        if error.fatal():
            self._broken = True
        elif error.code() == KafkaError._ALL_BROKERS_DOWN:
            self.down = True

    # --- the thread -----------------------------------------------------------------------------------

    def _serve(self) -> None:
        assert self._loop is not None
        while not self._closing.is_set():
            self._producer.poll(_POLL_S)
            if self._completed:
                completed = [self._completed.popleft() for _ in range(len(self._completed))]
                self._loop.call_soon_threadsafe(_complete, completed)

    def _replace(self) -> None:
        """An idempotent producer that has met a fatal error refuses all further records."""
        _log.warning("producer started anew topic=%s error=%s", self._topic, self.last_error)
        self._broken = False
        former, self._producer = self._producer, connect(self._settings, self._config)
        former.purge()
        threading.Thread(target=_end, args=(former,), daemon=True).start()


def _complete(batches: list[_Batch]) -> None:
    for batch in batches:
        if not batch.done.done():
            batch.done.set_result(None)


def _end(producer: Producer) -> None:
    """Its records' fates are told on the way."""
    producer.flush(5)
    producer.close()
