"""What faults are done to, apart from eventproc: a real Kafka and the proxy in front of it and of Redis."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Protocol, Self

from tests.faults.chaos.proxy import Proxy
from tests.integration.conftest import BrokerUnderTest, broker_of
from tests.kafka_server import KafkaServer
from tests.ports import free_port
from tests.redis_server import RedisServer

KAFKA = "kafka"
REDIS = "redis"


class Behind(Protocol):
    """What a ground stands on."""

    kafka: Any  # a KafkaServer, or mock brokers
    proxy: Proxy

    @property
    def broker(self) -> BrokerUnderTest:
        """Kafka, by the straight way."""
        ...

    def through(self) -> dict[str, str]:
        """Settings of those who take the way through the proxy."""
        ...

    def heal(self, redis: RedisServer) -> None:
        """As if nothing had been; Redis is that one from now on."""
        ...


class Servers:
    """One Kafka with two listeners: the straight one, and one whose address is the proxy's.

    For many grounds, one after the other. Use it within `with`, from a thread that lives as long as it is to.
    """

    def __init__(self) -> None:
        self.kafka = KafkaServer()
        behind, front = free_port(), free_port()
        self.kafka.overrides = {
            "listeners": f"PLAINTEXT://127.0.0.1:{self.kafka.port},PROXIED://127.0.0.1:{behind},"
            f"CONTROLLER://127.0.0.1:{self.kafka.controller_port}",
            "advertised.listeners": f"PLAINTEXT://127.0.0.1:{self.kafka.port},PROXIED://127.0.0.1:{front}",
            "listener.security.protocol.map": "CONTROLLER:PLAINTEXT,PLAINTEXT:PLAINTEXT,PROXIED:PLAINTEXT",
            "inter.broker.listener.name": "PLAINTEXT",
        }
        self.proxy = Proxy({KAFKA: ("kafka", front, behind), REDIS: ("redis", 0, free_port())})

    @property
    def broker(self) -> BrokerUnderTest:
        """Kafka, by the straight way."""
        return broker_of(self.kafka)

    def through(self) -> dict[str, str]:
        """Settings of those who take the way through the proxy."""
        ports = self.proxy.ports
        return {
            "kafka_bootstrap_servers": f"127.0.0.1:{ports[KAFKA]}",
            "redis_url": f"redis://127.0.0.1:{ports[REDIS]}/0",
        }

    def heal(self, redis: RedisServer) -> None:
        """As if nothing had been; Redis is that one from now on."""
        self.kafka.start()
        for link in (KAFKA, REDIS):
            self.proxy.set(link, "pass")
        self.proxy.lead_to(REDIS, redis.port)

    def __enter__(self) -> Self:
        try:
            self.kafka.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kafka.close()
        self.proxy.close()
