"""Rate limits over HTTP, and the script alone: exact, by Redis's clock, gone by themselves."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eventproc.settings import Settings
from eventproc.store.ingest import Allowance, Charge, IngestStore
from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import ApiServer, event
from tests.integration.ingest.conftest import WINDOW_MS, StartApi
from tests.integration.supervised import wait_for
from tests.redis_server import RedisServer


class TestOverHttp:
    def test_of_150_single_posts_at_once_100_are_accepted(self, shared_api: ApiServer, user: str) -> None:
        answers = shared_api.at_once([event(user)] * 150)
        assert sorted(answer.status for answer in answers) == [202] * 100 + [429] * 50
        assert shared_api.redis.zcard(f"rate:{user}") == 100
        assert len(shared_api.ids(user)) == 100

    def test_of_a_batch_of_150_the_first_100_are_accepted(self, shared_api: ApiServer, user: str) -> None:
        ids = [f"{user}-{n}" for n in range(150)]
        results = shared_api.results([event(user, id=id) for id in ids])
        assert [result["status"] for result in results] == ["accepted"] * 100 + ["rate_limited"] * 50
        assert [result["eventId"] for result in results] == ids
        assert shared_api.ids(user) == ids[:100]

    def test_80_and_40_more_half_a_window_later_are_20_of_these(
        self, shared_api: ApiServer, user: str
    ) -> None:
        assert {result["status"] for result in shared_api.results([event(user)] * 80)} == {"accepted"}
        age(shared_api.redis, f"rate:{user}", WINDOW_MS * 500)
        results = shared_api.results([event(user)] * 40)
        assert [result["status"] for result in results] == ["accepted"] * 20 + ["rate_limited"] * 20
        assert len(shared_api.ids(user)) == 100

    def test_two_processes_keep_one_limit(
        self,
        shared_api: ApiServer,
        user: str,
        embedded_broker: BrokerUnderTest,
        tmp_path: Path,
    ) -> None:
        settings = shared_api.settings
        other = ApiServer(
            embedded_broker,
            shared_api.server,
            tmp_path,
            kafka_topic=settings.kafka_topic,
            rate_window_ms=settings.rate_window_ms,
            api_timeout_ms=settings.api_timeout_ms,
        )
        try:
            other.start()
            with ThreadPoolExecutor(2) as pool:
                apis = (shared_api, other)
                answers = pool.map(lambda api: api.at_once([event(user)] * 75), apis)
                statuses = [answer.status for found in answers for answer in found]
        finally:
            other.close()
        assert sorted(statuses) == [202] * 100 + [429] * 50
        assert len(shared_api.ids(user)) == 100

    def test_each_user_has_a_quota_of_its_own(self, shared_api: ApiServer, user: str) -> None:
        events = [event(f"{user}-{name}") for _ in range(150) for name in "abc"]
        results = shared_api.results(events)
        for offset in range(3):
            statuses = [result["status"] for result in results[offset::3]]
            assert statuses == ["accepted"] * 100 + ["rate_limited"] * 50

    def test_an_invalid_event_uses_no_quota(self, shared_api: ApiServer, user: str) -> None:
        shared_api.results([event(user, payload=7)] * 100)
        assert not shared_api.redis.exists(f"rate:{user}")

    def test_a_refusal_tells_when_there_is_room_again(self, shared_api: ApiServer, user: str) -> None:
        shared_api.results([event(user)] * 100)
        ((_, first_us),) = shared_api.redis.zrange(f"rate:{user}", 0, 0, withscores=True)
        answer = shared_api.post(event(user))
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

    def test_a_key_of_the_wrong_type_fails_its_user_alone(self, shared_api: ApiServer, user: str) -> None:
        shared_api.redis.set(f"rate:{user}", "mine")
        first, second = shared_api.results([event(user), event(f"{user}-b")])
        assert (first["status"], second["status"]) == ("failed", "accepted")
        assert shared_api.post(event(user)).status == 503


def age(client: Any, key: str, by_us: int) -> None:
    """As if all that is in the log had happened so much earlier."""
    for member, score in client.zrange(key, 0, -1, withscores=True):
        client.zadd(key, {member: score - by_us})


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
        age(self.client, key, by_us)


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
