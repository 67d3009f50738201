"""Requests that no decent client sends: nothing but a clean refusal may come of them."""

from __future__ import annotations

import gzip
import json
import os
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import psutil  # type: ignore[import-untyped]
import pytest

from eventproc.ingest.protocol import MAX_HEAD_BYTES
from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import ApiServer, event, read_all
from tests.integration.ingest.conftest import StartApi
from tests.integration.supervised import wait_for
from tests.redis_server import RedisServer

MIB = 1 << 20
HEAD = b"POST /events HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def error_of(answer: bytes) -> str:
    found: str = json.loads(answer.partition(b"\r\n\r\n")[2])["error"]
    return found


def api_timeout_s(api: ApiServer) -> float:
    return api.settings.api_timeout_ms / 1000


def chunked(*parts: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


class TestSize:
    def test_a_declared_body_beyond_the_limit_is_refused_before_it_is_read(
        self, shared_api: ApiServer
    ) -> None:
        with shared_api.connect() as sock:
            sock.sendall(HEAD + b"content-length: 2097153\r\n\r\n")
            begun = time.monotonic()
            answer = read_all(sock)
        assert status_of(answer) == 413
        assert "api_max_body_bytes (2097152)" in error_of(answer)
        assert time.monotonic() - begun < api_timeout_s(shared_api) / 2

    def test_who_sends_it_all_the_same_reads_the_refusal(self, shared_api: ApiServer) -> None:
        answer = shared_api.post(b" " * (3 * MIB))
        assert (answer.status, answer.headers["connection"]) == (413, "close")

    def test_a_chunked_body_is_counted_as_it_arrives(self, shared_api: ApiServer) -> None:
        answer = shared_api.raw(HEAD + b"transfer-encoding: chunked\r\n\r\n" + chunked(*([b" " * MIB] * 3)))
        assert status_of(answer) == 413

    def test_a_body_of_exactly_the_limit_is_read(self, shared_api: ApiServer) -> None:
        body = json.dumps({"events": [event("size")]}).encode()
        assert shared_api.post(body + b" " * (2 * MIB - len(body)), "/events/batch").status == 202

    def test_a_good_chunked_body_is_read(self, shared_api: ApiServer) -> None:
        parts = [bytes([byte]) for byte in json.dumps(event("chunks")).encode()]
        head = HEAD + b"connection: close\r\ntransfer-encoding: chunked\r\n\r\n"
        assert status_of(shared_api.raw(head + chunked(*parts))) == 202

    def test_one_who_asks_first_is_told_at_once(self, shared_api: ApiServer) -> None:
        with shared_api.connect() as sock:
            sock.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: 3000000\r\n\r\n")
            assert status_of(read_all(sock)) == 413
        with shared_api.connect() as sock:
            body = json.dumps(event("asks")).encode()
            sock.sendall(HEAD + b"expect: 100-continue\r\ncontent-length: %d\r\n\r\n" % len(body))
            assert sock.recv(100).startswith(b"HTTP/1.1 100")
            sock.sendall(body)
            assert sock.recv(1000).startswith(b"HTTP/1.1 202")

    def test_a_head_without_end_is_refused(self, shared_api: ApiServer) -> None:
        with shared_api.connect() as sock:
            sock.sendall(b"POST /events HTTP/1.1\r\n")
            for _ in range(MAX_HEAD_BYTES // 1000 + 10):
                try:
                    sock.sendall(b"x-more: " + b"y" * 1000 + b"\r\n")
                except OSError:
                    break
            assert status_of(read_all(sock)) == 431


@pytest.mark.parametrize(
    ("headers", "word"),
    [
        ({"Content_Type": "text/plain"}, "content-type"),
        ({"Content_Type": "application/x-www-form-urlencoded"}, "content-type"),
        ({"Content_Type": "application/jsonp"}, "content-type"),
        ({"Content_Encoding": "gzip"}, "content-encoding"),
        ({"Content_Encoding": "br"}, "content-encoding"),
    ],
)
def test_what_is_no_plain_json_is_refused(shared_api: ApiServer, headers: dict[str, str], word: str) -> None:
    answer = shared_api.post(gzip.compress(json.dumps(event()).encode()), **headers)
    assert answer.status == 415
    assert word in answer.error


@pytest.mark.parametrize("kind", ["application/json; charset=utf-8", "Application/JSON"])
def test_json_by_any_spelling_is_taken(shared_api: ApiServer, kind: str) -> None:
    assert shared_api.post(event("spelling"), Content_Type=kind).status == 202


BROKEN = [
    b"nonsense\r\n\r\n",
    b"POST /events HTTP/9.9\r\n\r\n",
    b"POST /events HTTP/1.1\r\ncontent-length: x\r\n\r\n",
    b"POST /events HTTP/1.1\r\ncontent-length: -1\r\n\r\n",
    b"POST /events HTTP/1.1\r\ncontent-length: 99999999999999999999\r\n\r\n",
    b"POST /events HTTP/1.1\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n{}",
    b"POST /events HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
    b"POST /ev\xffents HTTP/1.1\r\nhost: x\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200,
]


@pytest.mark.parametrize("data", BROKEN, ids=range(len(BROKEN)))
def test_what_is_no_http_is_a_json_error(shared_api: ApiServer, data: bytes) -> None:
    answer = shared_api.raw(data)
    assert 400 <= status_of(answer) < 500, answer
    assert error_of(answer)
    assert shared_api.get("/health").status == 200


@pytest.fixture(scope="module")
def hasty_api(
    embedded_broker: BrokerUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    """Gives a request 600 ms to arrive."""
    with RedisServer() as server:
        api = ApiServer(embedded_broker, server, tmp_path_factory.mktemp("hasty"), api_read_timeout_ms=600)
        try:
            yield api.start()
        finally:
            api.close()


@pytest.mark.xdist_group("ingest_hasty")
class TestSlowness:
    def test_a_body_that_trickles_is_given_up(self, hasty_api: ApiServer) -> None:
        with hasty_api.connect() as sock:
            sock.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
            answer = read_all(sock)
        assert status_of(answer) == 408
        assert "0.6 s" in error_of(answer)

    def test_a_head_that_trickles_is_cut(self, hasty_api: ApiServer) -> None:
        for beginning in (b"", b"POST", HEAD):
            with hasty_api.connect() as sock:
                begun = time.monotonic()
                sock.sendall(beginning)
                assert read_all(sock) == b""
                assert 0.5 < time.monotonic() - begun < 10

    def test_a_head_that_trickles_after_an_answer_is_cut(self, hasty_api: ApiServer) -> None:
        with hasty_api.connect() as sock:
            for pause_s in (0.8, 0):  # an idle connection is kept for longer than a head may take
                sock.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
                answer = b""
                while not answer.endswith(b'{"status":"alive"}'):
                    data = sock.recv(65536)
                    assert data, answer
                    answer += data
                assert status_of(answer) == 200
                time.sleep(pause_s)
            sock.sendall(b"GET /hea")
            assert read_all(sock) == b""

    def test_slow_clients_do_not_keep_others_waiting(self, shared_api: ApiServer) -> None:
        slow = [shared_api.connect() for _ in range(300)]
        try:
            for sock in slow:
                sock.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
            wait_for(lambda: shared_api.metric("requests_in_flight") >= 300, 10, "all of them in flight")
            begun = time.monotonic()
            assert shared_api.post(event("quick")).status == 202
            assert time.monotonic() - begun < api_timeout_s(shared_api) / 2
        finally:
            for sock in slow:
                sock.close()
        wait_for(lambda: shared_api.metric("held_bytes") == 0, 10, "their bytes to be forgotten")

    def test_bodies_are_held_up_to_a_limit(
        self, start_api: StartApi, embedded_broker: BrokerUnderTest
    ) -> None:
        api = start_api(embedded_broker, api_max_buffered_bytes=1_000_000, api_timeout_ms=10_000)
        with api.connect() as sock:
            sock.sendall(HEAD + b"content-length: 1000000\r\n\r\n" + b" " * 900_000)
            wait_for(lambda: api.metric("held_bytes") == 900_000, 10, "most of it")
            answer = api.post(event(payload={"x": "y" * 200_000}))
            assert (answer.status, answer.error) == (503, "too many requests at once")
            assert api.post(event()).status == 202
        wait_for(lambda: api.metric("held_bytes") == 0, 10, "nothing held")
        assert api.post(event(payload={"x": "y" * 200_000})).status == 202


def test_many_random_users_leave_nothing_behind(
    start_api: StartApi, embedded_broker: BrokerUnderTest
) -> None:
    api = start_api(embedded_broker, api_access_log=False)
    assert api.process is not None
    process = psutil.Process(api.process.pid)

    accepted: list[int] = []

    def flood(rounds: int) -> None:
        def batch(_: int) -> None:
            answer = api.batch([event(os.urandom(60).hex()) for _ in range(1000)])
            assert answer.status in (202, 503), answer  # refused when the machine is too slow
            accepted.append(answer.status)

        with ThreadPoolExecutor(2) as pool:
            list(pool.map(batch, range(rounds)))

    flood(6)
    before = process.memory_info().rss
    flood(20)
    assert accepted.count(202) > 13
    assert process.memory_info().rss - before < 30 * MIB
    wait_for(lambda: api.redis.dbsize() == 0, 10, "an empty Redis")


@pytest.fixture(scope="module")
def keyed_api(
    embedded_broker: BrokerUnderTest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ApiServer]:
    path = tmp_path_factory.mktemp("keys")
    with RedisServer() as server:
        api = ApiServer(embedded_broker, server, path, api_keys_file=str(path / "keys"))
        try:
            api.start(ready=False)
            assert api.ends() == 3
            assert f"error: api_keys_file '{path}/keys': No such file" in api.log()
            (path / "keys").write_text("alpha\nbeta\n")
            yield api.start()
        finally:
            api.close()


@pytest.mark.xdist_group("ingest_keys")
class TestKeys:
    def test_only_posts_need_one(self, keyed_api: ApiServer) -> None:
        refused = keyed_api.post(event())
        assert (refused.status, refused.headers["www-authenticate"]) == (401, "Bearer")
        assert keyed_api.batch([event()], X_Api_Key="alph").status == 401
        assert keyed_api.post(event(), X_Api_Key="alpha").status == 202
        assert keyed_api.post(event(), Authorization="Bearer beta").status == 202
        for path in ("/health", "/ready", "/metrics", "/openapi.json"):
            assert keyed_api.get(path).status == 200
        assert "bearer" in keyed_api.get("/openapi.json").json["components"]["securitySchemes"]
        assert "alpha" not in keyed_api.log()

    def test_it_is_looked_at_before_the_body(self, keyed_api: ApiServer) -> None:
        with keyed_api.connect() as sock:
            sock.sendall(HEAD + b"content-length: 3000000\r\n\r\n")
            assert status_of(read_all(sock)) == 401
        assert keyed_api.metric("held_bytes") == 0

    def test_hup_reads_them_again_and_a_bad_file_changes_nothing(self, keyed_api: ApiServer) -> None:
        (keyed_api.folder / "keys").write_text("gamma\n")
        keyed_api.signal(signal.SIGHUP)
        keyed_api.logged("api keys reloaded")
        assert keyed_api.post(event(), X_Api_Key="alpha").status == 401
        assert keyed_api.post(event(), X_Api_Key="gamma").status == 202
        (keyed_api.folder / "keys").unlink()
        keyed_api.signal(signal.SIGHUP)
        keyed_api.logged("api keys not reloaded")
        assert keyed_api.post(event(), X_Api_Key="gamma").status == 202
        logged = len(keyed_api.log())
        (keyed_api.folder / "keys").write_text("alpha\nbeta\n")
        keyed_api.signal(signal.SIGHUP)
        keyed_api.logged("api keys reloaded", logged)
        assert keyed_api.post(event(), X_Api_Key="alpha").status == 202

    def test_an_idempotency_key_is_of_its_api_key(self, keyed_api: ApiServer) -> None:
        first = keyed_api.post(event(), X_Api_Key="alpha", Idempotency_Key="k")
        other = keyed_api.post(event(), X_Api_Key="beta", Idempotency_Key="k")
        assert first.json["eventId"] != other.json["eventId"]
