"""A real Redis for the scripts, of the system's version and of the oldest that is supported."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.redis_server import RedisServer, binary, bundled_binary
from tests.script_runner import ScriptRunner


@pytest.fixture(scope="session", params=["system", "oldest"])
def server(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    with RedisServer(executable=binary() if request.param == "system" else bundled_binary()) as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Any:
    """Of an empty server."""
    client = server.client()
    client.config_set("maxmemory", 0)
    client.flushall()
    return client


@pytest.fixture
def me(client: Any) -> ScriptRunner:
    """The owner of the partition."""
    runner = ScriptRunner(client)
    runner.claim()
    return runner
