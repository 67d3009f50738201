"""Sentry's arroyo, up to 500 events in one pipeline: BatchStep, RunTask, then CommitOffsets."""

from __future__ import annotations

from typing import Any

import orjson
import redis
from arroyo.backends.kafka import KafkaPayload
from arroyo.processing.strategies import BatchStep, CommitOffsets, ProcessingStrategy, RunTask
from arroyo.types import Commit, Message

from benchmarks.peers.arroyo_steps import run
from benchmarks.peers.task import SCRIPT, Task, effect, handle

BATCH = 500
_LINGER_S = 0.02


def main() -> None:
    task = Task.of_arguments()
    client = redis.Redis.from_url(task.redis_url)
    script = client.register_script(SCRIPT)

    def process(batch: Message[list[Any]]) -> None:
        pipeline = client.pipeline(transaction=False)
        for message in batch.payload:
            event = orjson.loads(message.payload.value)
            handle(event)
            keys, arguments = effect(event)
            script(keys, arguments, client=pipeline)
        pipeline.execute()

    def steps(commit: Commit) -> ProcessingStrategy[KafkaPayload]:
        return BatchStep(BATCH, _LINGER_S, RunTask(process, CommitOffsets(commit)))

    run(task, steps)


if __name__ == "__main__":
    main()
