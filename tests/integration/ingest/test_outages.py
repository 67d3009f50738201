"""Nothing is promised too early: servers that go away or stand still, full queues, ends at a bad moment."""

from __future__ import annotations

import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any

import pytest

from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import Answer, ApiServer, event
from tests.integration.ingest.conftest import OwnBroker, StartApi
from tests.integration.supervised import wait_for
from tests.kafka_server import KafkaServer
from tests.redis_server import RedisServer

#: Within which Redis or Kafka that is away is told, by a machine that has nothing else to do ...
SOON_S = 2.0
#: ... and what one that is loaded may add.
LOAD_S = 2.0


def timed(call: Callable[[], Answer]) -> Answer:
    """The answer, which must have come in time."""
    begun = time.monotonic()
    answer = call()
    elapsed = time.monotonic() - begun
    assert elapsed < SOON_S + LOAD_S, f"{answer} took {elapsed:.2f} s"
    return answer


def is_refused(api: ApiServer, word: str) -> None:
    """Once it is noticed, both routes answer 503 in time, and readiness says why; the process lives."""
    wait_for(lambda: api.get("/ready").status == 503, 10, "readiness to tell")
    for answer in (timed(lambda: api.post(event())), timed(lambda: api.batch([event()]))):
        assert answer.status == 503, answer
        assert int(answer.headers["retry-after"]) >= 1
        assert word in answer.error
    ready = timed(lambda: api.get("/ready"))
    assert ready.status == 503
    assert word in ready.json["reason"]
    assert api.get("/health").status == 200


def recovers(api: ApiServer) -> None:
    """By itself, without a restart."""
    wait_for(lambda: api.get("/ready").status == 200, 30, "readiness")
    wait_for(lambda: api.post(event("recovered")).status == 202, 30, "an accepted event")
    assert api.batch([event()]).status == 202


# --- Redis ------------------------------------------------------------------------------------------


def test_redis_stands_still_and_goes_on(
    start_api: StartApi, embedded_broker: BrokerUnderTest, redis_server: RedisServer
) -> None:
    api = start_api(embedded_broker)
    redis_server.freeze()
    try:
        first = timed(lambda: api.post(event()))  # nobody has noticed yet
        assert (first.status, "Redis" in first.error) == (503, True)
        is_refused(api, "Redis")
        assert api.metric("redis_up") == 0
    finally:
        redis_server.thaw()
    recovers(api)


def test_redis_dies_and_comes_back(
    start_api: StartApi, embedded_broker: BrokerUnderTest, redis_server: RedisServer
) -> None:
    api = start_api(embedded_broker)
    redis_server.kill()
    is_refused(api, "Redis")
    redis_server.start()
    recovers(api)


def test_redis_forgets_its_scripts(shared_api: ApiServer, user: str) -> None:
    for _ in range(3):
        shared_api.redis.script_flush()
        assert shared_api.post(event(user), Idempotency_Key=user).status == 202


def test_redis_refuses_writes(
    start_api: StartApi, embedded_broker: BrokerUnderTest, redis_server: RedisServer
) -> None:
    api = start_api(embedded_broker)
    api.redis.config_set("maxmemory", 1)
    for answer in (api.post(event()), api.batch([event()])):
        assert (answer.status, "Redis is away" in answer.error) == (503, True), answer
    api.redis.config_set("maxmemory", 0)
    recovers(api)
    assert len(api.ids()) == 2


# --- Kafka ------------------------------------------------------------------------------------------


