"""An API process for a test; started with the settings it names."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from eventproc.broker.embedded import EmbeddedBroker
from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import ApiServer
from tests.redis_server import RedisServer

StartApi = Callable[..., ApiServer]
WINDOW_MS = 60_000
_numbers = itertools.count(1)


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


@pytest.fixture(scope="session")
def shared_api(
    embedded_broker: BrokerUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    """One API for all tests that have no wishes of their own, but users of their own.

    A slow machine is no fault: nothing leaves the window of the rate limits while a test runs.
    """
    with RedisServer() as server:
        folder = tmp_path_factory.mktemp("api")
        api = ApiServer(embedded_broker, server, folder, rate_window_ms=WINDOW_MS, api_timeout_ms=10_000)
        try:
            yield api.start()
        finally:
            api.close()


@pytest.fixture
def user() -> str:
    """A user that no other test has."""
    return f"user-{next(_numbers)}"


class OwnBroker:
    """An embedded broker of the test's own, to be stopped in its tracks."""

    def __init__(self) -> None:
        self.embedded = EmbeddedBroker({})

    def __enter__(self) -> OwnBroker:
        self.embedded.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.thaw()
        self.embedded.stop()

    def freeze(self) -> None:
        os.kill(self.embedded.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.embedded.pid, signal.SIGCONT)

    @property
    def under_test(self) -> BrokerUnderTest:
        it = self.embedded
        return BrokerUnderTest(
            "embedded", it.bootstrap_servers, it.create_topic, kafka_config=it.client_config
        )


@pytest.fixture
def own_broker() -> Iterator[OwnBroker]:
    with OwnBroker() as broker:
        yield broker
