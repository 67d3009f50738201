"""What an event and a user take in Redis, and a parked event in its worker.

Redis: `used_memory` before and after, without what its clients hold. Users get so many events each through
eventproc's scripts, and then as many again: the second half tells what an event takes (hash, marker, its seq
in the order list, and their part of Redis' tables), the rest of the first half is the user's. Hash and marker
go when their TTL is over, the seq and the user stay. Without TTL an event takes less: each expiry is an entry
in a table of its own.
Workers: resident memory before and after parking events of about 100 bytes, behind gaps.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from benchmarks.redis_load import Batch, Event, calls, send
from benchmarks.script_load import Scripts
from benchmarks.test_growth import fill
from eventproc.broker.producer import EventProducer
from eventproc.workload import Workload
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(600)

USERS = 500 if SMOKE else 10_000
SEQS = 10
HISTORY = 1_000 if SMOKE else 100_000
PARKED_USERS = 400 if SMOKE else 10_000
WARM_UP_USERS = 100
LINGER_MS = 20
MIB = 2**20
_BATCH = 500
_TIMEOUT_S = 120.0


def batches(first_seq: int, id_bytes: int) -> Iterator[Batch]:
    """SEQS events of each user from that seq on."""
    number = itertools.count(first_seq * USERS)
    for seq in range(first_seq, first_seq + SEQS):
        for start in range(0, USERS, _BATCH):
            yield Batch(
                0,
                0,
                [
                    Event(f"{next(number):0{id_bytes}d}", f"user-{user:07d}", seq, "order.created")
                    for user in range(start, min(start + _BATCH, USERS))
                ],
            )


def used(client: redis.Redis) -> tuple[int, int]:
    """Bytes in all, and those of the table of expiries."""
    memory = client.info("memory")
    tables = client.memory_stats()["db.0"]
    return memory["used_memory"] - memory["mem_clients_normal"], tables["overhead.hashtable.expires"]


@pytest.mark.parametrize("id_bytes", [16, 36])
def test_redis_memory(benchmark: Any, figures: Figures, id_bytes: int) -> None:
    events = USERS * SEQS
    with RedisServer() as server:
        client = server.client()
        scripts = Scripts(server, [0], locks=True)
        client.set("first", "1")  # so that there are tables
        found = [used(client)]

        def write(first_seq: int) -> None:
            send(server, calls(scripts, batches(first_seq, id_bytes), locks=True))
            found.append(used(client))

        def both() -> None:
            write(1)
            write(1 + SEQS)

        benchmark.pedantic(both, rounds=1)
        assert client.dbsize() == 2 * 2 * events + USERS + 2, "not all was written, or a lock is left"
        one = f"{USERS * SEQS:0{id_bytes}d}"
        assert client.ttl(f"event:{one}") > 0
        keys = {name: client.memory_usage(f"{name}:{one}", samples=0) for name in ("event", "dedup")}
        order_bytes = client.memory_usage("order:user-0000000", samples=0)
    (empty, _), (half, half_expiries), (whole, whole_expiries) = found
    event_bytes = (whole - half) / events
    figures.add(
        bytes_per_event=round(event_bytes),
        bytes_without_ttl=round(event_bytes - (whole_expiries - half_expiries) / events),
        bytes_per_user=round((half - empty) / USERS - SEQS * event_bytes),
        hash_bytes=keys["event"],
        marker_bytes=keys["dedup"],
        **{f"order_bytes_{2 * SEQS}": order_bytes},
        events=2 * events,
        users=USERS,
        id_bytes=id_bytes,
    )


def test_order_list_memory(benchmark: Any, figures: Figures) -> None:
    """What stays of an event for good: its seq."""
    with RedisServer() as server:
        benchmark.pedantic(fill, args=(server, 1, HISTORY), rounds=1)
        bytes_all = server.client().memory_usage("order:user-0000000", samples=0) or 0
    figures.add(bytes_per_seq=round(bytes_all / HISTORY, 2), seqs=HISTORY)


def test_parked_memory(benchmark: Any, figures: Figures) -> None:
    """Every user's first event is missing; nothing else of theirs can run."""
    warm_up = Workload(users=WARM_UP_USERS, events_per_user=SEQS, payload_bytes=0, run="warm")
    work = Workload(
        users=PARKED_USERS,
        events_per_user=SEQS + 1,
        payload_bytes=0,
        run="parked",
        start_ms=time.time_ns() // 1_000_000,
    )
    parked = PARKED_USERS * SEQS
    with Deployment(gap_timeout_ms=3_600_000) as deployment:
        deployment.produce(warm_up)
        deployment.wait_processed(warm_up.events)
        before = deployment.workers_rss()

        def park() -> None:
            producer = EventProducer(deployment.settings, linger_ms=LINGER_MS)
            try:
                for record in work.main():
                    if record.seq > 1:
                        producer.produce(record.key, record.value, record.headers)
                        producer.poll()
                assert producer.flush(_TIMEOUT_S) == 0, producer.last_error
            finally:
                producer.close()
            deadline = time.monotonic() + _TIMEOUT_S
            while deployment.gauge("parked") < parked:
                deployment.check()
                assert time.monotonic() < deadline, deployment.picture()
                time.sleep(0.05)

        benchmark.pedantic(park, rounds=1)
        after = deployment.workers_rss()
        assert deployment.processed() == warm_up.events
    figures.add(
        worker_mib=round(sum(before) / len(before) / MIB, 1),
        parked_worker_mib=round(sum(after) / len(after) / MIB, 1),
        bytes_per_parked_event=round((sum(after) - sum(before)) / parked),
        parked=parked,
        workers=len(after),
    )
