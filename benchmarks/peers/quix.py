"""Quix Streams: a StreamingDataFrame with one update() per event; commits every 5 s (its default)."""

from __future__ import annotations

from typing import Any

import redis
from quixstreams import Application

from benchmarks.peers.task import SCRIPT, SESSION_TIMEOUT_MS, Task, effect, handle


def main() -> None:
    task = Task.of_arguments()
    script = redis.Redis.from_url(task.redis_url).register_script(SCRIPT)

    def process(event: dict[str, Any]) -> None:
        handle(event)
        keys, arguments = effect(event)
        script(keys, arguments)

    app = Application(
        broker_address=task.bootstrap,
        consumer_group=task.group,
        auto_offset_reset="earliest",
        consumer_extra_config={"session.timeout.ms": SESSION_TIMEOUT_MS},
    )
    events = app.dataframe(app.topic(task.topic, value_deserializer="json"))
    events.update(process)
    app.run()  # until SIGTERM


if __name__ == "__main__":
    main()
