"""The way of events through quota, key and Kafka, when Redis or Kafka is slow or refuses."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine, Sequence
from typing import Any, cast

import pytest

from eventproc.broker.publisher import Outgoing
from eventproc.clock import SystemClock
from eventproc.errors import Transient
from eventproc.ingest.acceptance import Acceptance, Sender
from eventproc.ingest.bodies import discard
from eventproc.ingest.events import EventReader, Posted
from eventproc.ingest.ids import IdMaker
from eventproc.ingest.limiter import RateLimiter
from eventproc.ingest.refusal import Refusal
from eventproc.ingest.watch import Watch
from eventproc.settings import Settings
from eventproc.store.ingest import Allowance, Charge, IngestStore, KeyClaim

BODY = b'{"userId": "u", "type": "t"}'
KEYED = Sender("", "key")
TIMEOUT_MS = 300
#: For all that may not take for ever; far beyond what it takes.
PATIENCE_S = 10


class World:
    """Redis and Kafka as the acceptance sees them; what hangs never answers."""

    def __init__(self) -> None:
        self.hangs: set[str] = set()
        self.claim = KeyClaim("new", [], "", 0)
        self.allowed = 1000
        self.fates: dict[int, str] = {}
        self.error: Exception | None = None
        self.reserved = 0
        self.settled: list[tuple[str, str]] = []
        self.produced: list[Outgoing] = []
        settings = Settings(api_timeout_ms=TIMEOUT_MS)
        clock = SystemClock()
        self.reader = EventReader(settings, clock, IdMaker(clock))
        tokens = itertools.count()
        self._acceptance = Acceptance(
            settings,
            cast(IngestStore, self),
            RateLimiter(settings, self),
            self,
            cast(Watch, self),
            self.reader,
            clock,
            lambda: str(next(tokens)),
        )

    async def _answer(self, name: str) -> None:
        if name in self.hangs:
            await asyncio.Event().wait()

    def check(self) -> None:
        pass

    async def claim_key(self, *_: object) -> KeyClaim:
        await self._answer("claim")
        return self.claim

    async def settle_key(self, _key: str, _token: str, how: str, states: str) -> bool:
        await self._answer("settle")
        self.settled.append((how, states))
        return True

    async def rate_limit(self, charges: Sequence[Charge]) -> list[Allowance]:
        await self._answer("quota")
        if self.error is not None:
            raise self.error
        return [Allowance(min(charge.events, self.allowed), 7000, 5000) for charge in charges]

    def reserve(self, records: int) -> bool:
        self.reserved += records
        return True

    def release(self, records: int) -> None:
        self.reserved -= records

    async def publish(self, records: Sequence[Outgoing], timeout_s: float) -> list[str]:
        assert timeout_s <= TIMEOUT_MS / 1000
        self.produced += records
        while "kafka" in self.hangs:
            await asyncio.sleep(0.001)
        return [self.fates.get(index, "") for index in range(len(records))]

    def one(self, sender: Sender = KEYED) -> Posted:
        event = self.reader.read_one(BODY)
        self._wait(self._acceptance.take([event], BODY, sender, True))
        return event

    def many(self, count: int, sender: Sender = KEYED) -> list[str]:
        body = b'{"events": [%s]}' % b",".join([BODY] * count)
        events = self.reader.read_batch(body)
        self._wait(self._acceptance.take(events, body, sender, False))
        return [event.state for event in events]

    def before_kafka_answers(self, event: Posted) -> str:
        """The event's state once it is produced and everybody but Kafka has had the time to go on."""

        async def look() -> str:
            self.hangs.add("kafka")
            taking = asyncio.create_task(self._acceptance.take([event], BODY, KEYED, True))
            while not self.produced:
                await asyncio.sleep(0.001)
            await asyncio.wait({taking}, timeout=TIMEOUT_MS / 10_000)
            seen = event.state
            assert not taking.done()
            assert self.settled == []
            self.hangs.clear()
            await taking
            return seen

        return asyncio.run(asyncio.wait_for(look(), PATIENCE_S))

    def _wait(self, taking: Coroutine[Any, Any, None]) -> None:
        try:
            asyncio.run(asyncio.wait_for(taking, PATIENCE_S))
        finally:
            assert self.reserved == 0


