"""What both programs on Sentry's arroyo share: consumer and engine, made as in its "getting started"."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping

from arroyo.backends.kafka import KafkaConsumer, KafkaPayload
from arroyo.backends.kafka.configuration import build_kafka_consumer_configuration
from arroyo.commit import ONCE_PER_SECOND
from arroyo.processing.processor import StreamProcessor
from arroyo.processing.strategies import ProcessingStrategy, ProcessingStrategyFactory
from arroyo.types import Commit, Partition, Topic

from benchmarks.peers.task import SESSION_TIMEOUT_MS, Task

Steps = Callable[[Commit], ProcessingStrategy[KafkaPayload]]


class _Factory(ProcessingStrategyFactory[KafkaPayload]):
    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def create_with_partitions(
        self, commit: Commit, partitions: Mapping[Partition, int]
    ) -> ProcessingStrategy[KafkaPayload]:
        return self._steps(commit)


def run(task: Task, steps: Steps) -> None:
    """Consume through `steps` until SIGTERM."""
    consumer = KafkaConsumer(
        build_kafka_consumer_configuration(
            {"session.timeout.ms": SESSION_TIMEOUT_MS},
            bootstrap_servers=[task.bootstrap],
            group_id=task.group,
            auto_offset_reset="earliest",
        )
    )
    processor = StreamProcessor(
        consumer=consumer,
        topic=Topic(task.topic),
        processor_factory=_Factory(steps),
        commit_policy=ONCE_PER_SECOND,
    )
    signal.signal(signal.SIGTERM, lambda *_signal: processor.signal_shutdown())
    processor.run()
