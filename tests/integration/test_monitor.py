"""The monitor as its own process, over HTTP, with a real Redis and a board that the test writes."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis as StrictRedis

from eventproc.clock import SystemClock
from eventproc.metrics import METRICS, Board
from eventproc.settings import Settings
from eventproc.spawn import MonitorSpec, ProcessIdentity

CLOCK = SystemClock()
PARTITIONS = [0, 3]
T = TypeVar("T")


def until(get: Callable[[], T], accept: Callable[[T], bool], seconds: float = 15) -> T:
    """Poll `get` until its answer is accepted; the last answer is in the failure."""
    deadline = CLOCK.monotonic_ms() + seconds * 1000
    while True:
        answer = get()
        if accept(answer):
            return answer
        if CLOCK.monotonic_ms() > deadline:
            raise AssertionError(f"not within {seconds} s; last: {answer!r}")
        time.sleep(0.05)


class Redis:
    """A redis-server of the test's own, on a Unix socket."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            ["redis-server", "--port", "0", "--unixsocket", str(self.socket), "--save", ""],
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
        )
        until(self.socket.exists, bool)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    server = Redis(tmp_path)
    server.start()
    yield server
    server.stop()


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(len(PARTITIONS))
    for page in board.pages():
        page.state = "running"
        page.beat(CLOCK.monotonic_ms())
    yield board
    board.close()


