"""The channel against a real Redis that forgets scripts, dies, freezes, fills up and takes rights away."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from eventproc.clock import SystemClock
from eventproc.effects import (
    Acquire,
    Acquired,
    Claim,
    Claimed,
    Finalize,
    Finalized,
    LoadUsers,
    StoreReply,
    StoreRequest,
    UserState,
)
from eventproc.errors import ConfigError, Transient
from eventproc.store.channel import Channel
from tests.ports import free_port
from tests.redis_server import RedisServer, bundled_binary
from tests.script_runner import entry, group, settings


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with RedisServer(persistent=True) as running:
        yield running


class Line:
    """A channel with a claimed partition."""

    def __init__(self, **values: Any) -> None:
        self.channel = Channel(settings(**values), "events", 0, SystemClock())
        self.epoch = 0
        self.rev = 0

    def claim(self) -> Claimed:
        claimed = cast(Claimed, self.channel.call(Claim("me", 10_000)))
        self.epoch, self.rev = claimed.epoch, claimed.rev
        return claimed

    def finalize(self, seq: int) -> Finalize:
        self.rev += 1
        entries = [entry(seq, "u", seq)]
        return Finalize(self.epoch, "me", self.rev, seq + 1, 0, [group("u", *entries)])

    def replies(self, count: int, timeout_s: float = 20) -> list[tuple[StoreRequest, StoreReply]]:
        """Poll until that many have come."""
        found: list[tuple[StoreRequest, StoreReply]] = []
        self.poll_until(lambda: len(found) >= count, f"{count} replies", found, timeout_s)
        assert len(found) == count
        return found

    def poll_until(
        self,
        condition: Callable[[], bool],
        what: str,
        found: list[tuple[StoreRequest, StoreReply]] | None = None,
        timeout_s: float = 20,
    ) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"no {what}: {self.channel.last_error}"
            replies = self.channel.poll(20)
            assert found is not None or not replies, f"unexpected: {replies}"
            if found is not None:
                found += replies


@pytest.fixture
def line(server: RedisServer) -> Iterator[Line]:
    line = Line(redis_url=server.url)
    line.claim()
    yield line
    line.channel.close()


def order(server: RedisServer) -> list[int]:
    return [int(seq) for seq in cast(list[bytes], server.client().lrange("order:u", 0, -1))]


def test_several_under_way_are_answered_in_order(line: Line) -> None:
    requests: list[StoreRequest] = [
        LoadUsers(["u"]),
        Acquire(line.epoch, "me", [entry(1, "u", 1)]),
        line.finalize(1),
        line.finalize(2),
        LoadUsers(["u"]),
    ]
    for request in requests:
        line.channel.submit(request)
    assert line.channel.pending() == 5
    replies = line.replies(5)
    assert [id(request) for request, _ in replies] == [id(request) for request in requests]
    assert replies[0][1] == [UserState(dense=True)]
    assert cast(Acquired, replies[1][1]).verdicts == [0]
    assert replies[4][1] == [UserState(2, dense=True)]
    assert line.channel.pending() == 0


def test_poll_does_not_wait_for_what_is_not_there(line: Line) -> None:
    before = time.monotonic()
    assert line.channel.poll() == []
    assert time.monotonic() - before < 3  # and not for redis_timeout_ms
    assert line.channel.up
    assert line.channel.down_since_ms == -1
    assert line.channel.fileno() >= 0


def test_flushed_scripts_are_loaded_again_in_order(line: Line, server: RedisServer) -> None:
    for seq in range(1, 31):
        if seq % 10 == 5:
            server.client().script_flush()
        line.channel.submit(line.finalize(seq))
    replies = line.replies(30)
    assert [cast(Finalized, reply).status for _, reply in replies] == ["ok"] * 30
    assert order(server) == list(range(1, 31))
    assert line.channel.outages == 0


def test_what_overtook_a_forgotten_script_is_run_again(line: Line, server: RedisServer) -> None:
    client = server.client()
    client.script_flush()
    # Only acquire is known: it runs at once, before the finalize that was sent ahead of it.
    client.script_load(line.channel.scripts.scripts["acquire_events"].source)
    finalize = line.finalize(1)
    line.channel.submit(finalize)
    line.channel.submit(Acquire(line.epoch, "me", finalize.entries()))
    (_, first), (_, second) = line.replies(2)
    assert cast(Finalized, first).status == "ok"
    assert cast(Acquired, second).verdicts == [1]


def test_nothing_is_lost_or_doubled_over_a_crash(line: Line, server: RedisServer) -> None:
    for seq in range(1, 11):
        line.channel.submit(line.finalize(seq))
    server.kill()
    for seq in range(11, 21):
        line.channel.submit(line.finalize(seq))
    found: list[tuple[StoreRequest, StoreReply]] = []
    line.poll_until(lambda: line.channel.outages == 1 and not line.channel.up, "outage", found)
    assert line.channel.down_since_ms >= 0
    assert f"127.0.0.1:{server.port}" in line.channel.last_error
    server.start()
    line.poll_until(lambda: len(found) == 20, "20 replies", found)
    assert [cast(Finalized, reply).status for _, reply in found] == ["ok"] * 20
    assert order(server) == list(range(1, 21))
    assert line.channel.up
    assert line.channel.outages == 1


def test_first_answer_has_its_full_time(server: RedisServer) -> None:
    """The clock is far from 0 by then: that an answer is not there at the first look is no silence."""
    looks = 0

    class NothingYet(Channel):
        def _receive(self, wait_ms: float) -> bool:
            nonlocal looks
            looks += 1
            return super()._receive(wait_ms) if looks > 2 else False

    channel = NothingYet(settings(redis_url=server.url), "events", 0, SystemClock())
    assert cast(Claimed, channel.call(Claim("me", 10_000))).status == "ok"
    assert channel.last_error == ""
    assert looks > 2
    channel.close()


def test_it_comes_up_without_anything_to_send(line: Line, server: RedisServer) -> None:
    server.kill()
    line.poll_until(lambda: not line.channel.up, "outage")
    server.start()
    line.poll_until(lambda: line.channel.up, "recovery")


def test_silence_is_an_outage_and_late_answers_do_no_harm(server: RedisServer) -> None:
    line = Line(redis_url=server.url, redis_timeout_ms=200)
    line.claim()
    server.freeze()
    for seq in (1, 2, 3):
        line.channel.submit(line.finalize(seq))
    line.poll_until(lambda: not line.channel.up, "outage")
    assert "no answer for" in line.channel.last_error
    server.thaw()
    replies = line.replies(3)
    assert [cast(Finalized, reply).status for _, reply in replies] == ["ok"] * 3
    assert order(server) == [1, 2, 3]
    line.channel.close()


def test_lost_reply_is_answered_the_same(line: Line, server: RedisServer) -> None:
    line.channel.submit(line.finalize(1))
    line.channel.flush()
    client: Any = server.client()
    deadline = time.monotonic() + 10
    while client.hget("partition:events:0", "rev") != b"1":
        assert time.monotonic() < deadline
    client.client_kill_filter(_type="normal", skipme=True)
    ((_, reply),) = line.replies(1)
    assert cast(Finalized, reply) == Finalized("ok", 2)
    assert order(server) == [1]


@pytest.mark.parametrize(
    ("trouble", "cure", "code"),
    [
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0"), "OOM"),
        (
            ("CONFIG", "SET", "min-replicas-to-write", "1"),
            ("CONFIG", "SET", "min-replicas-to-write", "0"),
            "NOREPLICAS",
        ),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE"), "READONLY"),
        (
            ("ACL", "SETUSER", "default", "-hset"),
            ("ACL", "SETUSER", "default", "+@all"),
            "user executing the script|NOPERM",
        ),
    ],
)
def test_the_servers_trouble_is_waited_out(
    line: Line, server: RedisServer, trouble: tuple[str, ...], cure: tuple[str, ...], code: str
) -> None:
    client: Any = server.client()
    client.execute_command(*trouble)
    line.channel.submit(line.finalize(1))
    line.channel.submit(line.finalize(2))
    line.poll_until(lambda: not line.channel.up, "outage")
    assert any(word in line.channel.last_error for word in code.split("|"))
    assert line.channel.refused
    since = line.channel.down_since_ms
    client.execute_command(*cure)
    replies = line.replies(2)
    assert [cast(Finalized, reply).status for _, reply in replies] == ["ok", "ok"]
    assert since >= 0
    assert line.channel.up
    assert order(server) == [1, 2]


def test_an_error_amidst_a_batch_is_waited_out_by_what_follows(line: Line, server: RedisServer) -> None:
    client = server.client()
    client.config_set("maxmemory", 1)
    requests: list[StoreRequest] = [LoadUsers(["u"]), line.finalize(1), LoadUsers(["u"])]
    for request in requests:
        line.channel.submit(request)
    found: list[tuple[StoreRequest, StoreReply]] = []
    line.poll_until(lambda: not line.channel.up or len(found) > 1, "outage", found)
    assert found == [(requests[0], [UserState(dense=True)])]
    client.config_set("maxmemory", 0)
    (_, finalized), (_, state) = line.replies(2)
    assert cast(Finalized, finalized).status == "ok"
    assert state == [UserState(1, dense=True)]  # read behind it, though it was answered before


@pytest.mark.parametrize("change", ["maxmemory", "rights"])
def test_the_oldest_redis_wraps_its_trouble_which_is_waited_out_too(change: str) -> None:
    with RedisServer(executable=bundled_binary()) as server:
        line = Line(redis_url=server.url)
        line.claim()
        client: Any = server.client()
        if change == "maxmemory":
            client.config_set("maxmemory", 1)
        else:
            client.execute_command("ACL", "SETUSER", "default", "-set")
        line.channel.submit(Acquire(line.epoch, "me", [entry(1)]))
        line.channel.submit(line.finalize(1))
        line.poll_until(lambda: not line.channel.up, "outage")
        client.config_set("maxmemory", 0)
        client.execute_command("ACL", "SETUSER", "default", "+@all")
        assert cast(Finalized, line.replies(2)[1][1]).status == "ok"
        line.channel.close()


def test_foreign_key_named_like_trouble_is_no_trouble(server: RedisServer) -> None:
    line = Line(redis_url=server.url, key_prefix="x BUSY LOADING:")
    server.client().set("x BUSY LOADING:partition:events:0", "x")
    with pytest.raises(ConfigError, match="x BUSY LOADING:partition:events:0"):
        line.claim()
    line.channel.close()


def test_busy_server_is_waited_out(line: Line, server: RedisServer) -> None:
    client: Any = server.client(socket_timeout=30)
    client.config_set("busy-reply-threshold", 50)
    spinner = server.client(socket_timeout=30)
    connection: Any = spinner.connection_pool.get_connection()
    connection.send_command("EVAL", "while true do end", 0)
    try:
        line.channel.submit(line.finalize(1))
        line.poll_until(lambda: not line.channel.up, "outage")
        assert "BUSY" in line.channel.last_error
    finally:
        client.script_kill()
        spinner.connection_pool.release(connection)
        connection.disconnect()
    assert len(line.replies(1)) == 1


def test_changed_password_is_waited_for(tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("first\n")
    with RedisServer("--requirepass", "first") as server:
        line = Line(redis_url=server.url, redis_password_file=str(file))
        line.claim()
        client: Any = server.client(password="first")
        client.config_set("requirepass", "second")
        client.client_kill_filter(_type="normal", skipme=True)
        line.channel.submit(line.finalize(1))
        line.poll_until(lambda: not line.channel.up, "outage")
        assert "first" not in line.channel.last_error
        line.poll_until(lambda: line.channel.refused, "a refusal")
        file.write_text("second\n")
        assert len(line.replies(1)) == 1
        line.channel.close()


def test_script_error_is_raised_and_the_rest_goes_on(line: Line, server: RedisServer) -> None:
    client = server.client()
    line.channel.submit(LoadUsers(["u"]))
    line.replies(1)
    client.delete("partition:events:0")
    client.rpush("partition:events:0", "x")
    line.channel.submit(LoadUsers(["u"]))
    line.channel.submit(line.finalize(1))
    line.channel.submit(LoadUsers(["v"]))
    assert line.replies(1)[0][1] == [UserState(dense=True)]
    with pytest.raises(ConfigError, match="partition:events:0"):
        line.replies(2)
    assert line.replies(1)[0][1] == [UserState(dense=True)]
    assert line.channel.pending() == 0
    assert line.channel.up


def test_nobody_there_is_never_raised() -> None:
    port = free_port()
    channel = Channel(settings(redis_url=f"redis://:secret@127.0.0.1:{port}/0"), "events", 0, SystemClock())
    assert not channel.up
    channel.submit(LoadUsers(["u"]))
    assert channel.poll(100) == []
    assert channel.pending() == 1
    assert str(port) in channel.last_error
    assert "secret" not in channel.last_error
    channel.close()
    other = Channel(settings(redis_url=f"redis://:secret@127.0.0.1:{port}/0"), "events", 0, SystemClock())
    with pytest.raises(Transient, match=str(port)):
        other.call(LoadUsers(["u"]), timeout_ms=200)
    assert other.pending() == 0


def test_call_after_a_failed_call_gets_its_own_answer(server: RedisServer) -> None:
    line = Line(redis_url=server.url, redis_timeout_ms=1000)
    line.claim()
    server.freeze()
    with pytest.raises(Transient):
        line.channel.call(LoadUsers(["a", "b"]), timeout_ms=100)
    server.thaw()
    assert line.channel.call(LoadUsers(["c"]), timeout_ms=5000) == [UserState(dense=True)]
    line.channel.close()


def test_megabytes_neither_block_nor_get_lost(line: Line, server: RedisServer) -> None:
    users = [f"user-{'x' * 200}-{n}" for n in range(3000)]
    server.freeze()
    before = time.monotonic()
    for _ in range(8):
        line.channel.submit(LoadUsers(users))
    assert time.monotonic() - before < 4  # and not for redis_timeout_ms
    server.thaw()
    for _, reply in line.replies(8):
        assert reply == [UserState(dense=True)] * 3000


def test_tls(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [
            *(
                "openssl",
                "req",
                "-x509",
                "-newkey",
                "rsa:2048",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=localhost",
            ),
            *("-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    port = free_port()
    options = ("--tls-port", str(port), "--tls-cert-file", str(certificate), "--tls-key-file", str(key))
    with RedisServer(*options, "--tls-auth-clients", "no") as server:
        url = f"rediss://127.0.0.1:{port}/0"
        line = Line(redis_url=f"{url}?ssl_ca_certs={certificate}")
        line.claim()
        users = [f"user-{'x' * 200}-{n}" for n in range(3000)]
        line.channel.submit(LoadUsers(users))
        line.channel.submit(line.finalize(1))
        line.channel.submit(LoadUsers(users))
        replies = line.replies(3)
        assert replies[0][1] == replies[2][1] == [UserState(dense=True)] * 3000
        assert order(server) == [1]
        line.channel.close()
        strict = Channel(settings(redis_url=url), "events", 0, SystemClock())
        strict.submit(LoadUsers(["u"]))
        assert strict.poll(10) == []
        assert "certificate" in strict.last_error
        strict.close()


def test_unix_socket(server: RedisServer) -> None:
    line = Line(redis_url=f"unix://{server.unix_socket}?db=2")
    line.claim()
    line.channel.submit(line.finalize(1))
    line.replies(1)
    assert server.client(db=2).lrange("order:u", 0, -1) == [b"1"]
    line.channel.close()
