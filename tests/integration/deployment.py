"""A whole deployment as an operator has it: the real command, real workers, a Redis of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self

import orjson
import psutil  # type: ignore[import-untyped]
import redis
from confluent_kafka import Message
from prometheus_client.parser import text_string_to_metric_families

from eventproc._reorder import partition_of
from eventproc.audit.report import Report
from eventproc.audit.run import audit
from eventproc.broker.admin import Admin, committed_offsets
from eventproc.broker.producer import EventProducer
from eventproc.broker.reading import TopicReader
from eventproc.errors import EventprocError
from eventproc.metrics import Board
from eventproc.settings import Settings
from eventproc.supervisor.control import ControlClient
from eventproc.supervisor.runtime import RuntimePaths
from eventproc.workload import Produced, Workload, produce
from tests.integration.conftest import BrokerUnderTest
from tests.integration.supervised import ROOT, alive, wait_for
from tests.redis_server import RedisServer

ACT = "tests.integration.handlers_for_tests:act"
ACT_ASYNC = f"{ACT}_async"
ACT_BATCH = f"{ACT}_batch"
PACED = "tests.integration.handlers_for_tests:paced"
PACED_ASYNC = f"{PACED}_async"
PACED_BATCH = f"{PACED}_batch"
#: A machine that stands still for longer starts the timers anew.
GAP_TIMEOUT_MS = 1000
#: The real command, tied to the life of the test's process.
_ENTRY = """
from eventproc.spawn import die_with_parent
die_with_parent({parent})
from eventproc.cli.supervisor import main
main()
"""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def event(
    user: str, seq: int = 0, id: str = "", *, do: tuple[str, object] | None = None, **payload: Any
) -> dict[str, Any]:
    """An event's document; `do` is for `handlers_for_tests.act`."""
    if seq:
        payload["seq"] = seq
    if do:
        payload["do"] = do
    return {"id": id or f"{user}-{seq}", "userId": user, "type": "test", "payload": payload}


