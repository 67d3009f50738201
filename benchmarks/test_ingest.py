"""How fast the HTTP API takes events, with the rate limit on: one API process beside everything else.

Kafka is the embedded broker. Whole way: from the first post to the last event that is final in Redis.
API alone: the workers are stopped (SIGSTOP), and the clock ends with the last answer, so with Kafka's
acknowledgement. The client shares the processors.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest

from benchmarks.conftest import Figures
from benchmarks.deployment import SMOKE, Deployment
from benchmarks.http_load import post_all, post_at_rate, prepare

pytestmark = pytest.mark.timeout(900)

USERS = 500 if SMOKE else 5000
EVENTS = 5000 if SMOKE else 50_000
BATCH = 500
CONNECTIONS = 20
SINGLES = 500 if SMOKE else 10_000
RATE_PER_S = 500
PACED = 500 if SMOKE else 10_000

WHOLE_WAY_S = 4.0
BATCHED_PER_S = 25_000
SINGLES_PER_S = 2500
P99_MS = 30.0


def events(count: int, prefix: str) -> list[dict[str, Any]]:
    """Each user's in order, users in turn."""
    return [
        {"userId": f"{prefix}{n % USERS}", "type": "bench", "payload": {"seq": n // USERS + 1, "n": n}}
        for n in range(count)
    ]


def batches(found: list[dict[str, Any]]) -> list[bytes]:
    return [
        prepare("/events/batch", {"events": found[at : at + BATCH]}) for at in range(0, len(found), BATCH)
    ]


def check(bodies: list[bytes]) -> None:
    """Every event of every batch was accepted."""
    states = {result["status"] for body in bodies for result in orjson.loads(body)["results"]}
    assert states == {"accepted"}


@pytest.fixture(scope="module")
def deployment() -> Iterator[Deployment]:
    # on a busy machine rather slow than refused
    with Deployment("--api", api_port=0, api_timeout_ms=30_000, api_access_log=False) as found:
        yield found


def url_of(deployment: Deployment) -> str:
    url: str = deployment.status()["supervisor"]["api"]["url"]
    return url


def test_whole_way(benchmark: Any, figures: Figures, deployment: Deployment) -> None:
    requests, url = batches(events(EVENTS, "w")), url_of(deployment)
    times: list[float] = []

    def run() -> None:
        begun = time.perf_counter()
        _, bodies = post_all(url, requests, CONNECTIONS)
        deployment.wait_processed(EVENTS)  # the first test: nothing was processed before
        times.append(time.perf_counter() - begun)
        check(bodies)

    benchmark.pedantic(run, rounds=1)
    figures.add(events=EVENTS, seconds=round(times[0], 2), events_per_s=round(EVENTS / times[0]))
    figures.bar("seconds", times[0], below=WHOLE_WAY_S)
    figures.judge()


def test_batches_alone(benchmark: Any, figures: Figures, deployment: Deployment) -> None:
    requests, url = batches(events(EVENTS, "b")), url_of(deployment)
    times: list[float] = []

    def run() -> None:
        elapsed_s, bodies = post_all(url, requests, CONNECTIONS)
        times.append(elapsed_s)
        check(bodies)

    with deployment.frozen():
        benchmark.pedantic(run, rounds=1)
    deployment.thaw()
    per_s = EVENTS / times[0]
    figures.add(events=EVENTS, events_per_s=round(per_s))
    figures.bar("events/s", per_s, least=BATCHED_PER_S)
    figures.judge()


def test_singles_alone(benchmark: Any, figures: Figures, deployment: Deployment) -> None:
    requests = [prepare("/events", event) for event in events(SINGLES, "s")]
    url = url_of(deployment)
    times: list[float] = []
    with deployment.frozen():
        benchmark.pedantic(lambda: times.append(post_all(url, requests, CONNECTIONS)[0]), rounds=1)
    deployment.thaw()
    per_s = SINGLES / times[0]
    figures.add(posts=SINGLES, posts_per_s=round(per_s))
    figures.bar("posts/s", per_s, least=SINGLES_PER_S)
    figures.judge()


def test_latency_of_singles(benchmark: Any, figures: Figures, deployment: Deployment) -> None:
    requests = [prepare("/events", event) for event in events(PACED, "p")]
    url = url_of(deployment)
    times: list[float] = []
    with deployment.frozen():
        post_at_rate(url, [prepare("/events", event) for event in events(100, "warm")], RATE_PER_S, 100)
        benchmark.pedantic(lambda: times.extend(post_at_rate(url, requests, RATE_PER_S, 100)), rounds=1)
    deployment.thaw()
    cuts = statistics.quantiles(times, n=100)
    figures.add(posts_per_s=RATE_PER_S, p50_ms=round(cuts[49], 1), p99_ms=round(cuts[98], 1))
    figures.bar("p99 ms", cuts[98], below=P99_MS)
    figures.judge()