def test_kafka_stands_still_and_goes_on(start_api: StartApi, own_broker: OwnBroker) -> None:
    api = start_api(own_broker.under_test)
    batch = [event(id="a"), {}, event(id="b")]
    own_broker.freeze()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(timed, lambda: api.post(event(id="mine")))
        many = pool.submit(timed, lambda: api.batch(batch, Idempotency_Key="k"))
        answer = one.result()
        assert (answer.status, answer.json["eventId"]) == (503, "mine")
        assert "not acknowledged" in answer.error
        states = [(result["eventId"], result["status"]) for result in many.result().json["results"]]
        assert states == [("a", "failed"), (None, "invalid"), ("b", "failed")]
        assert "not acknowledged" in many.result().json["results"][0]["error"]
    is_refused(api, "Kafka")
    assert api.metric("kafka_up") == 0
    own_broker.thaw()
    recovers(api)
    assert api.post(event(id="mine")).status == 202
    again = api.results(batch, Idempotency_Key="k")
    assert [result["status"] for result in again] == ["accepted", "invalid", "accepted"]
    counts = [api.ids().count(id) for id in ("a", "b", "mine")]
    assert all(1 <= count <= 2 for count in counts), counts


@pytest.mark.xdist_group("ingest_kafka")
def test_a_real_kafka_dies_between_produce_and_acknowledgement(
    start_api: StartApi, kafka_broker: BrokerUnderTest, kafka_server: KafkaServer
) -> None:
    api = start_api(kafka_broker)
    events = [event(id="a"), event(id="b")]
    kafka_server.pause()
    try:
        answer = timed(lambda: api.batch(events, Idempotency_Key="k"))
        assert [result["status"] for result in answer.json["results"]] == ["failed"] * 2
    finally:
        kafka_server.kill()
    is_refused(api, "Kafka")
    kafka_server.start()
    recovers(api)
    assert [result["status"] for result in api.results(events, Idempotency_Key="k")] == ["accepted"] * 2
    counts = [api.ids().count(id) for id in ("a", "b")]
    assert all(1 <= count <= 2 for count in counts), counts


def test_exactly_the_events_that_kafka_refuses_have_failed(
    start_api: StartApi, embedded_broker: BrokerUnderTest
) -> None:
    api = start_api(
        embedded_broker, kafka_config={**embedded_broker.kafka_config, "message.max.bytes": "2000"}
    )
    large = event(id="large", payload={"x": "y" * 3000})
    results = api.results([event(id="a"), large, event(id="b")], Idempotency_Key="k")
    assert [result["status"] for result in results] == ["accepted", "failed", "accepted"]
    answer = api.post(large)
    assert (answer.status, answer.json["eventId"]) == (503, "large")
    # what was acknowledged is not published again
    assert api.results([event(id="a"), large, event(id="b")], Idempotency_Key="k") == results
    assert sorted(api.ids()) == ["a", "b"]


def test_a_full_queue_is_refused_before_anything_is_produced(
    start_api: StartApi, own_broker: OwnBroker
) -> None:
    config = {**own_broker.under_test.kafka_config, "queue.buffering.max.messages": "10"}
    api = start_api(own_broker.under_test, kafka_config=config, api_timeout_ms=20_000)
    own_broker.freeze()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.batch, [event(id=f"first-{n}") for n in range(10)])
        wait_for(lambda: api.metric("queued") >= 10, 5, "a full queue")
        answer = api.post(event(id="second"))
        assert (answer.status, answer.error) == (503, "the local queue is full")
        assert int(answer.headers["retry-after"]) >= 1
        own_broker.thaw()
        assert waiting.result().status == 202
    recovers(api)
    assert "second" not in api.ids()
    assert api.redis.zcard("rate:u") <= 12, "what was refused used no quota"


# --- who hangs up, and the end ----------------------------------------------------------------------