def _names(hangs: set[str]) -> str:
    return " and ".join(sorted(hangs))


@pytest.mark.parametrize(
    "hangs", [{"claim"}, {"quota"}, {"claim", "settle"}, {"quota", "settle"}], ids=_names
)
def test_a_redis_that_does_not_answer_refuses_the_request_and_nothing_is_produced(hangs: set[str]) -> None:
    world = World()
    world.hangs = hangs
    with pytest.raises(Refusal, match="Redis is away") as refused:
        world.one()
    assert (refused.value.status, refused.value.retry_after_s) == (503, 1)
    assert world.produced == []
    assert world.settled == ([("drop", "f")] if hangs == {"quota"} else [])


def test_nobody_is_answered_before_kafka_has_acknowledged() -> None:
    world = World()
    event = world.reader.read_one(BODY)
    assert world.before_kafka_answers(event) == ""
    assert event.state == "accepted"
    assert world.settled == [("done", "a")]


def test_what_was_acknowledged_is_accepted_though_redis_cannot_be_told_of_it() -> None:
    world = World()
    world.hangs = {"settle"}
    assert world.one().state == "accepted"
    assert len(world.produced) == 1


def test_an_error_of_redis_after_the_claim_gives_the_key_back() -> None:
    world = World()
    world.error = Transient("no")
    with pytest.raises(Refusal):
        world.one()
    assert world.settled == [("drop", "f")]


def test_a_single_event_that_kafka_does_not_acknowledge_leaves_its_key_open() -> None:
    world = World()
    world.fates = {0: "timed out"}
    with pytest.raises(Refusal, match="not acknowledged: timed out") as refused:
        world.one()
    assert refused.value.status == 503
    assert refused.value.body()["eventId"]
    assert world.settled == [("open", "f")]


def test_of_a_batch_exactly_those_have_failed_that_kafka_names() -> None:
    world = World()
    world.fates = {1: "too large", 3: "timed out"}
    world.allowed = 5
    assert world.many(6) == ["accepted", "failed", "accepted", "failed", "accepted", "rate_limited"]
    assert world.settled == [("open", "afafar")]


def test_the_next_attempt_publishes_what_is_not_acknowledged_alone_under_the_first_ids() -> None:
    world = World()
    world.claim = KeyClaim("again", ["one", "two", "three"], "afa", 0)
    assert world.many(3) == ["accepted"] * 3
    assert [dict(record.headers)["event-id"] for record in world.produced] == [b"two"]
    assert world.settled == [("done", "aaa")]


def test_a_refused_single_tells_when_there_is_room_and_its_key_is_forgotten() -> None:
    world = World()
    world.allowed = 0
    with pytest.raises(Refusal) as refused:
        world.one()
    assert refused.value.body() == {"error": "rate limit exceeded", "remaining": 0, "resetAt": 7000}
    assert refused.value.retry_after_s == 2
    assert world.settled == [("drop", "r")]


def test_one_who_trickles_a_refused_body_is_not_listened_to_for_ever() -> None:
    async def trickle() -> dict[str, Any]:
        await asyncio.sleep(0.01)
        return {"type": "http.request", "body": b"x", "more_body": True}

    asyncio.run(asyncio.wait_for(discard({"headers": []}, trickle), PATIENCE_S))


def test_a_cancellation_that_meets_the_next_part_of_a_refused_body_is_not_lost() -> None:
    taken = 0
    reading: list[asyncio.Future[None]] = []

    async def receive() -> dict[str, Any]:
        nonlocal taken
        taken += 1
        if taken == 2:
            asyncio.get_running_loop().call_soon(reading[0].cancel)
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x", "more_body": taken < 100}

    async def read() -> None:
        reading.append(asyncio.ensure_future(discard({"headers": []}, receive)))
        await asyncio.wait(reading)

    asyncio.run(read())
    assert reading[0].cancelled()
    assert taken < 100
