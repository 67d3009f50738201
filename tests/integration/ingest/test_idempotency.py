"""Idempotency-Key and client-chosen ids, under concurrency and when the first attempt ends badly."""

from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from eventproc.ingest.acceptance import idempotency_key
from eventproc.store.ingest import IngestStore
from tests.integration.ingest.api_server import ApiServer, event
from tests.integration.supervised import wait_for


def key_of(route: str, header: str) -> str:
    """Where Redis has it, without API keys."""
    return f"idempotency:{idempotency_key('', route, header)}"


def test_the_same_key_and_body_give_the_first_answer_again(shared_api: ApiServer, user: str) -> None:
    first = shared_api.post(event(user), Idempotency_Key=user)
    again = shared_api.post(event(user), Idempotency_Key=user)
    assert first.status == again.status == 202
    assert again.json == first.json
    assert shared_api.ids(user) == [first.json["eventId"]]
    assert 86_000_000 < shared_api.redis.pttl(key_of("/events", user)) <= 86_400_000


def test_a_batch_is_answered_again_with_every_state(shared_api: ApiServer, user: str) -> None:
    other = f"{user}-b"
    events = [event(user), {}, event(other, id=f"chosen-{user}"), *([event(user)] * 120)]
    first = shared_api.results(events, Idempotency_Key=user)
    assert Counter(result["status"] for result in first) == {
        "accepted": 101,
        "invalid": 1,
        "rate_limited": 21,
    }
    assert shared_api.results(events, Idempotency_Key=user) == first
    assert len(shared_api.ids(user, other)) == 101


def test_another_body_is_a_conflict(shared_api: ApiServer, user: str) -> None:
    shared_api.post(event(user), Idempotency_Key=user)
    answer = shared_api.post(event(user, more=1), Idempotency_Key=user)
    assert answer.status == 409
    assert "another body" in answer.error
    assert "retry-after" not in answer.headers
    assert len(shared_api.ids(user)) == 1


def test_the_key_is_of_its_route(shared_api: ApiServer, user: str) -> None:
    assert shared_api.post(event(user), Idempotency_Key=user).status == 202
    assert shared_api.batch([event(user)], Idempotency_Key=user).status == 202


def test_of_many_at_once_one_is_published(shared_api: ApiServer, user: str) -> None:
    answers = shared_api.at_once([event(user)] * 40, Idempotency_Key=user)
    statuses = Counter(answer.status for answer in answers)
    assert statuses[202] >= 1
    assert set(statuses) <= {202, 409}
    assert all(answer.headers["retry-after"] for answer in answers if answer.status == 409)
    assert len({answer.json["eventId"] for answer in answers if answer.status == 202}) == 1
    assert len(shared_api.ids(user)) == 1


def test_a_chosen_id_is_kept_however_often_it_is_sent(shared_api: ApiServer, user: str) -> None:
    """Each copy is accepted; that all of them have one effect is the worker's business."""
    answers = shared_api.at_once([event(user, id=f"{user}-1")] * 10)
    assert {answer.json["eventId"] for answer in answers} == {f"{user}-1"}
    assert shared_api.ids(user) == [f"{user}-1"] * 10


def test_what_is_refused_by_its_quota_is_not_remembered(shared_api: ApiServer, user: str) -> None:
    shared_api.results([event(user)] * 100)
    assert shared_api.post(event(user), Idempotency_Key=user).status == 429
    assert not shared_api.redis.exists(key_of("/events", user))
    shared_api.redis.delete(f"rate:{user}")
    assert shared_api.post(event(user), Idempotency_Key=user).status == 202


@pytest.mark.parametrize("key", ["", "x" * 256, "\xfc", "a\tb"])
def test_a_key_that_is_none_is_refused(shared_api: ApiServer, user: str, key: str) -> None:
    answer = shared_api.post(event(user), Idempotency_Key=key)
    assert answer.status == 400
    assert "Idempotency-Key" in answer.error
    assert shared_api.ids(user) == []


def test_the_lease_ends_by_itself(shared_api: ApiServer, user: str) -> None:
    shared_api.post(event(user), Idempotency_Key=user)
    key = key_of("/events", user)
    # what Redis would hold had the first attempt died
    shared_api.redis.hdel(key, "done", "states")
    now_s, now_us = shared_api.redis.time()
    shared_api.redis.hset(key, mapping={"token": "dead", "lease": now_s * 1000 + now_us // 1000 + 1500})
    busy = shared_api.post(event(user), Idempotency_Key=user)
    assert busy.status == 409
    assert busy.headers["retry-after"] in ("1", "2")
    wait_for(lambda: shared_api.post(event(user), Idempotency_Key=user).status == 202, 10, "the lease's end")
    assert list(Counter(shared_api.ids(user)).values()) == [2]


def test_an_attempt_that_was_overtaken_writes_nothing(shared_api: ApiServer) -> None:
    api = shared_api

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
