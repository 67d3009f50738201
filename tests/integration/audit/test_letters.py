"""Defects of dead letters, in Redis and in the topic."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pytest

from eventproc.broker.producer import EventProducer
from tests.integration.audit.planting import (
    build,
    check,
    letter,
    only,
    pick,
    processed,
)
from tests.integration.audit.world import World
from tests.integration.conftest import BrokerUnderTest
from tests.redis_server import RedisServer


class _OtherBytes:
    """A record whose value was changed on its way."""

    def __init__(self, message: Any) -> None:
        self._message = message

    def value(self) -> bytes:
        return b"other"

    def __getattr__(self, name: str) -> Any:
        return getattr(self._message, name)


@pytest.mark.parametrize("reason", ["handler", "late", "stale", "invalid", "id_conflict"])
def test_dead_letter_missing_in_redis(world: World, reason: str) -> None:
    id = letter(world, reason)
    world.redis.delete(f"dlq:{id}")
    only(check(world), "dlq")


@pytest.mark.parametrize("reason", ["invalid", "id_conflict"])
def test_dead_letter_that_redis_has_forgotten(world: World, reason: str) -> None:
    id = letter(world, reason)
    place = world.redis.hmget(f"dlq:{id}", "partition", "offset")
    world.redis.delete(f"dlq:{id}")
    world.redis.lrem("dlq:list", 1, id)
    key = f"partition:{world.settings.kafka_topic}:{int(place[0] or 0)}"
    world.redis.hset(key, "baseline", int(place[1] or 0))
    assert set(check(world).counts) == {"dlq"}  # it lies at the baseline, not before it
    world.redis.hset(key, "baseline", int(place[1] or 0) + 1)
    assert check(world).clean


def test_dead_letter_missing_in_the_list(world: World) -> None:
    id = letter(world, "handler")
    world.redis.lrem("dlq:list", 1, id)
    only(check(world), "dlq")
    length: Any = world.redis.llen("dlq:list")
    settings = world.settings.model_copy(update={"dlq_max_len": length})
    assert check(world, settings=settings).clean  # it may have been trimmed


def test_dead_letter_listed_twice(world: World) -> None:
    world.redis.rpush("dlq:list", letter(world, "late"))
    only(check(world), "dlq")


def test_dead_letter_of_nothing(world: World) -> None:
    world.redis.rpush("dlq:list", "nobody")
    only(check(world), "dlq")


def test_dead_letter_of_a_processed_event(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.hset(f"dlq:{line.id}", mapping={"eventId": line.id, "reason": "handler"})
    only(check(world), "dlq")


@pytest.mark.parametrize("field", ["reason", "attempts", "offset", "eventId"])
def test_dead_letter_tells_something_else(world: World, field: str) -> None:
    id = letter(world, "late")
    world.redis.hset(f"dlq:{id}", field, {"reason": "stale"}.get(field, "77"))
    counts = check(world).counts
    assert "dlq" in counts
    assert set(counts) <= {"dlq", "status"}


def test_dead_letters_missing_in_the_topic(world: World, embedded_broker: BrokerUnderTest) -> None:
    settings = world.settings.model_copy(update={"kafka_dlq_topic": embedded_broker.topics()})
    report = check(world, settings=settings)
    totals = report.totals
    only(report, "dlq", totals.failed + totals.skipped + totals.invalid + totals.conflicts)


def test_dead_letter_too_many_in_the_topic(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    class Careless(World):
        sent = 0

        def _handle(self, message: Any, document: dict[str, Any]) -> bool:
            done = super()._handle(message, document)
            if done and not self.sent:
                self.sent += 1
                self.dead_letter(message, "handler", 3)
            return done

    world = build(embedded_broker, server, tmp_path, Careless)
    only(check(world), "dlq")


def test_dead_letter_with_other_bytes(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    class Corrupting(World):
        sent = 0

        def dead_letter(self, message: Any, reason: Any, attempts: int, error: str = "") -> None:
            self.sent += 1
            super().dead_letter(message if self.sent > 1 else _OtherBytes(message), reason, attempts, error)

    world = build(embedded_broker, server, tmp_path, Corrupting)
    report = check(world)
    only(report, "dlq")
    assert "other bytes" in report.examples["dlq"][0]


def test_conflicts_that_ran_before_they_were_known(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    """As with `locking = partition` (CONTRACT section 6), and with that alone."""

    class Running(World):
        def _letter(
            self, message: Any, id: str, reason: Any, error: str, attempts: int, user: str, seq: int
        ) -> None:
            if reason == "id_conflict":
                attempts = 1
                self._lines.append(f"{user}\t{seq}\t{orjson.loads(message.value())['id']}\t1\tok\n")
            super()._letter(message, id, reason, error, attempts, user, seq)

    world = build(embedded_broker, server, tmp_path, Running)
    assert set(check(world).counts) == {"dlq", "doubled"}
    settings = world.settings.model_copy(update={"locking": "partition"})
    report = check(world, settings=settings)
    assert report.clean, report.examples
    assert report.totals.conflicts == 4


def test_dead_letter_from_nowhere(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    world = build(embedded_broker, server, tmp_path)
    settings = world.settings
    letters = EventProducer(settings.model_copy(update={"kafka_topic": settings.dlq_topic}), linger_ms=0)
    letters.produce(b"u", b"x", [("eventproc-origin", f"{settings.kafka_topic}/1/99999".encode())])
    letters.produce(b"u", b"x", [])  # tells no origin
    assert letters.flush(10) == 0
    letters.close()
    only(check(world), "dlq", 2)
