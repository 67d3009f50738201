"""Sentry's arroyo, one script call per event: RunTask, then CommitOffsets."""

from __future__ import annotations

import orjson
import redis
from arroyo.backends.kafka import KafkaPayload
from arroyo.processing.strategies import CommitOffsets, ProcessingStrategy, RunTask
from arroyo.types import Commit, Message

from benchmarks.peers.arroyo_steps import run
from benchmarks.peers.task import SCRIPT, Task, effect, handle


def main() -> None:
    task = Task.of_arguments()
    script = redis.Redis.from_url(task.redis_url).register_script(SCRIPT)

    def process(message: Message[KafkaPayload]) -> None:
        event = orjson.loads(message.payload.value)
        handle(event)
        keys, arguments = effect(event)
        script(keys, arguments)

    def steps(commit: Commit) -> ProcessingStrategy[KafkaPayload]:
        return RunTask(process, CommitOffsets(commit))

    run(task, steps)


if __name__ == "__main__":
    main()
