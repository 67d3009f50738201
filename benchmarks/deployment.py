"""A deployment to measure: `eventproc-supervisor start` as operators run it, seen from outside.

It looks without disturbing: counters come from the board in shared memory, CPU times from the kernel's clocks
of the processes (nanoseconds, all threads).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from eventproc.audit import Report, audit, wait_until_idle
from eventproc.broker.admin import Admin
from eventproc.broker.embedded import CLIENT_CONFIG, check_not_dropped
from eventproc.errors import EventprocError
from eventproc.metrics import Board, Distribution, Gauge, Histogram
from eventproc.settings import Settings
from eventproc.supervisor.control import ControlClient
from eventproc.supervisor.runtime import RuntimePaths
from eventproc.workload import LedgerWriter, Workload, produce
from tests.kafka_server import KafkaServer
from tests.redis_server import RedisServer

#: Everything small: shows that the benchmarks work, says nothing about speed.
SMOKE = os.environ.get("EVENTPROC_TEST_SMOKE") == "1"

PARTITIONS = 4 if SMOKE else 8
_ROOT = Path(__file__).parents[1]
_BOARD = "/memfd:eventproc-board"
_START_TIMEOUT_S = 90.0
_STOP_TIMEOUT_S = 60.0
_DONE_TIMEOUT_S = 120.0
_IDLE_TIMEOUT_MS = 60_000
_POLL_S = 0.02
#: The real command, tied to the life of this process.
_ENTRY = """
from eventproc.spawn import die_with_parent
die_with_parent({parent})
from eventproc.cli.supervisor import main
main()
"""


def cpu_s(pid: int) -> float:
    """CPU time of a process with all its threads (clock_getcpuclockid(3))."""
    return time.clock_gettime((~pid << 3) | 2)


def state(pid: int) -> str:
    """One letter, as in proc_pid_stat(5)."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def children(pid: int) -> dict[int, str]:
    """Pid and command line of each child."""
    pids = [
        int(word)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for word in (task / "children").read_text().split()
    ]
    return {child: Path(f"/proc/{child}/cmdline").read_bytes().decode(errors="replace") for child in pids}


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU seconds: of all workers together, of Redis, of the broker."""

    workers: float
    redis: float
    broker: float

    def __sub__(self, earlier: Usage) -> Usage:
        return Usage(self.workers - earlier.workers, self.redis - earlier.redis, self.broker - earlier.broker)


class Deployment:
    """Workers for all `partitions`, a broker and Redis; on entering it starts and owns every partition.

    Broker and Redis are the embedded ones, unless a real `kafka` is given; a `redis` may come with it.
    `arguments` go to the command as well. `partitions`: another number of them. `settings` override the
    defaults, whatever the environment says. Leaving ends every process and removes the folder with the
    ledger and the log.
    """

    def __init__(
        self,
        *arguments: str,
        kafka: KafkaServer | None = None,
        redis: RedisServer | None = None,
        partitions: int = PARTITIONS,
        **settings: Any,
    ) -> None:
        self._redis = redis
        self._partitions = partitions
        self._arguments = arguments if kafka else ("--embedded", *arguments)
        self._kafka = kafka
        self._resources = contextlib.ExitStack()
        self._chosen = settings
        self._redis_pid = self._broker_pid = 0
        self._workers: list[int] = []

    # --- life -----------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as resources:
            self._folder = Path(
                resources.enter_context(tempfile.TemporaryDirectory(prefix="eventproc-bench-"))
            )
            self._ledger = self._folder / "ledger"
            self._chosen = {
                "runtime_dir": str(self._folder),
                "monitor_port": 0,
                "topic_partitions": self._partitions,
                "heartbeat_timeout_ms": 600_000,  # `freeze` is no hang
                "log_level": "info",
                **self._chosen,
            }
            if self._kafka is not None:
                server = self._redis or resources.enter_context(RedisServer())
                self._broker_pid, self._redis_pid = self._kafka.pid, server.pid
                self._chosen |= {"kafka_bootstrap_servers": self._kafka.bootstrap, "redis_url": server.url}
            self._start(resources)
            self._until(lambda: " ready " in self.log(), "ready")
            self._learn()
            self._board = self._open_board()
            resources.callback(self._board.close)
            self._resources = resources.pop_all()
        return self

    def __exit__(self, *_error: object) -> None:
        self._resources.close()

    def _start(self, resources: contextlib.ExitStack) -> None:
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EVENTPROC_")}
        environ |= {f"EVENTPROC_{name.upper()}": str(value) for name, value in self._chosen.items()}
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    sys.executable,
                    "-c",
                    _ENTRY.format(parent=os.getpid()),
                    "start",
                    *self._arguments,
                ],
                cwd=_ROOT,
                env=environ,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        resources.callback(self._end)

    def _end(self) -> None:
        """End the supervisor, which ends the others; by force when it takes too long (they die with it)."""
        if self._process.poll() is None:
            self.thaw()
            self._process.terminate()
            try:
                self._process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def _learn(self) -> None:
        status = self.status()
        own = status["supervisor"]
        embedded = {"kafka_config": CLIENT_CONFIG}
        embedded |= {name: own[name] for name in ("kafka_bootstrap_servers", "redis_url")}
        self.settings = Settings.model_validate(self._chosen | ({} if self._kafka else embedded))
        self._workers = [worker["pid"] for worker in status["workers"]]
        for pid, command in children(self._process.pid).items():
            if "eventproc.broker.embedded" in command:
                self._broker_pid = pid
            elif "redis" in command or "valkey" in command:
                self._redis_pid = pid
        assert len(self._workers) == self._partitions, self.picture()
        assert self._broker_pid, "the broker's process was not found"
        assert self._redis_pid, "Redis' process was not found"

    def _open_board(self) -> Board:
        """The board, through the supervisor's descriptor of its memory."""
        for link in Path(f"/proc/{self._process.pid}/fd").iterdir():
            if os.readlink(link).startswith(_BOARD):
                fd = os.open(link, os.O_RDWR | os.O_CLOEXEC)
                try:
                    return Board(fd, self._partitions, owns_fd=True)
                except BaseException:
                    os.close(fd)
                    raise
        raise AssertionError(f"the supervisor (pid {self._process.pid}) has no {_BOARD}")

    def _until(self, what: Callable[[], bool], told: str) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while not what():
            self.check()
            assert time.monotonic() < deadline, f"not within {_START_TIMEOUT_S:g} s: {told}\n{self.log()}"
            time.sleep(_POLL_S)

    # --- what it does ---------------------------------------------------------------------------------

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """The workers are ready, and do nothing inside."""
        for pid in self._workers:
            os.kill(pid, signal.SIGSTOP)
        try:
            self._until(self._all_stopped, "workers stopped")
            yield
        except BaseException:
            self.thaw()
            raise

    def thaw(self) -> None:
        """Let frozen workers go on."""
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    def _all_stopped(self) -> bool:
        return all(state(pid) == "T" for pid in self._workers)

    def produce(self, workload: Workload) -> None:
        """Produce it, with its ledger; DependencyError when the embedded broker has dropped anything."""
        produced = produce(self.settings, workload, self._ledger)
        assert produced.acknowledged == produced.sent == workload.events, produced

    def open_ledger(self) -> LedgerWriter:
        """The ledger, for those who produce by themselves."""
        start = self.ends()
        return LedgerWriter(self._ledger, topic=self.settings.kafka_topic, start=start, workload={})

    def ends(self) -> dict[int, int]:
        """End offset of each partition; DependencyError when the embedded broker has dropped anything."""
        topic = self.settings.kafka_topic
        with Admin(self.settings) as admin:
            committed = admin.committed(topic, self.settings.kafka_group_id)
            marks = admin.watermarks(topic)
        for partition, (low, _high) in marks.items():
            check_not_dropped(low, committed[partition], topic, partition)
        return {partition: high for partition, (_low, high) in marks.items()}

    def wait_processed(self, events: int, poll_s: float = _POLL_S) -> None:
        """Return when so many events are final, within `poll_s`."""
        deadline = time.monotonic() + _DONE_TIMEOUT_S
        while (done := self.processed()) < events:
            self.check()
            assert time.monotonic() < deadline, f"{done} of {events} events are final: {self.picture()}"
            time.sleep(poll_s)

    def audit(self, *, crashed: bool = False) -> Report:
        """Wait until all is committed; then every event of the ledger must be accounted for."""
        idle = wait_until_idle(self.settings, _IDLE_TIMEOUT_MS)
        assert idle, f"not idle within {_IDLE_TIMEOUT_MS} ms: {self.picture()}"
        report = audit(self.settings, ledger=self._ledger, crashed=crashed)
        assert report.clean, "\n".join([*report.lines(), self.picture()])
        return report

    # --- what it tells --------------------------------------------------------------------------------

    def processed(self) -> int:
        """Events that are final in Redis (a worker counts them when Redis has answered)."""
        return sum(page.get("events", "processed") for page in self._board.pages())

    def gauge(self, name: Gauge) -> int:
        """Sum over the partitions."""
        return sum(page.get(name) for page in self._board.pages())

    def distribution(self, name: Histogram) -> Distribution:
        """Of all partitions together."""
        first, *others = [page.distribution(name) for page in self._board.pages()]
        return sum(others, first)

    @property
    def workers(self) -> list[int]:
        """Their pids."""
        return list(self._workers)

    def workers_rss(self) -> list[int]:
        """Resident memory of each worker, bytes."""
        pages = [int(Path(f"/proc/{pid}/statm").read_text().split()[1]) for pid in self._workers]
        return [count * os.sysconf("SC_PAGE_SIZE") for count in pages]

    def pids(self) -> list[int]:
        """All processes of eventproc: the supervisor and its children, without broker and Redis."""
        servers = (self._broker_pid, self._redis_pid)
        return [self._process.pid, *(pid for pid in children(self._process.pid) if pid not in servers)]

    def usage(self) -> Usage:
        """CPU time so far."""
        return Usage(sum(map(cpu_s, self._workers)), cpu_s(self._redis_pid), cpu_s(self._broker_pid))

    def check(self) -> None:
        """Fail when the supervisor has ended."""
        assert self._process.poll() is None, f"the supervisor has ended\n{self.log()}"

    def status(self) -> dict[str, Any]:
        """As `eventproc-supervisor status --json`."""
        with ControlClient(RuntimePaths.of(Settings.model_validate(self._chosen)).socket) as client:
            found: dict[str, Any] = next(client.ask(10, command="status"))["status"]
        return found

    def log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")

    def picture(self) -> str:
        """All there is to see, for a failure's message."""
        try:
            workers = json.dumps(self.status()["workers"])
        except EventprocError as error:
            workers = str(error)
        return f"{workers}\n{self.log()[-4000:]}"
