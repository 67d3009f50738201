"""One drain by one peer, on a real Kafka and a Redis that all of them share.

The processes join their group on an empty topic and are stopped (SIGSTOP) while the backlog is produced. The
clock starts just before they go on, so before the first fetch, and ends when the last effect is in Redis.
Each drain has a topic and a group of its own, and Redis is emptied before.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from confluent_kafka import ConsumerGroupState, KafkaException
from confluent_kafka.admin import AdminClient

from benchmarks.deployment import Deployment, cpu_s, state
from benchmarks.peers.results import Run
from benchmarks.peers.task import Task
from eventproc.audit import Report, audit
from eventproc.broker.admin import prepare_topics
from eventproc.settings import Settings
from eventproc.workload import Workload, produce
from tests.kafka_server import KafkaServer
from tests.redis_server import RedisServer

PARTITIONS = 8
EVENTS_PER_USER = 20
_ROOT = Path(__file__).parents[2]
#: The main environment, and the one with the peers' packages.
OURS = Path(sys.executable)
THEIRS = _ROOT / ".venv-peers" / "bin" / "python"
_POLL_S = 0.01
_JOIN_TIMEOUT_S = 120.0
_DONE_TIMEOUT_S = 900.0
_STOP_TIMEOUT_S = 30.0
#: The real program, tied to the life of this process: the signal on the parent's death survives exec.
_LAUNCH = (
    "import os, sys; from eventproc.spawn import die_with_parent; "
    "die_with_parent(int(sys.argv[1])); os.execvp(sys.argv[2], sys.argv[2:])"
)


@dataclass(frozen=True, slots=True)
class Program:
    """A peer: its module, and the environment that it runs in."""

    module: str
    python: Path = THEIRS


#: By the names of results.TITLES.
PROGRAMS = {
    "loop": Program("loop", OURS),
    "faststream": Program("faststream_each"),
    "quix": Program("quix"),
    "arroyo": Program("arroyo_each"),
    "arroyo-batch": Program("arroyo_batch"),
    "pipeline": Program("pipeline", OURS),
}


@dataclass(frozen=True, slots=True)
class Servers:
    """What all share."""

    kafka: KafkaServer
    redis: RedisServer


def backlog(topic: str, events: int) -> Workload:
    """Good events only, each user's in order: what every peer can do."""
    return Workload(
        users=events // EVENTS_PER_USER,
        events_per_user=EVENTS_PER_USER,
        shuffle_window=0,
        payload_bytes=0,
        topic=topic,
        start_ms=time.time_ns() // 1_000_000,
    )


def drain(peer: str, processes: int, number: int, events: int, servers: Servers) -> Run:
    """One measured drain and its check; AssertionError when an effect is missing or wrong."""
    servers.redis.client().flushall()
    if peer in PROGRAMS:
        return _drain_program(peer, processes, number, events, servers)
    return _drain_eventproc(peer, processes, number, events, servers)


def _measure(
    pids: Callable[[], list[int]],
    thaw: Callable[[], None],
    wait: Callable[[], None],
    servers: Servers,
) -> tuple[float, float, float, float]:
    """Seconds by the clock; seconds of CPU time of those processes, of Redis, of Kafka."""

    def used(mine: dict[int, float]) -> tuple[float, float, float]:
        return sum(mine.values()), cpu_s(servers.redis.pid), cpu_s(servers.kafka.pid)

    before = used({pid: cpu_s(pid) for pid in pids()})
    begun = time.perf_counter()
    thaw()
    wait()
    elapsed_s = time.perf_counter() - begun
    after = used({pid: cpu_s(pid) for pid in pids()})
    peer, redis, kafka = (late - early for late, early in zip(after, before, strict=True))
    return elapsed_s, peer, redis, kafka


# --- programs -------------------------------------------------------------------------------------------


def _drain_program(peer: str, processes: int, number: int, events: int, servers: Servers) -> Run:
    topic = f"{peer}-{processes}-{number}-{time.time_ns()}"
    task = Task(servers.kafka.bootstrap, topic, topic, servers.redis.url)
    settings = Settings.model_validate(
        {
            "kafka_bootstrap_servers": task.bootstrap,
            "kafka_topic": topic,
            "kafka_group_id": topic,
            "redis_url": task.redis_url,
            "topic_partitions": PARTITIONS,
        }
    )
    prepare_topics(settings)
    workload = backlog(topic, events)
    with TemporaryDirectory(prefix="eventproc-peers-") as folder:
        ledger = Path(folder) / "ledger"
        with _members(PROGRAMS[peer], processes, task, Path(folder) / "log") as members:
            with members.frozen():
                made = produce(settings, workload, ledger)
                assert made.acknowledged == made.sent == events, made
                assert servers.redis.client().dbsize() == 0, "a process ran although it was stopped"
                load = os.getloadavg()[0]
            measured = _measure(
                members.pids,
                members.thaw,
                # A marker and a hash of each event; a list of each user, pushed to last.
                lambda: members.wait_keys(servers.redis, 2 * events + workload.users),
                servers,
            )
        check(settings, ledger, events)
    return Run(peer, processes, number, events, *measured, load)


