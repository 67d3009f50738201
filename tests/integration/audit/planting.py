"""What the checker's tests share: a workload with something of everything, and ways to damage it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import redis

from eventproc.audit import Report, audit
from eventproc.settings import Settings
from eventproc.workload import Workload
from eventproc.workload.ledger import Line
from tests.integration.audit.world import World
from tests.integration.conftest import BrokerUnderTest
from tests.redis_server import RedisServer

PARTITIONS = 2


def everything(topic: str, **changes: Any) -> Workload:
    """A workload with something of everything."""
    values: dict[str, Any] = {
        "users": 30,
        "events_per_user": 12,
        "shuffle_window": 40,
        "duplicate_ratio": 0.1,
        "failing_ratio": 0.08,
        "missing_seqs": 4,
        "late_events": 4,
        "invalid_records": 26,
        "unsequenced_ratio": 0.1,
        "stale": 4,
        "conflicts": 4,
        "tombstones": 2,
        "seed": 37,
        "topic": topic,
    }
    return Workload(**(values | changes))


def settings_for(broker: BrokerUnderTest, server: RedisServer, **values: Any) -> Settings:
    values.setdefault("kafka_topic", broker.topics(PARTITIONS))
    return broker.settings(redis_url=server.url, gap_timeout_ms=1, **values)


def build(
    broker: BrokerUnderTest, server: RedisServer, folder: Path, kind: type[World] = World, **changes: Any
) -> World:
    """A world of its own on an empty Redis."""
    settings = settings_for(broker, server)
    client = server.client()
    client.flushall()
    return kind(settings, client, everything(settings.kafka_topic, **changes), folder)


def check(world: World, **options: Any) -> Report:
    settings = options.pop("settings", world.settings)
    options.setdefault("ledger", world.ledger)
    options.setdefault("runs", world.runs)
    options.setdefault("crashed", False)
    return audit(settings, **options)


def only(report: Report, kind: str, count: int = 1) -> None:
    assert report.counts == {kind: count}, report.examples


def pick(world: World, wanted: Callable[[Line], bool]) -> Line:
    """The first line of the ledger that fits and whose id comes but once."""
    lines = world.lines()
    ids = [line.id for line in lines]
    return next(line for line in lines if ids.count(line.id) == 1 and wanted(line))


def hash_of(world: World, id: str) -> dict[str, str]:
    found: Any = world.redis.hgetall(f"event:{id}")
    return {key.decode(): value.decode() for key, value in found.items()}


def status(world: World, id: str) -> str:
    return hash_of(world, id).get("status", "")


def processed(world: World, line: Line) -> bool:
    """A plain event in the middle of its user's sequence, whose neighbours were processed too."""
    order: Any = [int(seq) for seq in world.redis.lrange(f"order:{line.user}", 0, -1)]
    near = {line.seq - 1, line.seq, line.seq + 1}
    return line.kind == "event" and line.seq > 2 and near <= set(order)


def letter(world: World, reason: str) -> str:
    """An id in the dead-letter list with that reason."""
    for raw in elements(world.redis, "dlq:list"):
        if world.redis.hget(f"dlq:{raw}", "reason") == reason.encode():
            return raw
    raise AssertionError(f"no dead letter with reason {reason}")


def elements(client: redis.Redis, key: str) -> list[str]:
    found: Any = client.lrange(key, 0, -1)
    return [element.decode() for element in found]


def keys(world: World, pattern: str) -> list[str]:
    found: Any = world.redis.keys(pattern)
    return sorted(key.decode() for key in found)


def is_hole(world: World, user: str, seq: int) -> bool:
    return not any((line.user, line.seq) == (user, seq) for line in world.lines())


def skip(world: World, line: Line, reason: str) -> None:
    """Make it a skipped event; a late one has no place in the order."""
    world.redis.hset(
        f"event:{line.id}",
        mapping={
            "status": "skipped",
            "attempts": 0,
            "error": reason,
            "partition": line.partition,
            "offset": line.offset,
        },
    )
    if reason == "late":
        world.redis.lrem(f"order:{line.user}", 1, str(line.seq))
