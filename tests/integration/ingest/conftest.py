"""An API process for a test; started with the settings it names."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import ApiServer
from tests.redis_server import RedisServer

StartApi = Callable[..., ApiServer]


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def start_api(redis_server: RedisServer, tmp_path: Path) -> Iterator[Callable[..., ApiServer]]:
    """`start_api(broker, **settings)`: a running API on a fresh topic and a fresh Redis."""
    started: list[ApiServer] = []

    def start(broker: BrokerUnderTest, *, ready: bool = True, **settings: Any) -> ApiServer:
        api = ApiServer(broker, redis_server, tmp_path, **settings)
        started.append(api)
        return api.start(ready=ready)

    yield start
    for api in started:
        api.close()


@pytest.fixture(scope="module")
def shared_api(
    embedded_broker: BrokerUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    """One API with the default settings for a module's tests, which use users of their own."""
    with RedisServer() as server:
        api = ApiServer(embedded_broker, server, tmp_path_factory.mktemp("api"))
        try:
            yield api.start()
        finally:
            api.close()
