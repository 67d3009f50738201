"""The embedded broker with three nodes, told to misbehave: what a real Kafka does only with a cluster.

Orders, beside those of eventproc.broker.embedded: `lead <topic> <partition> <node>`, `errors <request type>
<code> <times>`, `rtt <ms>`, `down <node>`, `up <node>`, `count <request type>` (answers how many such
requests came since the last order of this kind).
"""

from __future__ import annotations

import ctypes
import sys
from types import TracebackType
from typing import Any, Self

from eventproc.broker.embedded import EmbeddedBroker, MockCluster, main
from tests.faults.chaos.proxy import Proxy
from tests.faults.chaos.servers import REDIS
from tests.integration.conftest import BrokerUnderTest
from tests.ports import free_port
from tests.redis_server import RedisServer

NODES = 3


class _FaultyCluster(MockCluster):
    def __init__(self) -> None:
        super().__init__(NODES)
        pointer, number, short = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int16
        for name, result, arguments in (
            ("push_request_errors_array", None, [pointer, short, ctypes.c_size_t, pointer]),
            ("clear_request_errors", None, [pointer, short]),
            ("partition_set_leader", ctypes.c_int, [pointer, ctypes.c_char_p, number, number]),
            ("broker_set_down", ctypes.c_int, [pointer, number]),
            ("broker_set_up", ctypes.c_int, [pointer, number]),
            ("broker_set_rtt", ctypes.c_int, [pointer, number, ctypes.c_int]),
            ("start_request_tracking", None, [pointer]),
            ("get_requests", ctypes.POINTER(pointer), [pointer, pointer]),
            ("clear_requests", None, [pointer]),
            ("request_api_key", short, [pointer]),
            ("request_destroy_array", None, [pointer, ctypes.c_size_t]),
        ):
            function: Any = getattr(self._library, f"rd_kafka_mock_{name}")
            function.restype, function.argtypes = result, arguments
        self._on("start_request_tracking")

    def _call(self, name: str, *values: Any) -> Any:
        return getattr(self._library, f"rd_kafka_mock_{name}")(*values)

    def _on(self, name: str, *values: Any) -> Any:
        return self._call(name, self._cluster, *values)

    def obey(self, order: str) -> str:
        verb, *words = order.split()
        match verb:
            case "lead":
                self._on("partition_set_leader", words[0].encode(), int(words[1]), int(words[2]))
            case "errors":
                api, code, times = map(int, words)
                self._on("clear_request_errors", api)
                if times:
                    codes = (ctypes.c_int * times)(*[code] * times)
                    self._on("push_request_errors_array", api, times, codes)
            case "rtt":
                for node in range(1, NODES + 1):
                    self._on("broker_set_rtt", node, int(words[0]))
            case "down" | "up":
                self._on(f"broker_set_{verb}", int(words[0]))
            case "count":
                return str(self._count(int(words[0])))
            case _:
                return super().obey(order)
        return "ok"

    def _count(self, api: int) -> int:
        count = ctypes.c_size_t()
        requests = self._on("get_requests", ctypes.byref(count))
        found = [self._call("request_api_key", requests[i]) for i in range(count.value)].count(api)
        self._call("request_destroy_array", requests, count.value)
        self._on("clear_requests")
        return found


class FaultyBroker(EmbeddedBroker):
    """Its process, from outside."""

    _program = __name__

    @property
    def client_config(self) -> dict[str, str]:
        """One request under way at a time: the mock does not check sequences, as a broker does. It takes a
        later request after it has refused an earlier one, and an idempotent producer counts both as
        acknowledged.
        """
        return super().client_config | {"max.in.flight.requests.per.connection": "1"}

    def order(self, text: str) -> str:
        """One line; the answer."""
        reply = self._order(text)
        assert reply == "ok" or reply.isdigit(), reply
        return reply


class MockServers:
    """As `servers.Servers`, with mock brokers in place of a Kafka behind the proxy."""

    def __init__(self) -> None:
        self.kafka = FaultyBroker({})
        self.proxy = Proxy({REDIS: ("redis", 0, free_port())})

    @property
    def broker(self) -> BrokerUnderTest:
        config = self.kafka.client_config
        return BrokerUnderTest(
            "embedded", self.kafka.bootstrap_servers, self.kafka.create_topic, kafka_config=config
        )

    def through(self) -> dict[str, str]:
        """Settings of those who take the way through the proxy."""
        return {"redis_url": f"redis://127.0.0.1:{self.proxy.ports[REDIS]}/0"}

    def heal(self, redis: RedisServer) -> None:
        """As if nothing had been; Redis is that one from now on."""
        self.kafka.order("rtt 0")
        for node in range(1, NODES + 1):
            self.kafka.order(f"up {node}")
        self.proxy.set(REDIS, "pass")
        self.proxy.lead_to(REDIS, redis.port)

    def __enter__(self) -> Self:
        self.kafka.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kafka.stop()
        self.proxy.close()


if __name__ == "__main__":
    sys.exit(main(make=_FaultyCluster))
