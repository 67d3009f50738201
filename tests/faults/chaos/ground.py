"""Where faults happen: one deployment, or two as on two hosts, under load, and the checker afterwards."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil  # type: ignore[import-untyped]
import redis
from redis.backoff import ConstantBackoff
from redis.retry import Retry

from eventproc.audit.report import Report
from eventproc.audit.run import audit
from eventproc.errors import EventprocError
from eventproc.handlers import BUILT_IN
from eventproc.metrics import Board, Page
from eventproc.spawn import owner_supervisor
from eventproc.workload import Produced, Workload, produce
from tests.faults.chaos.proxy import Proxy
from tests.faults.chaos.servers import Behind
from tests.integration.deployment import Deployment, gone
from tests.integration.supervised import wait_for
from tests.redis_server import RedisServer
from tests.threads import join

GAP_TIMEOUT_MS = 1500
#: A host whose workers are stopped for that long loses its partitions to the other one.
LEASE_MS = 4000
_UP_TIMEOUT_S = 180
#: A drain may take its time on a busy host, as long as it goes on.
_STANDSTILL_S = 90
_DRAIN_TIMEOUT_S = 900
_BUSY_TIMEOUT_S = 2.0
#: Once it is to stop: its records are acknowledged or have failed within a minute.
_LOAD_TIMEOUT_S = 300
_REPEATED_TIMEOUT_S = 60
_OWNED = ("running", "paused")


class Load:
    """A workload that a thread of its own produces, by the straight way, which faults of links spare."""

    def __init__(self, ground: Ground, workload: Workload) -> None:
        self._stop = threading.Event()
        self._ground = ground
        self._workload = workload
        self._result: Produced | BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="load", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        """All is produced."""
        return not self._thread.is_alive()

    def stop(self) -> None:
        """Produce no more."""
        self._stop.set()

    def end(self) -> Produced:
        """Wait until all is produced; what came of it."""
        join(self._thread, _LOAD_TIMEOUT_S)
        if isinstance(self._result, BaseException):
            raise self._result
        assert self._result is not None
        return self._result

    def _run(self) -> None:
        ground = self._ground
        settings = ground.hosts[0].settings
        wait_ms = settings.gap_timeout_ms + 1000
        try:
            self._result = produce(
                settings, self._workload, ground.ledger, late_after_ms=wait_ms, stop=self._stop.is_set
            )
        except BaseException as error:
            self._result = error


@dataclass(frozen=True)
class Owner:
    """The worker that has a partition now."""

    partition: int
    host: Deployment
    process: psutil.Process
    in_flight: int  # records that it has read and that are not final


class Ground:
    """Hosts, their Redis, and a load; faults come by threads.

    `hosts[1]` stands by, as if on another machine. Redis is the ground's own and keeps what it has
    acknowledged when it is killed. `settings` are the deployments'.
    """

    def __init__(
        self,
        servers: Behind,
        folder: Path,
        *,
        partitions: int = 2,
        hosts: int = 1,
        **settings: Any,
    ) -> None:
        self.servers = servers
        self.folder = folder
        self.partitions = partitions
        self.ledger = folder / "ledger"
        self.redis_servers = [RedisServer(persistent=True).start()]
        servers.heal(self.redis_server)
        broker = servers.broker
        topic = broker.topics(partitions)
        self.hosts: list[Deployment] = []
        for name in "ab"[:hosts]:
            (folder / name).mkdir()
            chosen: dict[str, Any] = {
                "kafka_topic": topic,
                "gap_timeout_ms": GAP_TIMEOUT_MS,
                "lease_ms": LEASE_MS,
                "restart_backoff_max_ms": 500,
                "redis_timeout_ms": 2000,
                **settings,
            }
            self.hosts.append(
                Deployment(
                    broker,
                    self.redis_server,
                    folder / name,
                    partitions=partitions,
                    through=servers.through(),
                    **chosen,
                )
            )
        for host in self.hosts:
            host.redis = self.look()
        self._boards: dict[int, Board] = {}
        self._looking = threading.Lock()
        self._of_server = (self.redis_server, self.redis_server.client(decode_responses=True))
        self.load: Load | None = None

    # --- life -----------------------------------------------------------------------------------------

    def start(self) -> Self:
        """Start all hosts, the first one first, so that it has all partitions."""
        for host in self.hosts:
            self.bring_up(host)
        return self

    def bring_up(self, *hosts: Deployment, arguments: tuple[str, ...] = (), crash_at: str = "") -> None:
        """Start these hosts' supervisors, all at once; again when one ends for what other faults do.

        Returns once each of their workers has its partition or stands by. A supervisor lives no longer than
        the thread that starts it.
        """
        deadline = time.monotonic() + _UP_TIMEOUT_S
        for host in hosts:
            host.start(*arguments, crash_at=crash_at, ready=False)
        while waiting := [host for host in hosts if not self._is_up(host)]:
            assert time.monotonic() < deadline, f"not up within {_UP_TIMEOUT_S} s\n{waiting[0].picture()}"
            time.sleep(0.05)
            for host in waiting:
                if host.process is not None and (code := host.process.poll()) is not None:
                    refused = code == 3 and "has no permissions" in host.log()[-500:]
                    assert code == 5 or refused, f"ended with {code}\n{host.log()[-4000:]}"
                    time.sleep(0.2)
                    host.start(*arguments, crash_at=crash_at, ready=False)

    def _is_up(self, host: Deployment) -> bool:
        with contextlib.suppress(EventprocError, StopIteration):
            workers = host.status()["workers"]
            return bool(workers) and all(worker["state"] in (*_OWNED, "standby") for worker in workers)
        return False

    def take_down(self, host: Deployment, number: signal.Signals = signal.SIGKILL) -> int:
        """End a host's supervisor; its exit code. With KILL nothing of it may be alive after 2 s."""
        children = host.children()
        host.signal(number)
        code = host.ends()
        gone(children, 2)
        return code

    def put_under(self, workload: Workload) -> Load:
        """Begin to produce, and return once there is something in work on each partition."""
        self.load = Load(self, workload)
        wait_for(lambda: all(self.hosts[0].floors().values()), 40, "the first floors")
        return self.load

    def close(self) -> None:
        """End everything; shows the logs when a test has failed."""
        if self.load is not None:
            self.load.stop()
            with contextlib.suppress(Exception):
                self.load.end()
        for board in self._boards.values():
            board.close()
        for host in self.hosts:
            host.close()
        for server in self.redis_servers:
            server.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # --- what faults use ------------------------------------------------------------------------------

    @property
    def proxy(self) -> Proxy:
        return self.servers.proxy

    @property
    def redis_server(self) -> RedisServer:
        """The one in use."""
        return self.redis_servers[-1]

    @property
    def topic(self) -> str:
        return self.hosts[0].topic

    def admin(self) -> redis.Redis:
        """A client by the straight way, which bears that Redis is coming back."""
        return self.redis_server.client(decode_responses=True, retry=Retry(ConstantBackoff(0.05), 600))

    def look(self) -> redis.Redis:
        """A client for reading, which also bears what Redis refuses for a while (MASTERDOWN, BUSY)."""
        bears = (redis.ConnectionError, redis.TimeoutError, redis.ResponseError)
        retry = Retry(ConstantBackoff(0.05), 600, supported_errors=bears)
        return self.redis_server.client(decode_responses=True, retry=retry)

    def redis_errors(self, code: str) -> int:
        """How often Redis has answered with this error."""
        found: dict[str, Any] = self.admin().info("errorstats")
        entry: dict[str, int] = found.get(f"errorstat_{code}", {})
        return entry.get("count", 0)

    def use(self, server: RedisServer) -> None:
        """Redis is that one from now on, for everybody."""
        self.redis_servers.append(server)
        for host in self.hosts:
            host.server = server
            host.redis = self.look()
            host.choose(redis_url=server.url)
        self.servers.heal(server)

    def page(self, host: Deployment, partition: int) -> Page | None:
        """What that host's worker tells of itself; None when the supervisor is not running."""
        process = host.process
        if process is None or process.poll() is not None:
            return None
        with self._looking:
            if process.pid not in self._boards:
                with contextlib.suppress(AssertionError, OSError, ValueError):
                    self._boards[process.pid] = host.board()
            board = self._boards.get(process.pid)
        return board.page(partition) if board is not None else None

    def epoch(self, partition: int) -> int:
        """Of the partition, as Redis has it."""
        return int(self._field(partition, "epoch") or 0)

    def _field(self, partition: int, name: str) -> Any:
        """What Redis has of a partition; bears that it is away, or becomes another one meanwhile."""
        deadline = time.monotonic() + _UP_TIMEOUT_S
        while True:
            try:
                return self._reader().hget(f"partition:{self.topic}:{partition}", name)
            except redis.RedisError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def _reader(self) -> redis.Redis:
        """A client without retries of the Redis in use."""
        server = self.redis_server
        with self._looking:
            if self._of_server[0] is not server:
                self._of_server = (server, server.client(decode_responses=True))
            return self._of_server[1]

    def epochs(self) -> list[int]:
        """Of all partitions."""
        return [self.epoch(number) for number in range(self.partitions)]

    def owner(self, partition: int) -> Owner | None:
        """Who has the partition, when its process is known and alive."""
        token = self._field(partition, "owner")
        supervisor = owner_supervisor(str(token or ""))
        for host in self.hosts:
            page = self.page(host, partition)
            if host.process is None or page is None or f":{host.process.pid}:" not in supervisor:
                continue
            pid = page.get("pid")
            with contextlib.suppress(psutil.NoSuchProcess):
                if pid and page.state in _OWNED:
                    return Owner(partition, host, psutil.Process(pid), page.get("unfinalized"))
        return None

    def busy_owner(self, rng: random.Random) -> Owner:
        """A partition's owner with events in work; any owner when none is found with some in 2 s."""
        found: list[Owner] = []

        def look() -> bool:
            for partition in rng.sample(range(self.partitions), self.partitions):
                owner = self.owner(partition)
                found[:] = [owner] if owner else found
                if owner is not None and owner.in_flight:
                    return True
            return False

        with contextlib.suppress(AssertionError):
            wait_for(look, _BUSY_TIMEOUT_S)
        if not found:
            wait_for(lambda: look() or found, _UP_TIMEOUT_S, "an owner")
        return found[0]

    def in_flight(self) -> int:
        """Records that have been read and are not final, of all partitions."""
        pages = [self.page(host, number) for host in self.hosts for number in range(self.partitions)]
        return sum(page.get("unfinalized") for page in pages if page is not None and page.state in _OWNED)

    def busy(self) -> bool:
        """Wait up to 2 s for events in work; whether there are some."""
        with contextlib.suppress(AssertionError):
            return bool(wait_for(self.in_flight, _BUSY_TIMEOUT_S))
        return False

    def counter(self, read: Callable[[Page], int]) -> int:
        """Sum over all pages; falls when a supervisor starts anew."""
        pages = [self.page(host, number) for host in self.hosts for number in range(self.partitions)]
        return sum(read(page) for page in pages if page is not None)

    def goes_on(self, timeout_s: float) -> None:
        """Wait until all that has been produced by now is final, while the load goes on."""
        first = self.hosts[0]
        ends = first.ends_of()
        deadline = time.monotonic() + timeout_s
        while behind := {n: floor for n, floor in first.floors().items() if floor < ends[n]}:
            if time.monotonic() > deadline:
                raise AssertionError(f"not at {ends} after {timeout_s} s, but {behind}\n{self._pictures()}")
            time.sleep(0.05)

    # --- the end --------------------------------------------------------------------------------------

    def end_load(self) -> None:
        """Produce no more."""
        assert self.load is not None
        assert not self.load.over, "the load has ended by itself"
        self.load.stop()

    def drain(self) -> None:
        """Wait until all that was produced is final and committed; fails when nothing moves any more."""
        assert self.load is not None
        self.load.end()
        first = self.hosts[0]
        ends = first.ends_of()
        deadline = time.monotonic() + _DRAIN_TIMEOUT_S
        seen, since = (first.floors(), first.committed()), time.monotonic()
        while seen != (ends, ends):
            now = time.monotonic()
            if now > deadline or now > since + _STANDSTILL_S:
                raise AssertionError(f"not at {ends}, but at (floors, committed) {seen}\n{self._pictures()}")
            time.sleep(0.1)
            before, seen = seen, (first.floors(), first.committed())
            since = since if seen == before else now

    def _pictures(self) -> str:
        return "\n".join(host.picture() for host in self.hosts)

    def stop(self) -> None:
        """End all hosts in order; nothing may be left locked, and no handler taken for one that hangs."""
        for host in self.hosts:
            assert host.stop() == 0, host.log()[-4000:]
            hung = [line for line in host.log().splitlines() if "handler has run for" in line]
            assert not hung, hung  # no fault makes one hang
        assert self.hosts[0].locks() == []

    def judge(self) -> Report:
        """The checker's report on all that was produced, with the handlers' own records of their runs.

        Whichever handler it was, it has to have done as the built-in one does.
        """
        runs = self.folder / "runs"
        runs.mkdir(exist_ok=True)
        for host in self.hosts:
            for path in host.runs.glob("*.runs"):
                name = runs / f"{host.folder.name}-{path.name}"
                if not name.exists():
                    os.link(path, name)
        # Redis may be busy with more than the judge's questions: what the workers make of that is judged here
        changes = {"handler": BUILT_IN, "redis_timeout_ms": 60_000}
        settings = self.hosts[0].settings.model_copy(update=changes)
        return audit(settings, ledger=self.ledger, runs=runs, crashed=True)


@contextlib.contextmanager
def repeated(every_s: float, what: Callable[[], Any]) -> Iterator[None]:
    """Do it again and again meanwhile, in a thread."""
    over = threading.Event()

    def run() -> None:
        while not over.wait(every_s):
            what()

    thread = threading.Thread(target=run, name="repeated", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        join(thread, _REPEATED_TIMEOUT_S)
