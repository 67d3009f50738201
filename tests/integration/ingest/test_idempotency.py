"""Idempotency-Key and client-chosen ids, under concurrency and when the first attempt ends badly."""

from __future__ import annotations

import signal
from collections import Counter

import pytest

from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import ApiServer, event
from tests.integration.ingest.conftest import StartApi
from tests.integration.supervised import wait_for
from tests.redis_server import RedisServer


@pytest.fixture
def api(start_api: StartApi, embedded_broker: BrokerUnderTest) -> ApiServer:
    return start_api(embedded_broker, rate_window_ms=60_000)


def key_of(api: ApiServer) -> str:
    (found,) = api.redis.keys("idempotency:*")
    return str(found)


def test_the_same_key_and_body_give_the_first_answer_again(api: ApiServer) -> None:
    first = api.post(event(), Idempotency_Key="k")
    again = api.post(event(), Idempotency_Key="k")
    assert first.status == again.status == 202
    assert again.json == first.json
    assert api.ids() == [first.json["eventId"]]
    assert 86_000_000 < api.redis.pttl(key_of(api)) <= 86_400_000


def test_a_batch_is_answered_again_with_every_state(api: ApiServer) -> None:
    events = [event("a"), {}, event("b", id="chosen"), *([event("a")] * 120)]
    first = api.results(events, Idempotency_Key="k")
    assert Counter(result["status"] for result in first) == {
        "accepted": 101,
        "invalid": 1,
        "rate_limited": 21,
    }
    assert api.results(events, Idempotency_Key="k") == first
    assert len(api.ids()) == 101


def test_another_body_is_a_conflict(api: ApiServer) -> None:
    api.post(event(), Idempotency_Key="k")
    answer = api.post(event("other"), Idempotency_Key="k")
    assert answer.status == 409
    assert "another body" in answer.error
    assert "retry-after" not in answer.headers
    assert len(api.ids()) == 1


def test_the_key_is_of_its_route(api: ApiServer) -> None:
    assert api.post(event(), Idempotency_Key="k").status == 202
    assert api.batch([event()], Idempotency_Key="k").status == 202


def test_of_many_at_once_one_is_published(api: ApiServer) -> None:
    answers = api.at_once([event()] * 40, Idempotency_Key="k")
    statuses = Counter(answer.status for answer in answers)
    assert statuses[202] >= 1
    assert set(statuses) <= {202, 409}
    assert all(answer.headers["retry-after"] for answer in answers if answer.status == 409)
    assert len({answer.json["eventId"] for answer in answers if answer.status == 202}) == 1
    assert len(api.ids()) == 1


def test_what_is_refused_by_its_quota_is_not_remembered(api: ApiServer) -> None:
    api.results([event()] * 100)
    assert api.post(event(), Idempotency_Key="k").status == 429
    assert api.redis.keys("idempotency:*") == []
    api.redis.delete("rate:u")
    assert api.post(event(), Idempotency_Key="k").status == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "\xfc", "a\tb"])
def test_a_key_that_is_none_is_refused(api: ApiServer, key: str) -> None:
    answer = api.post(event(), Idempotency_Key=key)
    assert answer.status == 400
    assert "Idempotency-Key" in answer.error
    assert api.ids() == []


def test_the_api_killed_between_produce_and_answer_publishes_the_same_ids_again(
    start_api: StartApi, embedded_broker: BrokerUnderTest, redis_server: RedisServer
) -> None:
    api = start_api(embedded_broker, api_timeout_ms=500)
    first = api.results([event("a"), event("b")], Idempotency_Key="k")
    ids = [result["eventId"] for result in first]
    key = key_of(api)
    # what Redis holds while the first attempt waits for Kafka
    api.redis.hdel(key, "done", "states")
    api.redis.hset(key, mapping={"token": "dead", "lease": 2**53})
    busy = api.batch([event("a"), event("b")], Idempotency_Key="k")
    assert (busy.status, busy.error) == (409, "the first request with this Idempotency-Key is under way")
    assert int(busy.headers["retry-after"]) >= 1
    api.signal(signal.SIGKILL)
    api.ends()
    api.redis.hset(key, "lease", 1)
    api.start()
    assert api.results([event("a"), event("b")], Idempotency_Key="k") == first
    assert Counter(api.ids()) == dict.fromkeys(ids, 2)
    assert api.results([event("a"), event("b")], Idempotency_Key="k") == first
    assert Counter(api.ids()) == dict.fromkeys(ids, 2)


def test_the_lease_ends_by_itself(start_api: StartApi, embedded_broker: BrokerUnderTest) -> None:
    api = start_api(embedded_broker, api_timeout_ms=100)
    api.post(event(), Idempotency_Key="k")
    key = key_of(api)
    api.redis.hdel(key, "done", "states")
    now_s, now_us = api.redis.time()
    api.redis.hset(key, mapping={"token": "dead", "lease": now_s * 1000 + now_us // 1000 + 1500})
    busy = api.post(event(), Idempotency_Key="k")
    assert busy.status == 409
    assert busy.headers["retry-after"] in ("1", "2")
    wait_for(lambda: api.post(event(), Idempotency_Key="k").status == 202, 10, "the lease's end")
    assert list(Counter(api.ids()).values()) == [2]


def test_an_attempt_that_was_overtaken_writes_nothing(api: ApiServer, redis_server: RedisServer) -> None:
    import asyncio

    from eventproc.store.ingest import IngestStore

    async def main() -> None:
        store = IngestStore(api.settings, 5000)
        first = await store.claim_key("x", "body", "one", 1, ["i1", ""])
        assert first.status == "new"
        api.redis.hset("idempotency:x", "lease", 1)
        second = await store.claim_key("x", "body", "two", 60_000, ["j1", ""])
        assert (second.status, second.ids, second.states) == ("again", ["i1", ""], "")
        assert not await store.settle_key("x", "one", "done", "ai")
        assert (await store.claim_key("x", "body", "three", 1, [])).status == "busy"
        assert await store.settle_key("x", "two", "open", "fi")
        assert (await store.claim_key("x", "body", "four", 60_000, [])).states == "fi"
        assert await store.settle_key("x", "four", "done", "ai")
        done = await store.claim_key("x", "body", "five", 1, [])
        assert (done.status, done.ids, done.states) == ("done", ["i1", ""], "ai")
        await store.close()

    asyncio.run(main())
