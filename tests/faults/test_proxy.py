"""The fault proxy does to a connection what it says, and counts it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from tests.faults.chaos.proxy import OFFSET_COMMIT, PRODUCE, KafkaTalk, Proxy
from tests.redis_server import RedisServer

_ADD = "return redis.call('INCR', KEYS[1])"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def proxy(server: RedisServer) -> Iterator[Proxy]:
    server.client().flushall()
    with Proxy({"redis": ("redis", 0, server.port)}) as proxy:
        yield proxy


def through(server: RedisServer, proxy: Proxy) -> redis.Redis:
    return server.client(port=proxy.ports["redis"], socket_timeout=0.5)


def add(client: redis.Redis) -> int:
    return int(client.evalsha(client.script_load(_ADD), 1, "n"))


def test_passes(server: RedisServer, proxy: Proxy) -> None:
    big = "x" * 1_000_000
    client = through(server, proxy)
    client.set("big", big)
    assert client.get("big") == big.encode()
    assert set(proxy.hits("redis").values()) == {0}


def test_a_lost_reply_is_one_to_a_script_call_that_was_carried_out(server: RedisServer, proxy: Proxy) -> None:
    client = through(server, proxy)
    proxy.set("redis", "lose_reply")
    assert client.ping()  # no script call
    with pytest.raises(redis.ConnectionError):
        add(client)
    assert proxy.set("redis", "pass")["lose_reply"] == 1
    assert add(client) == 2


def test_a_cut_reply_comes_by_half(server: RedisServer, proxy: Proxy) -> None:
    client = through(server, proxy)
    sha1 = client.script_load(_ADD)
    client.evalsha(sha1, 1, "n")
    proxy.set("redis", "cut_reply")
    with pytest.raises(redis.ConnectionError):
        client.evalsha(sha1, 1, "n")
    assert proxy.set("redis", "pass")["cut_reply"] >= 1
    assert server.client().get("n") == b"2"


def test_refuses_until_it_listens_again(server: RedisServer, proxy: Proxy) -> None:
    client = through(server, proxy)
    client.ping()
    assert proxy.set("redis", "refuse")["refuse"] == 1
    with pytest.raises(redis.ConnectionError):
        client.ping()
    with pytest.raises(redis.ConnectionError, match="refused"):
        through(server, proxy).ping()
    proxy.set("redis", "pass")
    assert client.ping()


def test_freezes_and_goes_on_where_it_stood(server: RedisServer, proxy: Proxy) -> None:
    client = through(server, proxy)
    client.ping()
    proxy.set("redis", "freeze")
    with pytest.raises(redis.TimeoutError):
        client.incr("n")
    proxy.set("redis", "pass")
    assert through(server, proxy).ping()
    assert proxy.hits("redis")["freeze"] >= 1


def test_delays_replies(server: RedisServer, proxy: Proxy) -> None:
    client = through(server, proxy)
    client.ping()
    proxy.set("redis", "delay", delay_ms=700)
    with pytest.raises(redis.TimeoutError):
        client.ping()
    assert proxy.hits("redis")["delay"] == 1


def test_leads_elsewhere(server: RedisServer, proxy: Proxy) -> None:
    client = through(server, proxy)
    client.set("who", "first")
    with RedisServer() as other:
        other.client().set("who", "second")
        proxy.lead_to("redis", other.port)
        assert through(server, proxy).get("who") == b"second"


def frame(body: bytes) -> bytes:
    return len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("step", [1, 3, 7, 1000])
def test_kafka_replies_are_told_by_what_they_answer(step: int) -> None:
    def asked(api: int, correlation: int) -> bytes:
        return frame(api.to_bytes(2, "big") + b"\0\7" + correlation.to_bytes(4, "big") + b"client" * 5)

    def answered(correlation: int, size: int) -> bytes:
        return frame(correlation.to_bytes(4, "big") + b"x" * size)

    talk = KafkaTalk()
    requests = asked(PRODUCE, 1) + asked(OFFSET_COMMIT, 2) + asked(PRODUCE, 3)
    for at in range(0, len(requests), step):
        talk.request(requests[at : at + step])
    replies = answered(2, 0) + answered(1, 50) + answered(3, 4)
    seen, passed = [], b""
    for at in range(0, len(replies), step):
        for piece, answers in talk.replies(replies[at : at + step]):
            passed += piece
            seen += [answers] if answers >= 0 else []
    assert seen == [OFFSET_COMMIT, PRODUCE, PRODUCE]
    assert passed == replies
