"""FastStream on confluent-kafka: an async subscriber with one awaited script call per event.

Its defaults: librdkafka commits in the background what was handed out, before it is processed.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis.asyncio
from faststream import FastStream
from faststream.confluent import KafkaBroker

from benchmarks.peers.task import SCRIPT, SESSION_TIMEOUT_MS, Task, effect, handle


def main() -> None:
    task = Task.of_arguments()
    script = redis.asyncio.Redis.from_url(task.redis_url).register_script(SCRIPT)
    broker = KafkaBroker(task.bootstrap, logger=None)

    @broker.subscriber(
        task.topic,
        group_id=task.group,
        auto_offset_reset="earliest",
        session_timeout_ms=SESSION_TIMEOUT_MS,
    )
    async def process(event: dict[str, Any]) -> None:
        handle(event)
        keys, arguments = effect(event)
        await script(keys, arguments)

    asyncio.run(FastStream(broker, logger=None).run())


if __name__ == "__main__":
    main()
