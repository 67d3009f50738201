"""One slow user in a thousand leaves the others' latency: 2,000 events/s of 1,000 users, async handler.

Rounds alternate: in one no event takes any time; in the next those of one user take `NAP_MS` each, so
that its events pile up behind each other. What is compared is the others' latency, from the scheduled send
time to the time in `event:<id>`, in whole milliseconds. A round has users of its own, and begins once the
one before is final.

The bar: the others' p99 beside a slow user is at most that without one and 5 ms, by the rounds' medians.
"""

from __future__ import annotations

import statistics
import time
from typing import Any

import orjson
import pytest
import redis

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from benchmarks.handlers import nap_when_told
from benchmarks.test_latency import LIGHT
from eventproc.broker.producer import EventProducer

pytestmark = pytest.mark.timeout(900)

ROUNDS = 1 if SMOKE else 5
SECONDS = 2 if SMOKE else 10
USERS = 1000
RATE_PER_S = 2000
NAP_MS = 250
MOST_MORE_MS = 5.0
_FLUSH_S = 30.0


def events(name: str, nap_ms: int) -> list[tuple[bytes, bytes]]:
    """Key and value of each, in the order in which they are sent; the first user's take `nap_ms`."""
    made = []
    for number in range(RATE_PER_S * SECONDS):
        user, seq = f"{name}-u{number % USERS}", number // USERS + 1
        payload = {"seq": seq, "nap_ms": nap_ms} if nap_ms and number % USERS == 0 else {"seq": seq}
        document = {"id": f"{name}-{number}", "userId": user, "type": "t", "payload": payload}
        made.append((user.encode(), orjson.dumps(document)))
    return made


def others_ms(deployment: Deployment, producer: EventProducer, name: str, nap_ms: int) -> list[int]:
    """Latency of each event of the users that are not slow."""
    made = events(name, nap_ms)
    done = deployment.processed()
    begun, begun_ms = time.perf_counter(), time.time_ns() // 1_000_000
    for number, (key, value) in enumerate(made):
        due_s = number / RATE_PER_S
        if (wait_s := due_s - (time.perf_counter() - begun)) > 0:
            time.sleep(max(wait_s, 0.001))
        producer.produce(key, value, [], tag=None)
        producer.poll()
    assert producer.flush(_FLUSH_S) == 0, producer.last_error
    deployment.wait_processed(done + len(made))
    with redis.Redis.from_url(deployment.settings.redis_url.get_secret_value()) as client:
        pipeline = client.pipeline(transaction=False)
        for number in range(len(made)):
            pipeline.hget(f"event:{name}-{number}", "processedAt")
        stored = pipeline.execute()
    return [
        int(at) - begun_ms - number * 1000 // RATE_PER_S
        for number, at in enumerate(stored)
        if number % USERS != 0
    ]


def quantile(values: list[list[int]], q: float) -> float:
    """The median over the rounds."""
    return statistics.median(sorted(one)[int(q * (len(one) - 1))] for one in values)


def test_slow_user(benchmark: Any, figures: Figures) -> None:
    handler = f"{nap_when_told.__module__}:{nap_when_told.__name__}"
    without: list[list[int]] = []
    beside: list[list[int]] = []
    with Deployment(handler=handler, embedded_keep_records=LIGHT.keep_records) as deployment:
        producer = EventProducer(deployment.settings, linger_ms=1)
        others_ms(deployment, producer, "warm", 0)

        def run() -> None:
            without.append(others_ms(deployment, producer, f"without{len(without)}", 0))
            beside.append(others_ms(deployment, producer, f"beside{len(beside)}", NAP_MS))

        benchmark.pedantic(run, rounds=ROUNDS)
        producer.close()
    figures.add(
        users=USERS,
        events_per_s=RATE_PER_S,
        nap_ms=NAP_MS,
        rounds=ROUNDS,
        p50_ms=quantile(without, 0.5),
        p99_ms=quantile(without, 0.99),
        p50_ms_beside=quantile(beside, 0.5),
        p99_ms_beside=quantile(beside, 0.99),
    )
    more_ms = quantile(beside, 0.99) - quantile(without, 0.99)
    figures.bar("p99 of the others, more ms beside a slow user", more_ms, most=MOST_MORE_MS)
    figures.judge()
