"""Defects of partitions: floor, commit, ownership."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.audit import wait_until_idle
from tests.integration.audit.planting import (
    PARTITIONS,
    check,
    only,
)
from tests.integration.audit.world import World


@pytest.mark.parametrize("field", ["epoch", "rev", "offset", "seen_ms", "owner"])
def test_partition_hash_incomplete(world: World, field: str) -> None:
    world.redis.hdel(f"partition:{world.settings.kafka_topic}:0", field)
    assert set(check(world).counts) == {"position"}


def test_floor_behind_the_end(world: World) -> None:
    key = f"partition:{world.settings.kafka_topic}:0"
    end: Any = world.redis.hget(key, "offset")
    world.redis.hset(key, "offset", int(end) - 1)
    assert set(check(world).counts) == {"position"}
    assert set(check(world, idle=False).counts) == {"position"}  # more is committed than is final
    assert not wait_until_idle(world.settings, 0)


def test_floor_beyond_the_end(world: World) -> None:
    world.redis.hset(f"partition:{world.settings.kafka_topic}:0", "offset", 999_999)
    assert set(check(world).counts) == {"position"}


def test_nothing_committed(world: World) -> None:
    settings = world.settings.model_copy(update={"kafka_group_id": "nobody"})
    only(check(world, settings=settings), "position", PARTITIONS)
    assert check(world, settings=settings, idle=False).clean


def test_redis_flushed(world: World) -> None:
    world.redis.flushall()
    assert "position" in check(world).counts
