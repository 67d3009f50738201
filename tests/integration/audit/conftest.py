"""A world that is in order, as often as it is needed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.integration.audit.planting import build
from tests.integration.audit.world import World
from tests.integration.conftest import BrokerUnderTest
from tests.redis_server import RedisServer


@pytest.fixture(scope="session")
def server() -> Iterator[RedisServer]:
    with RedisServer() as found:
        yield found


@pytest.fixture(scope="session")
def snapshot(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[World, dict[bytes, bytes]]:
    """A world that is in order, and all its keys."""
    world = build(embedded_broker, server, tmp_path_factory.mktemp("world"))
    keys: Any = world.redis.keys("*")
    dumped: dict[bytes, Any] = {key: world.redis.dump(key) for key in keys}
    return world, dumped


@pytest.fixture
def world(snapshot: tuple[World, dict[bytes, bytes]]) -> World:
    """The world in order, to be damaged."""
    found, keys = snapshot
    found.redis.flushall()
    for key, value in keys.items():
        found.redis.restore(key, 0, value)
    return found
