"""What a drain costs Redis, by what the bare commands cost it: benchmarks/reference.py.

Runs alternate: a drain as in test_drain, on its own deployment; then the reference, on a Redis of its own,
with the same events in batches of the mean size that the workers had; then eventproc's own scripts, sent just
as the reference is. The last tells what part of the ratio is in the scripts, and what comes from the company:
in a drain eight workers and the broker share processors and caches with Redis, and it waits for calls now and
then.

The bar: at most 1.15, for each locking mode, by the median of 7 runs.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, NamedTuple

import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import PARTITIONS, SMOKE, Deployment
from benchmarks.redis_load import Batch, Cost, Event, Writer, calls, send
from benchmarks.reference import Reference
from benchmarks.script_load import Scripts
from benchmarks.test_drain import Drain, backlog, drain
from eventproc._reorder import partition_of
from tests.redis_server import RedisServer
from tests.script_runner import values

pytestmark = pytest.mark.timeout(1800)

RUNS = 1 if SMOKE else 7
EVENTS = 4_000 if SMOKE else 100_000
USERS = 200 if SMOKE else 5000
BATCH_EVENTS = 1_000 if SMOKE else 50_000
MOST_RATIO = 1.15


class Run(NamedTuple):
    """CPU us of Redis for an event, and the mean size of the drain's finalize calls."""

    drain_us: float
    reference_us: float
    scripts_us: float
    batch: float


def batches(size: int, *, events: int = EVENTS, users: int = USERS) -> list[Batch]:
    """The drain's backlog as workers read it: in batches of one partition, partitions in turns."""
    lanes: list[list[Event]] = [[] for _ in range(PARTITIONS)]
    for record in backlog(users, events).main():
        event = Event(record.id, record.user, record.seq, record.type)
        lanes[partition_of(record.user, PARTITIONS)].append(event)
    return [
        Batch(partition, start, lane[start : start + size])
        for start in range(0, max(map(len, lanes)), size)
        for partition, lane in enumerate(lanes)
        if start < len(lane)
    ]


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def cost(kind: str, work: list[Batch], *, locks: bool) -> Cost:
    """Of the reference or of the scripts, on a fresh server."""
    with RedisServer() as server:
        writer: Writer
        if kind == "reference":
            writer = Reference(now_ms(), locks=locks)
        else:
            writer = Scripts(server, range(PARTITIONS), locks=locks)
        spent = send(server, calls(writer, work, locks=locks))
        client = server.client()
        left = sum(len(batch.events) for batch in work)
        users = len({event.user for batch in work for event in batch.events})
        partitions = len({batch.partition for batch in work})
        if kind == "scripts":
            partitions = PARTITIONS  # claimed, whether or not a record lies there
        assert client.dbsize() == 2 * left + users + partitions, "not all was written, or a lock is left"
    return spent


def one_drain(locking: str) -> Drain:
    """A backlog, drained by a deployment of its own and audited."""
    with Deployment(locking=locking) as deployment:
        with deployment.frozen():
            deployment.produce(backlog(USERS, EVENTS))
        drained = drain(deployment, EVENTS)
        assert deployment.audit().totals.processed == EVENTS
    return drained


def effects(server: RedisServer) -> dict[bytes, Any]:
    """All there is, but for what the time and the owner make of it."""
    found = values(server.client())
    for key in list(found):
        if key.startswith(b"event:"):
            del found[key][b"processedAt"]
        elif key.startswith(b"partition:"):
            found[key] = {name: found[key][name] for name in (b"rev", b"offset", b"unfinalized")}
    return found


@pytest.mark.parametrize("locks", [True, False])
def test_the_reference_has_the_same_effects(locks: bool) -> None:
    work = batches(50, events=400, users=40)
    partitions = {batch.partition for batch in work}
    with RedisServer() as one, RedisServer() as other:
        send(one, calls(Reference(now_ms(), locks=locks), work, locks=locks))
        send(other, calls(Scripts(other, partitions, locks=locks), work, locks=locks))
        assert effects(one) == effects(other)
        for key in (b"event:", b"dedup:", b"order:"):
            name = next(name for name in effects(one) if name.startswith(key))
            ttls = [server.client().ttl(name) for server in (one, other)]
            assert ttls[0] == pytest.approx(ttls[1], abs=60)


@pytest.mark.parametrize("batch", [1, 10, 100, 500, 1000])
@pytest.mark.parametrize("locking", ["event", "partition"])
def test_reference(benchmark: Any, figures: Figures, locking: str, batch: int) -> None:
    locks = locking == "event"
    work = batches(batch, events=BATCH_EVENTS)
    spent: list[Cost] = []
    benchmark.pedantic(lambda: spent.append(cost("reference", work, locks=locks)), rounds=1)
    figures.add(
        cpu_us=round(spent[0].us(BATCH_EVENTS), 2),
        commands_us=round(spent[0].counted_us(BATCH_EVENTS), 2),
        events=BATCH_EVENTS,
    )


@pytest.mark.parametrize("locking", ["event", "partition"])
def test_drain_by_reference(benchmark: Any, figures: Figures, locking: str) -> None:
    locks = locking == "event"
    runs: list[Run] = []

    def run() -> None:
        drained = one_drain(locking)
        work = batches(round(drained.batch))
        reference, scripts = (cost(kind, work, locks=locks).us(EVENTS) for kind in ("reference", "scripts"))
        runs.append(Run(drained.redis_us, reference, scripts, drained.batch))
        tell(figures, runs)

    benchmark.pedantic(run, rounds=RUNS)
    ratio = statistics.median(run.drain_us / run.reference_us for run in runs)
    figures.bar("Redis CPU by reference", ratio, most=MOST_RATIO)
    figures.judge()


def tell(figures: Figures, runs: list[Run]) -> None:
    """Medians, and each run's ratio."""
    for name in Run._fields:
        figures.add(**{name: round(statistics.median(getattr(run, name) for run in runs), 2)})
    for name in ("drain", "scripts"):
        ratios = sorted(getattr(run, f"{name}_us") / run.reference_us for run in runs)
        figures.add(
            **{
                f"{name}_ratio": round(statistics.median(ratios), 3),
                f"{name}_ratios": "/".join(f"{one:.2f}" for one in ratios),
            }
        )
    figures.add(runs=len(runs), events=EVENTS, users=USERS, audit="clean")