def test_the_event_of_a_client_that_hangs_up_is_not_lost(shared_api: ApiServer, user: str) -> None:
    body = json.dumps(event(user, id="mine")).encode()
    with shared_api.connect() as sock:
        sock.sendall(b"POST /events HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
    wait_for(lambda: shared_api.ids(user) == ["mine"], 10, "the event")
    assert shared_api.post(event(user)).status == 202


def test_the_api_killed_between_produce_and_answer_publishes_the_same_ids_again(
    start_api: StartApi, own_broker: OwnBroker
) -> None:
    api = start_api(own_broker.under_test, api_timeout_ms=20_000)
    events = [event("a"), event("b")]
    own_broker.freeze()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(api.batch, events, Idempotency_Key="k")
        wait_for(lambda: api.metric("queued") == 2, 10, "both events in Kafka's queue")
        api.signal(signal.SIGKILL)
        api.ends()
        assert isinstance(waiting.exception(), (OSError, HTTPException))
    own_broker.thaw()
    (key,) = api.redis.keys("idempotency:*")
    ids = api.redis.hget(key, "ids").split("\n")
    api.start()
    busy = api.batch(events, Idempotency_Key="k")
    assert (busy.status, busy.error) == (409, "the first request with this Idempotency-Key is under way")
    assert int(busy.headers["retry-after"]) >= 1
    api.redis.hset(key, "lease", 1)  # its end is waited for elsewhere
    for _ in range(2):
        results = api.results(events, Idempotency_Key="k")
        assert results == [{"eventId": id, "status": "accepted"} for id in ids]
    counts = Counter(api.ids())
    assert counts.keys() == set(ids)
    assert all(count <= 2 for count in counts.values()), counts


def test_a_drain_answers_what_is_under_way_and_flushes(start_api: StartApi, own_broker: OwnBroker) -> None:
    api = start_api(own_broker.under_test, api_timeout_ms=20_000)
    own_broker.freeze()
    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(api.post, event(id="one"))
        many = pool.submit(api.batch, [event(id=f"m{n}") for n in range(5)])
        wait_for(lambda: api.metric("queued") >= 6, 5, "both requests in Kafka's queue")
        api.signal(signal.SIGTERM)
        wait_for(lambda: not listens(api), 5, "no new connections")
        own_broker.thaw()
        assert one.result().status == 202
        assert [result["status"] for result in many.result().json["results"]] == ["accepted"] * 5
    assert api.ends() == 0
    assert sorted(api.ids()) == ["m0", "m1", "m2", "m3", "m4", "one"]
    assert "not acknowledged at the end" not in api.log()


def test_an_idle_connection_does_not_hold_up_the_end(
    start_api: StartApi, embedded_broker: BrokerUnderTest
) -> None:
    api = start_api(embedded_broker)
    with api.connect() as idle, api.connect() as half:
        idle.sendall(b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n")
        assert idle.recv(65536).startswith(b"HTTP/1.1 200")
        half.sendall(b"POST /events HTTP/1.1\r\n")
        assert api.stop() == 0


def listens(api: ApiServer) -> bool:
    try:
        api.connect().close()
    except OSError:
        return False
    return True


# --- backpressure -----------------------------------------------------------------------------------


def test_too_many_records_that_are_not_final_are_refused_until_they_are_fewer(
    start_api: StartApi, embedded_broker: BrokerUnderTest
) -> None:
    api = start_api(embedded_broker, max_lag=10)
    assert [result["status"] for result in api.results([event(f"u{n}") for n in range(10)])] == [
        "accepted"
    ] * 10
    wait_for(lambda: api.get("/ready").status == 503, 10, "the backlog to be seen")
    assert api.get("/ready").json["backlog"] == 10
    is_refused(api, "max_lag is 10")
    with_workers(api, unfinalized=4)
    wait_for(lambda: api.get("/ready").json["backlog"] == 8, 10, "the workers' word")
    assert api.batch([event()]).status == 202
    with_workers(api, unfinalized=5, rev=2)
    wait_for(lambda: api.post(event()).status == 503, 10, "too many again")
    with_workers(api, unfinalized=0, rev=3)
    recovers(api)


def with_workers(api: ApiServer, **fields: Any) -> None:
    """What workers of both partitions would write."""
    now_s, _ = api.redis.time()
    for number in range(2):
        key = f"partition:{api.settings.kafka_topic}:{number}"
        api.redis.hset(key, mapping={"offset": 0, "rev": 1, "seen_ms": now_s * 1000 + 60_000, **fields})
