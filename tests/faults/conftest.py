"""Deployments for the fault tests; what they do to Redis or Kafka is theirs alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import BrokerUnderTest, embedded_broker, kafka_broker, kafka_server
from tests.integration.deployment import Deployment
from tests.redis_server import RedisServer

__all__ = ["embedded_broker", "kafka_broker", "kafka_server"]

Deploy = Callable[..., Deployment]


@pytest.fixture
def deploy(tmp_path: Path) -> Iterator[Deploy]:
    """Makes deployments with a Redis each, all ended with the test."""
    made: list[Deployment] = []

    def make(
        broker: BrokerUnderTest, *, persistent: bool = False, redis_args: tuple[str, ...] = (), **options: Any
    ) -> Deployment:
        folder = tmp_path / str(len(made))
        folder.mkdir()
        server = RedisServer(*redis_args, persistent=persistent).start()
        made.append(Deployment(broker, server, folder, **options))
        return made[-1]

    yield make
    for it in made:
        it.close()
        it.server.close()