def check(settings: Settings, ledger: Path, events: int) -> Report:
    """eventproc's audit, less what no peer promises: positions in Redis. AssertionError if not clean."""
    report = audit(settings, ledger=ledger, crashed=False)
    report.counts.pop("position", None)
    assert report.clean, "\n".join(report.lines())
    assert report.totals.processed == events, f"{report.totals.processed} of {events} events are processed"
    return report


class _Members:
    """The processes of one group."""

    def __init__(self, processes: list[subprocess.Popen[bytes]], log: Path) -> None:
        self._processes = processes
        self._log = log

    def pids(self) -> list[int]:
        return [process.pid for process in self._processes]

    def check(self) -> None:
        for process in self._processes:
            assert process.poll() is None, f"a process has ended\n{self._log.read_text()[-4000:]}"

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        """They do nothing inside, and stay stopped: `thaw`."""
        for process in self._processes:
            process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while not all(state(pid) == "T" for pid in self.pids()):
            assert time.monotonic() < deadline, "the processes do not stop"
            time.sleep(_POLL_S)
        yield

    def thaw(self) -> None:
        for process in self._processes:
            process.send_signal(signal.SIGCONT)

    def wait_keys(self, redis: RedisServer, keys: int) -> None:
        """Return when Redis holds so many keys, within `_POLL_S`."""
        client = redis.client()
        deadline = time.monotonic() + _DONE_TIMEOUT_S
        while (found := client.dbsize()) < keys:
            self.check()
            assert time.monotonic() < deadline, f"{found} of {keys} keys\n{self._log.read_text()[-4000:]}"
            time.sleep(_POLL_S)

    def wait_joined(self, task: Task) -> None:
        """Return when the group is stable and its members have all partitions."""
        admin = AdminClient({"bootstrap.servers": task.bootstrap, "log_level": 0})
        deadline = time.monotonic() + _JOIN_TIMEOUT_S
        picture = ""
        while True:
            self.check()
            with contextlib.suppress(KafkaException, TimeoutError):
                group = admin.describe_consumer_groups([task.group])[task.group].result(10)
                held = [len(member.assignment.topic_partitions) for member in group.members]
                picture = f"{group.state.name}, partitions by member: {held}"
                complete = len(held) == len(self._processes) and sum(held) == PARTITIONS and all(held)
                if group.state == ConsumerGroupState.STABLE and complete:
                    return
            log = self._log.read_text()[-4000:]
            assert time.monotonic() < deadline, f"the group does not form: {picture}\n{log}"
            time.sleep(0.1)

    def end(self) -> None:
        """TERM, so that they leave the group; by force when that takes long."""
        self.thaw()
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def _members(program: Program, count: int, task: Task, log: Path) -> Iterator[_Members]:
    """So many processes of it, once they have all joined."""
    command = [str(OURS), "-c", _LAUNCH, str(os.getpid())]
    command += [str(program.python), "-m", f"benchmarks.peers.{program.module}", *task.arguments()]
    with log.open("wb") as output:
        started = [
            subprocess.Popen(command, cwd=_ROOT, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            for _ in range(count)
        ]
    members = _Members(started, log)
    try:
        members.wait_joined(task)
        yield members
    finally:
        members.end()


# --- eventproc ------------------------------------------------------------------------------------------


def _drain_eventproc(peer: str, processes: int, number: int, events: int, servers: Servers) -> Run:
    """A worker has a partition, so the topic has as many as there are to be processes."""
    topic = f"{peer}-{processes}-{number}-{time.time_ns()}"
    deployment = Deployment(
        kafka=servers.kafka,
        redis=servers.redis,
        partitions=processes,
        kafka_topic=topic,
        kafka_group_id=topic,
        locking=peer.removeprefix("eventproc-"),
    )
    with deployment:
        with deployment.frozen():
            deployment.produce(backlog(topic, events))
            assert deployment.processed() == 0, "a worker ran although it was stopped"
            load = os.getloadavg()[0]
        measured = _measure(
            deployment.pids,
            deployment.thaw,
            lambda: deployment.wait_processed(events, _POLL_S),
            servers,
        )
        assert deployment.audit().totals.processed == events
    return Run(peer, processes, number, events, *measured, load)