class Monitor:
    """The monitor process; `url` once it has announced its port."""

    def __init__(self, board: Board, settings: Settings) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "eventproc.monitor"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(board.fd,),
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        spec = MonitorSpec(settings.revealed(), PARTITIONS, board.fd, str(ProcessIdentity.own()))
        self.process.stdin.write(spec.dump())
        self.process.stdin.close()
        self.announced = self.process.stdout.readline()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{json.loads(self.announced)['port']}"

    def get(self, path: str, **headers: str) -> tuple[int, str, str]:
        """Status, content type and body."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()

    def ready(self) -> tuple[int, dict[str, Any]]:
        status, _, body = self.get("/readyz")
        return status, json.loads(body)

    def stop(self, sig: signal.Signals = signal.SIGTERM) -> tuple[int, str]:
        """Exit code and standard error."""
        self.process.send_signal(sig)
        return self.end()

    def end(self) -> tuple[int, str]:
        assert self.process.stdout is not None
        assert self.process.stderr is not None
        with self.process.stdout, self.process.stderr:
            code = self.process.wait(10)
            return code, self.process.stderr.read().decode()


def settings_for(redis_url: str, **values: Any) -> Settings:
    chosen: dict[str, Any] = {"redis_url": redis_url, "monitor_port": 0, "redis_timeout_ms": 500}
    return Settings(**(chosen | values))


@pytest.fixture
def monitor(board: Board, redis: Redis) -> Iterator[Monitor]:
    monitor = Monitor(board, settings_for(redis.url))
    yield monitor
    if monitor.process.poll() is None:
        code, errors = monitor.stop()
        assert (code, errors) == (0, "")


def samples(body: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(body)
        for sample in family.samples
    }


def test_alive_and_ready(monitor: Monitor) -> None:
    assert monitor.get("/healthz") == (200, "application/json", '{"status":"alive"}')
    status, body = monitor.ready()
    assert status == 200
    assert body == {
        "ready": True,
        "redis": "ok",
        "partitions": {p: {"state": "running", "reasons": []} for p in ("0", "3")},
    }
    assert monitor.get("/nothing")[0] == 404


def test_not_ready_tells_why(monitor: Monitor, board: Board) -> None:
    board.page(1).enter("standby", "held by other-host:12:345")
    status, body = monitor.ready()
    assert status == 503
    assert body["ready"] is False
    assert body["partitions"]["0"] == {"state": "running", "reasons": []}
    assert body["partitions"]["3"] == {
        "state": "standby",
        "reasons": ["standby, not owned: held by other-host:12:345"],
    }
    assert monitor.get("/healthz")[0] == 200


def test_redis_away_and_back(monitor: Monitor, redis: Redis) -> None:
    # the next reading may be 10 s away: the one that notices
    redis.stop()
    _, body = until(monitor.ready, lambda answer: answer[0] == 503)
    assert body["redis"].startswith("Redis does not answer: ConnectionError")
    redis.start()
    until(monitor.ready, lambda answer: answer[0] == 200)


def test_metrics_are_what_the_board_says(monitor: Monitor, board: Board) -> None:
    page = board.page(1)
    page.inc("events", 41, "processed")
    page.inc("dead_letters", 2, "seq_jump")
    page.inc("restarts", 3)
    page.set("oldest_gap_ms", 1500)
    page.set("lag", 12)
    page.observe("latency_ms", [1, 3, 4, 70_000])
    status, content_type, body = monitor.get("/metrics")
    assert status == 200
    assert content_type.startswith("text/plain")
    got = samples(body)
    here = ("partition", "3")
    assert got["eventproc_events_total", (("outcome", "processed"), here)] == 41
    assert got["eventproc_events_total", (("outcome", "processed"), ("partition", "0"))] == 0
    assert got["eventproc_dead_letters_total", (here, ("reason", "seq_jump"))] == 2
    assert got["eventproc_worker_restarts_total", (here,)] == 3
    assert got["eventproc_oldest_gap_seconds", (here,)] == 1.5
    assert got["eventproc_lag", (here,)] == 12
    assert got["eventproc_latency_seconds_bucket", (("le", "0.001"), here)] == 1
    assert got["eventproc_latency_seconds_bucket", (("le", "0.003"), here)] == 2
    assert got["eventproc_latency_seconds_bucket", (("le", "0.005"), here)] == 3
    assert got["eventproc_latency_seconds_bucket", (("le", "60.0"), here)] == 3
    assert got["eventproc_latency_seconds_bucket", (("le", "+Inf"), here)] == 4
    assert got["eventproc_latency_seconds_count", (here,)] == 4
    assert got["eventproc_latency_seconds_sum", (here,)] == pytest.approx(70.008)
    assert got["eventproc_worker_state", (here, ("state", "running"))] == 1
    assert got["eventproc_worker_state", (here, ("state", "paused"))] == 0
    assert 0 <= got["eventproc_heartbeat_age_seconds", (here,)] < 60


def test_every_metric_is_exposed(monitor: Monitor) -> None:
    body = until(
        lambda: monitor.get("/metrics")[2], lambda b: samples(b)["eventproc_redis_used_bytes", ()] > 0
    )
    families = {family.name: family for family in text_string_to_metric_families(body)}
    for metric in METRICS:
        family = families[metric.exposed]
        assert family.type == metric.kind
        assert family.documentation == metric.help
        if metric.kind != "histogram":
            per_partition = len(metric.values) * len(PARTITIONS)
            once = 0 if metric.absent_at_zero else 1
            assert len(family.samples) == (once if metric.scope == "deployment" else per_partition)


def test_bytes_per_event_and_when_redis_is_full(monitor: Monitor, board: Board, redis: Redis) -> None:
    def read() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return samples(monitor.get("/metrics")[2])

    per_event = ("eventproc_redis_bytes_per_event", ())
    full_s = ("eventproc_redis_seconds_until_maxmemory", ())
    found = until(read, lambda got: got["eventproc_redis_used_bytes", ()] > 0)
    assert per_event not in found  # nothing was made final yet
    assert full_s not in found
    with StrictRedis(unix_socket_path=str(redis.socket)) as client:
        client.config_set("maxmemory", 64 * 2**20)
        with client.pipeline(transaction=False) as pipe:
            for number in range(4000):
                pipe.set(f"key:{number}", b"x" * 1000)
            pipe.execute()
        board.page(0).inc("events", 4000, "processed")
        found = until(read, lambda got: per_event in got)
        assert found["eventproc_redis_maxmemory_bytes", ()] == 64 * 2**20
        assert 1000 < found[per_event] < 1300
        left = 64 * 2**20 - found["eventproc_redis_used_bytes", ()]
        # 4000 events between the first reading and one of the two after it, as a rule 5 s each
        assert 4 < found[full_s] * found[per_event] * 4000 / left < 15
        client.config_set("maxmemory", 0)
        found = until(read, lambda got: full_s not in got)
        assert found[per_event] > 0
        assert found["eventproc_redis_maxmemory_bytes", ()] == 0


def test_openmetrics_for_who_asks(monitor: Monitor) -> None:
    _, content_type, body = monitor.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert body.endswith("# EOF\n")


def test_port_taken(board: Board) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        monitor = Monitor(board, settings_for("redis://127.0.0.1:1/0", monitor_port=port))
        assert monitor.announced == b""
        code, errors = monitor.end()
    assert code == 3
    assert errors == (
        f"monitor: monitor_port={port}: the port is taken on 127.0.0.1;"
        " choose another one, or 0 for any free one\n"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"monitor_host": "192.0.2.1"}, "monitor_host=192.0.2.1, monitor_port=0: cannot listen there: "),
        ({"redis_password_file": "/nowhere"}, "redis_password_file '/nowhere': "),
    ],
)
def test_wrong_setting_is_one_line(board: Board, values: dict[str, Any], message: str) -> None:
    monitor = Monitor(board, settings_for(**({"redis_url": "redis://127.0.0.1:1/0"} | values)))
    code, errors = monitor.end()
    assert code == 3
    assert errors.startswith(f"monitor: {message}")
    assert errors.count("\n") == 1


def test_another_board_is_refused(redis: Redis) -> None:
    board = Board.create(5)
    try:
        code, errors = Monitor(board, settings_for(redis.url)).end()
    finally:
        board.close()
    assert code == 3
    assert "not one of 2 slots" in errors


def test_started_by_hand_says_who_starts_it() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "eventproc.monitor"], input=b"\n", capture_output=True, timeout=30, check=False
    )
    assert done.returncode == 2
    assert b"started by eventproc-supervisor" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_interrupt_is_left_to_the_supervisor(monitor: Monitor) -> None:
    monitor.process.send_signal(signal.SIGINT)
    assert monitor.get("/healthz")[0] == 200
    assert monitor.stop() == (0, "")


def test_dies_with_its_parent(board: Board, redis: Redis) -> None:
    code = f"""
import os, subprocess, sys
from eventproc.settings import Settings
from eventproc.spawn import MonitorSpec, ProcessIdentity
settings = Settings(redis_url={redis.url!r}, monitor_port=0)
child = subprocess.Popen([sys.executable, "-m", "eventproc.monitor"], stdin=subprocess.PIPE,
                         stdout=subprocess.PIPE, pass_fds=({board.fd},))
spec = MonitorSpec(settings.revealed(), {PARTITIONS}, {board.fd}, str(ProcessIdentity.own()))
child.stdin.write(spec.dump())
child.stdin.close()
child.stdout.readline()
print(child.pid, flush=True)
os._exit(0)
"""
    parent = subprocess.run(
        [sys.executable, "-c", code], pass_fds=(board.fd,), capture_output=True, timeout=30, check=True
    )
    pid = int(parent.stdout)
    until(lambda: Path(f"/proc/{pid}").exists(), lambda alive: not alive or _is_zombie(pid))


def _is_zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
