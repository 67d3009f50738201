"""Brokers for the integration tests: the embedded one and a real Kafka, one suite for both."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from eventproc.broker.admin import Admin
from eventproc.broker.embedded import EmbeddedBroker
from eventproc.clock import SystemClock
from eventproc.errors import ConfigError
from eventproc.settings import Settings
from tests.kafka_server import KafkaServer, KafkaUnavailable, why_not
from tests.ports import free_port

_CREATE_TIMEOUT_MS = 30_000
_missing_kafka: list[str] = []
_numbers = itertools.count(1)


def make_settings(**values: Any) -> Settings:
    """Settings from these values and the defaults."""
    return Settings(**values)


@dataclass
class BrokerUnderTest:
    """A broker, and fresh topics in it."""

    kind: str
    bootstrap: str
    create: Callable[[str, int], None]
    kafka: KafkaServer | None = None
    kafka_config: dict[str, str] = field(default_factory=dict)

    def topics(self, partitions: int = 1) -> str:
        """Name of a new topic that nobody else uses; its dead-letter topic exists as well."""
        name = f"events-{os.getpid()}-{next(_numbers)}"
        self.create(name, partitions)
        self.create(f"{name}.dlq", partitions)
        return name

    def settings(self, **values: Any) -> Settings:
        """Settings for this broker; a fresh topic of one partition unless `kafka_topic` is given."""
        values.setdefault("kafka_topic", values.get("kafka_topic") or self.topics())
        values["kafka_config"] = {**self.kafka_config, **values.get("kafka_config", {})}
        return make_settings(kafka_bootstrap_servers=self.bootstrap, **values)


@pytest.fixture(scope="session")
def embedded_broker() -> Iterator[BrokerUnderTest]:
    """The embedded broker, shared by the session."""
    with EmbeddedBroker({}) as broker:
        yield BrokerUnderTest(
            "embedded", broker.bootstrap_servers, broker.create_topic, kafka_config=broker.client_config
        )


@pytest.fixture(scope="session")
def kafka_server() -> Iterator[KafkaServer]:
    """A real Kafka, shared by the session."""
    reason = why_not()
    server = KafkaServer()
    try:
        if not reason:
            try:
                server.start()
            except KafkaUnavailable as error:
                reason = str(error)
        if reason:
            _missing_kafka.append(reason)
            pytest.skip(f"no real Kafka: {reason}")
        yield server
    finally:
        server.close()


@pytest.fixture
def kafka_broker(kafka_server: KafkaServer) -> BrokerUnderTest:
    """The real Kafka, running at the start of the test whatever the one before did to it."""
    return broker_of(kafka_server.start())


def broker_of(server: KafkaServer) -> BrokerUnderTest:
    """A running Kafka as the tests use it."""

    def create(name: str, partitions: int) -> None:
        clock = SystemClock()
        deadline = clock.monotonic_ms() + _CREATE_TIMEOUT_MS
        with Admin(make_settings(kafka_bootstrap_servers=server.bootstrap)) as admin:
            while True:
                try:
                    return admin.create_topic(name, partitions)
                except ConfigError as error:  # a broker that has just come up is fenced for a while
                    if "fenced" not in str(error) or clock.monotonic_ms() > deadline:
                        raise
                    clock.sleep_ms(50)

    return BrokerUnderTest("kafka", server.bootstrap, create, server)


@pytest.fixture(params=["embedded", "kafka"])
def broker(request: pytest.FixtureRequest) -> BrokerUnderTest:
    """Each of the two brokers in turn."""
    found: BrokerUnderTest = request.getfixturevalue(f"{request.param}_broker")
    return found


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Nobody is to believe that the tests on a real Kafka ran when they did not."""
    for reason in dict.fromkeys(_missing_kafka):
        terminalreporter.section("THE TESTS ON A REAL KAFKA DID NOT RUN", sep="!", bold=True, red=True)
        terminalreporter.write_line(reason, bold=True)


@pytest.fixture
def unused_port() -> int:
    """A port of 127.0.0.1 on which nobody listens."""
    return free_port()
