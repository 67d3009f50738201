"""Rate limits over HTTP, and the script alone: exact, by Redis's clock, gone by themselves."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from eventproc.settings import Settings
from eventproc.store.ingest import Allowance, Charge, IngestStore
from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import ApiServer, event
from tests.integration.ingest.conftest import StartApi
from tests.integration.supervised import wait_for
from tests.redis_server import RedisServer

WINDOW_MS = 60_000  # so long that a slow machine does not let anything leave it


@pytest.fixture
def slow_window(start_api: StartApi, embedded_broker: BrokerUnderTest) -> ApiServer:
    return start_api(embedded_broker, rate_window_ms=WINDOW_MS)


class TestOverHttp:
    def test_of_150_single_posts_at_once_100_are_accepted(self, slow_window: ApiServer) -> None:
        answers = slow_window.at_once([event("a")] * 150)
        assert sorted(answer.status for answer in answers) == [202] * 100 + [429] * 50
        assert slow_window.redis.zcard("rate:a") == 100
        assert len(slow_window.records()) == 100

    def test_of_a_batch_of_150_the_first_100_are_accepted(self, slow_window: ApiServer) -> None:
        results = slow_window.results([event("a", id=f"e{n}") for n in range(150)])
        assert [result["status"] for result in results] == ["accepted"] * 100 + ["rate_limited"] * 50
        assert [result["eventId"] for result in results] == [f"e{n}" for n in range(150)]
        assert sorted(slow_window.ids()) == sorted(f"e{n}" for n in range(100))

    def test_each_user_has_a_quota_of_its_own(self, slow_window: ApiServer) -> None:
        events = [event(user) for _ in range(150) for user in ("a", "b", "c")]
        results = slow_window.results(events)
        for offset in range(3):
            statuses = [result["status"] for result in results[offset::3]]
            assert statuses == ["accepted"] * 100 + ["rate_limited"] * 50

    def test_an_invalid_event_uses_no_quota(self, slow_window: ApiServer) -> None:
        slow_window.results([event("a", payload=7)] * 100)
        assert slow_window.redis.keys("rate:*") == []

    def test_a_refusal_tells_when_there_is_room_again(self, slow_window: ApiServer) -> None:
        slow_window.results([event("a")] * 100)
        ((_, first_us),) = slow_window.redis.zrange("rate:a", 0, 0, withscores=True)
        answer = slow_window.post(event("a"))
        assert answer.status == 429
        assert answer.json == {
            "error": "rate limit exceeded",
            "remaining": 0,
            "resetAt": -(-int(first_us) // 1000) + WINDOW_MS,
        }
        assert WINDOW_MS // 1000 - 10 < int(answer.headers["retry-after"]) <= WINDOW_MS // 1000

    def test_who_waits_until_then_is_accepted(
        self, start_api: StartApi, embedded_broker: BrokerUnderTest
    ) -> None:
        api = start_api(embedded_broker, rate_limit_per_user=1, rate_window_ms=700)
        assert api.post(event("a")).status == 202
        reset_ms = api.post(event("a")).json["resetAt"]
        wait_for(lambda: time.time() * 1000 > reset_ms, told="the window's end")
        assert api.post(event("a")).status == 202
        wait_for(lambda: not api.redis.keys("rate:*"), 5, "the key's end")

    def test_addresses_are_limited_when_it_is_asked_for(
        self, start_api: StartApi, embedded_broker: BrokerUnderTest
    ) -> None:
        api = start_api(embedded_broker, rate_limit_per_ip=3, trusted_proxies=1, rate_window_ms=WINDOW_MS)
        for spoofed in ("5.5.5.5", "6.6.6.6", "7.7.7.7"):
            assert api.post(event(spoofed), X_Forwarded_For=f"{spoofed}, 1.1.1.1").status == 202
        refused = api.post(event("x"), X_Forwarded_For="8.8.8.8, 1.1.1.1")
        assert refused.status == 429
        assert api.post(event("x"), X_Forwarded_For="1.1.1.1, 2.2.2.2").status == 202
        assert sorted(api.redis.keys("rate:ip:*")) == ["rate:ip:1.1.1.1", "rate:ip:2.2.2.2"]
        assert api.redis.zcard("rate:x") == 1, "what the address's limit refused used the user's quota"

    def test_without_trusted_proxies_the_header_is_nothing(
        self, start_api: StartApi, embedded_broker: BrokerUnderTest
    ) -> None:
        api = start_api(embedded_broker, rate_limit_per_ip=2, rate_window_ms=WINDOW_MS)
        statuses = [api.post(event("a"), X_Forwarded_For=f"1.1.1.{n}").status for n in range(3)]
        assert statuses == [202, 202, 429]

    def test_a_key_of_the_wrong_type_fails_its_user_alone(self, slow_window: ApiServer) -> None:
        slow_window.redis.set("rate:a", "mine")
        first, second = slow_window.results([event("a"), event("b")])
        assert (first["status"], second["status"]) == ("failed", "accepted")
        assert slow_window.post(event("a")).status == 503


class Log:
    """The script alone, through the store."""

    def __init__(self, server: RedisServer, **settings: Any) -> None:
        self.client: Any = server.client()
        self.settings = Settings.model_validate({"redis_url": server.url, **settings})

    def take(self, *charges: tuple[str, str, int]) -> list[Allowance]:
        async def main() -> list[Allowance]:
            store = IngestStore(self.settings, 5000)
            try:
                return await store.rate_limit([Charge(*charge) for charge in charges])
            finally:
                await store.close()

        return asyncio.run(main())

    def age(self, key: str, by_us: int) -> None:
        """As if all that is in the log had happened so much earlier."""
        for member, score in self.client.zrange(key, 0, -1, withscores=True):
            self.client.zadd(key, {member: score - by_us})


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with RedisServer() as found:
        yield found


@pytest.fixture
def log(server: RedisServer) -> Log:
    server.client().flushall()
    return Log(server, rate_limit_per_ip=150, rate_window_ms=WINDOW_MS)


class TestScript:
    def test_the_window_slides(self, log: Log) -> None:
        """80, and 40 more half a window later: 20 of them; once the 80 have left, 80 more, not 100."""
        half_us = WINDOW_MS * 500
        assert log.take(("a", "", 80))[0].events == 80
        log.age("rate:a", half_us)
        assert log.take(("a", "", 40))[0].events == 20
        assert log.take(("a", "", 1))[0].events == 0
        log.age("rate:a", half_us)
        assert log.take(("a", "", 100))[0].events == 80
        assert log.client.zcard("rate:a") == 100

    def test_an_event_counts_to_the_end_of_its_window_and_no_longer(self, log: Log) -> None:
        log.take(("a", "", 100))
        log.age("rate:a", WINDOW_MS * 1000 - 2_000_000)
        assert log.take(("a", "", 1))[0].events == 0
        log.age("rate:a", 2_000_000)
        assert log.take(("a", "", 1))[0].events == 1

    def test_more_than_the_limit_in_one_charge_is_accepted_in_part(self, log: Log) -> None:
        (allowed,) = log.take(("a", "", 1000))
        assert allowed.events == 100
        assert WINDOW_MS - 1 <= allowed.again_ms - allowed.now_ms <= WINDOW_MS + 1

    def test_many_users_in_one_call(self, log: Log) -> None:
        allowed = log.take(*((f"u{n}", "", 1) for n in range(1000)))
        assert [allowance.events for allowance in allowed] == [1] * 1000
        assert log.client.dbsize() == 1000

    def test_the_same_user_several_times_in_one_call(self, log: Log) -> None:
        allowed = log.take(("a", "", 60), ("b", "", 1), ("a", "", 60), ("a", "", 1))
        assert [allowance.events for allowance in allowed] == [60, 1, 40, 0]

    def test_user_and_address_must_both_have_room(self, log: Log) -> None:
        allowed = log.take(("a", "i", 120), ("b", "i", 60), ("b", "j", 60))
        assert [allowance.events for allowance in allowed] == [100, 50, 50]
        sizes = {key: log.client.zcard(f"rate:{key}") for key in ("a", "b", "ip:i", "ip:j")}
        assert sizes == {"a": 100, "b": 100, "ip:i": 150, "ip:j": 50}

    def test_keys_end_with_the_window(self, log: Log) -> None:
        log.take(("a", "i", 1))
        for key in ("rate:a", "rate:ip:i"):
            assert WINDOW_MS - 5000 < log.client.pttl(key) <= WINDOW_MS + 2

    def test_a_log_never_holds_more_than_its_limit(self, log: Log) -> None:
        for count in itertools.chain([3, 7] * 20, [50]):
            log.take(("a", "", count))
            log.age("rate:a", WINDOW_MS * 100)
            assert log.client.zcard("rate:a") <= 100
