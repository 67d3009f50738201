"""The plain loop with up to 500 events in a pipeline: consume, handle, one round trip, store offsets."""

from __future__ import annotations

import orjson
import redis
from confluent_kafka import KafkaException

from benchmarks.peers.loop import Running, subscribe
from benchmarks.peers.task import SCRIPT, Task, effect, handle

BATCH = 500
#: consume() waits this long for a full batch.
_LINGER_S = 0.02


def main() -> None:
    task = Task.of_arguments()
    running = Running()
    client = redis.Redis.from_url(task.redis_url)
    script = client.register_script(SCRIPT)
    consumer = subscribe(task)
    while running:
        messages = consumer.consume(BATCH, _LINGER_S)
        if not messages:
            continue
        pipeline = client.pipeline(transaction=False)
        for message in messages:
            if message.error():
                raise KafkaException(message.error())
            event = orjson.loads(message.value() or b"")
            handle(event)
            keys, arguments = effect(event)
            script(keys, arguments, client=pipeline)
        pipeline.execute()
        for message in messages:
            consumer.store_offsets(message)
    consumer.close()


if __name__ == "__main__":
    main()