class Deployment:
    """One deployment on a fresh topic; `start` and `again` run the command, everything else looks at it.

    `settings` override defaults that make tests quick. With the built-in handler its runs are recorded,
    and `audit` reads the record; so are those of ACT and PACED. `through` are settings of the command alone:
    its own way to its servers, where that is not the one of those who look at it.
    """

    def __init__(
        self,
        broker: BrokerUnderTest,
        server: RedisServer,
        folder: Path,
        *,
        partitions: int = 1,
        through: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.broker = broker
        self.server = server
        self.folder = folder
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.ledger = folder / "ledger"
        self.partitions = partitions
        self._chosen: dict[str, Any] = {
            "kafka_bootstrap_servers": broker.bootstrap,
            "kafka_config": broker.kafka_config,
            "kafka_topic": settings.get("kafka_topic") or broker.topics(partitions),
            "redis_url": server.url,
            "runtime_dir": str(folder),
            "monitor_port": 0,
            "gap_timeout_ms": GAP_TIMEOUT_MS,
            "simulate_runs_dir": str(self.runs),
            "restart_backoff_ms": 100,
            # beside other tests, workers that give way would hardly run, not even to end when they are killed
            "worker_nice": 0,
            **settings,
        }
        self._through = through or {}
        self.redis: redis.Redis = server.client(decode_responses=True, encoding_errors="surrogateescape")
        self.process: subprocess.Popen[bytes] | None = None
        self._log = (folder / "log").open("ab")
        self._logged_before = 0

    @property
    def settings(self) -> Settings:
        return Settings(**self._chosen)

    @property
    def topic(self) -> str:
        return self.settings.kafka_topic

    @property
    def _paths(self) -> RuntimePaths:
        return RuntimePaths.of(Settings(**self._chosen | self._through))

    def choose(self, **settings: Any) -> None:
        """Settings for the next start."""
        self._chosen |= settings

    def pace(self, ms: int) -> None:
        """How long PACED takes for each event from now on."""
        (self.folder / "pace").write_text(str(ms))
        (self.folder / "pace").replace(self.runs / "pace")

    # --- the process --------------------------------------------------------------------------------

    def start(self, *arguments: str, crash_at: str = "", ready: bool = True) -> Self:
        """Start the command; returns once it has logged `ready`."""
        self._logged_before = len(self.log())
        environ = {name: value for name, value in os.environ.items() if not name.startswith("EVENTPROC_")}
        for name, value in (self._chosen | self._through).items():
            environ[f"EVENTPROC_{name.upper()}"] = (
                json.dumps(value) if isinstance(value, dict) else str(value)
            )
        environ["EVENTPROC_TEST_RUNS"] = str(self.runs)
        if crash_at:
            environ["EVENTPROC_CRASH_AT"] = crash_at
        self.process = subprocess.Popen(
            [sys.executable, "-c", _ENTRY.format(parent=os.getpid()), "start", *arguments],
            cwd=ROOT,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )
        if ready:
            self.until(lambda: " ready " in self.log()[self._logged_before :], "ready")
        return self

    def until(self, what: Callable[[], Any], told: str, timeout_s: float = 40) -> Any:
        """The first true answer of `what`; fails at once when the supervisor ends meanwhile."""

        def look() -> Any:
            assert self.process is None or self.process.poll() is None, f"ended before: {told}\n{self.log()}"
            return what()

        try:
            return wait_for(look, timeout_s, told)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.picture()}") from None

    def ends(self, timeout_s: float = 40) -> int:
        """Its exit code, once it has ended."""
        assert self.process is not None
        return self.process.wait(timeout_s)

    def stop(self) -> int:
        """TERM; its exit code."""
        self.signal(signal.SIGTERM)
        return self.ends()

    def signal(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")

    def close(self) -> None:
        """End it by force if it still runs."""
        if self.process is not None:
            if self.process.poll() is None:
                self.process.kill()
            self.process.wait()
        self._log.close()
        print(self.log())  # shown when the test has failed

    # --- what it tells ------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """As `eventproc-supervisor status --json`."""
        with ControlClient(self._paths.socket) as client:
            found: dict[str, Any] = next(client.ask(10, command="status"))["status"]
        return found

    def restart(self, partition: int) -> None:
        """As `eventproc-supervisor restart --partition`."""
        with ControlClient(self._paths.socket) as client:
            for _ in client.ask(60, command="restart", partition=partition):
                pass

    def resume(self, partition: int | None = None) -> list[dict[str, Any]]:
        """As `eventproc-supervisor resume`; its replies."""
        with ControlClient(RuntimePaths.of(self.settings).socket) as client:
            return list(client.ask(60, command="resume", partition=partition))

    def worker(self, partition: int = 0) -> dict[str, Any]:
        found: dict[str, Any] = self.status()["workers"][partition]
        return found

    def worker_pids(self) -> list[int]:
        return [worker["pid"] for worker in self.status()["workers"]]

    def children(self) -> list[int]:
        """Every process that the supervisor has started, and theirs."""
        assert self.process is not None
        return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]

    def board(self) -> Board:
        """The workers' pages, in the supervisor's memory: to be looked at often, and to be closed."""
        assert self.process is not None
        for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                if os.readlink(link).startswith("/memfd:eventproc-board"):
                    return Board(os.open(link, os.O_RDWR | os.O_CLOEXEC), self.partitions, owns_fd=True)
        raise AssertionError(f"the supervisor (pid {self.process.pid}) has no board")

    def metric(self, name: str, **labels: str) -> float:
        """Sum over partitions of a metric (without `eventproc_`), as the monitor shows it."""
        url = self.status()["supervisor"]["monitor"]["url"]
        with _DIRECT.open(f"{url}/metrics", timeout=10) as answer:
            families = list(text_string_to_metric_families(answer.read().decode()))
        return sum(
            sample.value
            for family in families
            for sample in family.samples
            if sample.name == f"eventproc_{name}" and labels.items() <= sample.labels.items()
        )

    def readiness(self) -> tuple[int, dict[str, Any]]:
        """Status code and body of /readyz."""
        url = self.status()["supervisor"]["monitor"]["url"]
        try:
            with _DIRECT.open(f"{url}/readyz", timeout=10) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def picture(self) -> str:
        """All there is to see of it, for a failure's message."""
        try:
            shown = json.dumps(self.status()["workers"])
        except EventprocError as error:
            shown = str(error)
        return f"{shown}\n{self.log()[-6000:]}"

    # --- Kafka --------------------------------------------------------------------------------------

    def user(self, name: str, partition: int) -> str:
        """A user of that partition."""
        return next(u for n in range(10_000) if partition_of(u := f"{name}{n}", self.partitions) == partition)

    def produce(self, workload: Workload, **options: Any) -> Produced:
        """Produce a workload with its ledger; late events come once the gaps are closed."""
        options.setdefault("before_late", self.settle)
        produced = produce(self.settings, workload, self.ledger, **options)
        assert not produced.unacknowledged, produced
        return produced

    def send(
        self, *records: dict[str, Any] | bytes | None, partition: int = -1, key: bytes = b""
    ) -> list[int]:
        """Produce these values in order; returns their offsets."""
        offsets: dict[int, int] = {}
        producer = EventProducer(
            self.settings, linger_ms=2, on_acked=lambda tag, _partition, offset: offsets.update({tag: offset})
        )
        try:
            for number, record in enumerate(records):
                value = orjson.dumps(record) if isinstance(record, dict) else record
                user = record["userId"].encode() if isinstance(record, dict) else key
                headers = [("event-id", record["id"].encode())] if isinstance(record, dict) else []
                producer.produce(key or user, value, headers, partition=partition, tag=number)
            assert producer.flush(30) == 0
        finally:
            producer.close()
        assert len(offsets) == len(records), producer.failed
        return [offsets[number] for number in range(len(records))]

    def ends_of(self, topic: str = "") -> dict[int, int]:
        """End offset of each partition."""
        with Admin(self.settings) as admin:
            return {number: high for number, (_low, high) in admin.watermarks(topic or self.topic).items()}

    def committed(self) -> dict[int, int]:
        return {number: max(0, offset) for number, offset in committed_offsets(self.settings).items()}

    def dead_letters(self) -> list[Message]:
        """Everything in the dead-letter topic."""
        ranges = {number: (0, end) for number, end in self.ends_of(self.settings.dlq_topic).items()}
        with TopicReader(self.settings) as reader:
            return list(reader.read(self.settings.dlq_topic, ranges))

    # --- Redis --------------------------------------------------------------------------------------

    def key(self, name: str) -> str:
        return self.settings.key_prefix + name

    def hash(self, name: str) -> dict[str, str]:
        found: dict[str, str] = self.redis.hgetall(self.key(name))  # type: ignore[assignment]
        return found

    def elements(self, name: str) -> list[str]:
        found: list[str] = self.redis.lrange(self.key(name), 0, -1)  # type: ignore[assignment]
        return found

    def order(self, user: str) -> list[int]:
        return [int(seq) for seq in self.elements(f"order:{user}")]

    def gaps(self, user: str) -> list[str]:
        """The ledger's entries without their times."""
        return [entry.rpartition(":")[0] for entry in self.elements(f"gaps:{user}")]

    def status_of(self, id: str) -> str:
        return self.hash(f"event:{id}").get("status", "")

    def locks(self) -> list[str]:
        return list(self.redis.scan_iter(self.key("inflight:*"), count=1000))

    def floors(self) -> dict[int, int]:
        """What Redis holds as position of each partition."""
        names = [f"partition:{self.topic}:{number}" for number in range(self.partitions)]
        return {number: int(self.hash(name).get("offset", 0)) for number, name in enumerate(names)}

    def see_renewed(self, lock: str, times: int = 2) -> None:
        """Wait until this lock's life has been prolonged that often, without having ended."""
        for _ in range(times):
            until = self._expires(lock) + 0.5
            self.until(partial(lambda until: self._expires(lock) > until, until), f"{lock} is renewed")

    def _expires(self, lock: str) -> float:
        left_ms: int = self.redis.pttl(self.key(lock))
        assert left_ms > 0, f"{lock} is gone"
        return time.monotonic() + left_ms / 1000

    def final(self, *ids: str, timeout_s: float = 40) -> None:
        """Wait until these are final."""
        self.until(lambda: all(self.status_of(id) for id in ids), f"final: {ids}", timeout_s)

    # --- all of it ----------------------------------------------------------------------------------

    def settle(self, timeout_s: float = 60) -> None:
        """Wait until the floor of each partition is its end: all is final, dead letters acknowledged."""
        ends = self.ends_of()
        self.until(lambda: self.floors() == ends, f"floors at {ends}", timeout_s)

    def idle(self, timeout_s: float = 60) -> None:
        """Wait until everything is final and committed."""
        self.settle(timeout_s)
        ends = self.ends_of()
        self.until(lambda: self.committed() == ends, f"commits at {ends}", timeout_s)

    def audit(self, *, crashed: bool, ledger: bool = True, idle: bool = True) -> Report:
        """The audit, which must be clean; nothing may be locked."""
        recorded = any(self.runs.glob("*.runs"))
        report = audit(
            self.settings,
            ledger=self.ledger if ledger else None,
            runs=self.runs if recorded else None,
            crashed=crashed,
            idle=idle,
        )
        assert report.clean, f"{json.dumps(report.as_json(), indent=1)}\n{self.log()[-6000:]}"
        return report

    def begun(self, id: str) -> int:
        """How many runs of ACT were begun for that event."""
        lines = [line for path in self.runs.glob("*.begun") for line in path.read_text().splitlines()]
        return sum(line.split()[0] == id for line in lines)

    def times(self) -> Iterator[tuple[str, int, int, int]]:
        """(id, attempt, begin ms, end ms) of each run of ACT."""
        for path in sorted(self.runs.glob("*.times")):
            for line in path.read_text().splitlines():
                id, attempt, begin_ms, end_ms = line.split()
                yield id, int(attempt), int(begin_ms), int(end_ms)


def headers_of(message: Message) -> list[tuple[str, bytes]]:
    """A record's headers, in order."""
    headers: Any = message.headers() or []
    return list(headers)


def gone(pids: list[int], timeout_s: float) -> None:
    """Wait until none of these is alive."""
    wait_for(lambda: not any(map(alive, pids)), timeout_s, f"end of {pids}")
