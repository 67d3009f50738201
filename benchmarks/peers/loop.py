"""A plain loop, as confluent-kafka's guide writes it: poll, handle, one script call, store the offset.

Stored offsets are committed in the background (at least once).
"""

from __future__ import annotations

import signal

import orjson
import redis
from confluent_kafka import Consumer, KafkaException

from benchmarks.peers.task import SCRIPT, SESSION_TIMEOUT_MS, Task, effect, handle


def subscribe(task: Task) -> Consumer:
    """A member of the group."""
    consumer = Consumer(
        {
            "bootstrap.servers": task.bootstrap,
            "group.id": task.group,
            "auto.offset.reset": "earliest",
            "enable.auto.offset.store": False,
            "session.timeout.ms": SESSION_TIMEOUT_MS,
        }
    )
    consumer.subscribe([task.topic])
    return consumer


class Running:
    """True until SIGTERM."""

    def __init__(self) -> None:
        self._running = True
        signal.signal(signal.SIGTERM, self._stop)

    def __bool__(self) -> bool:
        return self._running

    def _stop(self, *_signal: object) -> None:
        self._running = False


def main() -> None:
    task = Task.of_arguments()
    running = Running()
    client = redis.Redis.from_url(task.redis_url)
    script = client.register_script(SCRIPT)
    consumer = subscribe(task)
    while running:
        message = consumer.poll(0.5)
        if message is None:
            continue
        if message.error():
            raise KafkaException(message.error())
        event = orjson.loads(message.value() or b"")
        handle(event)
        keys, arguments = effect(event)
        script(keys, arguments)
        consumer.store_offsets(message)
    consumer.close()


if __name__ == "__main__":
    main()
