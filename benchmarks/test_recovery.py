"""A worker is killed under load: how long until its partition goes on under its next owner.

Measured in Redis, where it counts: from SIGKILL to the first rise of the partition's `offset` under a new
epoch, at 2,000 events/s over all partitions. One worker after the other is killed, each one not before it
has worked for as long as makes the supervisor forget its last death. In the end every event is audited.
The bars: p99 at most 2 s; with 200,000 final records above the floor and 50,000 parked, 5 s.
"""

from __future__ import annotations

import os
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis

from benchmarks.conftest import Figures
from benchmarks.deployment import PARTITIONS, SMOKE, Deployment
from benchmarks.test_latency import LIGHT, Acked, OpenLoop, scheduled
from eventproc.broker.producer import EventProducer
from tests.integration.conftest import broker_of
from tests.integration.deployment import Deployment as OnKafka
from tests.integration.deployment import event
from tests.kafka_server import KafkaServer, why_not
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(1800)

KILLS = 3 if SMOKE else 200
#: The embedded broker keeps 5 MiB a partition: so many kills, then a new one.
KILLS_PER_ROUND = 40
#: Each worker lives for longer than supervisor.backoff.PROGRESS_RESETS_MS.
PAUSE_S = 12.0 / PARTITIONS
P99_BELOW_S = 2.0
_TIMEOUT_S = 60.0
_POLL_S = 0.002

FINAL = 2_000 if SMOKE else 200_000
PARKED = 500 if SMOKE else 50_000
LOADED_BELOW_S = 5.0
_SEQS = 10


def position(client: redis.Redis, topic: str, partition: int) -> tuple[int, int]:
    """Epoch and offset, as Redis has them."""
    epoch, offset = client.hmget(f"partition:{topic}:{partition}", "epoch", "offset")
    return int(epoch or 0), int(offset or 0)


def recovery_s(
    client: redis.Redis, topic: str, partition: int, pid: int, then: Callable[[], None] = lambda: None
) -> float:
    """Kill that worker, and `then`; seconds until the offset rises under a new epoch."""
    before = position(client, topic, partition)[0]
    begun = time.monotonic()
    os.kill(pid, signal.SIGKILL)
    then()
    first = -1
    while True:
        epoch, offset = position(client, topic, partition)
        if epoch > before:
            if first < 0:
                first = offset
            elif offset > first:
                return time.monotonic() - begun
        assert time.monotonic() - begun < _TIMEOUT_S, f"partition {partition} does not go on"
        time.sleep(_POLL_S)


def kill_round(kills: int) -> list[float]:
    """One deployment, so many kills under load."""
    seconds = kills * (PAUSE_S + 2) + 10
    times = []
    with Deployment() as deployment:
        topic = deployment.settings.kafka_topic
        client = redis.Redis.from_url(deployment.settings.redis_url.get_secret_value())
        with deployment.open_ledger() as ledger, client:
            acked = Acked()
            producer = EventProducer(deployment.settings, linger_ms=LIGHT.linger_ms, on_acked=acked)
            loop = OpenLoop(deployment, producer)
            over = threading.Event()
            made = scheduled(int(LIGHT.rate_per_s * seconds), "kills", LIGHT.rate_per_s)
            load = threading.Thread(target=loop.send, args=made, kwargs={"timed": False, "stop": over})
            load.start()
            try:
                deployment.wait_processed(LIGHT.rate_per_s)
                for number in range(kills):
                    partition = number % PARTITIONS
                    pid = deployment.status()["workers"][partition]["pid"]
                    times.append(recovery_s(client, topic, partition, pid))
                    time.sleep(max(0.0, PAUSE_S - times[-1]))
            finally:
                over.set()
                load.join()
                producer.close()
            assert not producer.failed
            acked.write(ledger)
            ledger.finish(deployment.ends())
        deployment.audit(crashed=True)
    return times


def test_recovery_after_a_kill(benchmark: Any, figures: Figures) -> None:
    times: list[float] = []

    def run() -> None:
        while len(times) < KILLS:
            times.extend(kill_round(min(KILLS_PER_ROUND, KILLS - len(times))))

    benchmark.pedantic(run, rounds=1)
    ordered = sorted(times)
    p99_s = ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))]
    figures.add(
        kills=len(times),
        p50_s=round(statistics.median(times), 3),
        p99_s=round(p99_s, 3),
        max_s=round(ordered[-1], 3),
        audit="clean",
    )
    figures.bar("p99 s", p99_s, below=P99_BELOW_S)
    figures.judge()


@pytest.fixture
def kafka() -> Iterator[KafkaServer]:
    """A real one: the embedded broker does not keep that much."""
    if reason := why_not():
        pytest.skip(f"no real Kafka: {reason}")
    with KafkaServer() as server:
        yield server


def test_recovery_with_much_above_the_floor(
    benchmark: Any, figures: Figures, kafka: KafkaServer, tmp_path: Path
) -> None:
    """One user's missing seq holds the floor; it comes right after the kill, behind all the others."""
    with RedisServer() as server:
        it = OnKafka(
            broker_of(kafka),
            server,
            tmp_path,
            gap_timeout_ms=3_600_000,
            max_replay_records=2 * (FINAL + PARKED),
            max_parked=2 * PARKED,
            simulate_runs_dir="",
        )
        try:
            it.start()
            it.send(event("holder", 1), event("holder", 3))
            for start in range(0, FINAL // _SEQS, 1000):
                users = range(start, min(start + 1000, FINAL // _SEQS))
                it.send(*(event(f"f{user}", seq) for seq in range(1, _SEQS + 1) for user in users))
            for start in range(0, PARKED // _SEQS, 1000):
                users = range(start, min(start + 1000, PARKED // _SEQS))
                it.send(*(event(f"p{user}", seq) for seq in range(2, _SEQS + 2) for user in users))
            it.until(lambda: it.worker()["parked"] >= PARKED, "all is parked", 120)
            it.until(lambda: it.metric("unfinalized") <= PARKED + 1, "the others are final", 120)
            took_s = 0.0

            def kill() -> None:
                nonlocal took_s
                filling = threading.Thread(target=it.send, args=(event("holder", 2),))
                took_s = recovery_s(it.redis, it.topic, 0, it.worker_pids()[0], filling.start)
                filling.join()

            benchmark.pedantic(kill, rounds=1)
        finally:
            it.close()
    figures.add(final=FINAL, parked=PARKED, recovery_s=round(took_s, 3))
    figures.bar("recovery s", took_s, below=LOADED_BELOW_S)
    figures.judge()
