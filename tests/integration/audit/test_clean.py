"""What may legitimately vary is clean, and what the checker cannot use is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from eventproc.audit import KINDS, audit, wait_until_idle
from eventproc.errors import DependencyError, UsageError
from eventproc.settings import Settings
from tests.integration.audit.planting import (
    build,
    check,
    pick,
    processed,
    settings_for,
)
from tests.integration.audit.world import World, commit
from tests.integration.conftest import BrokerUnderTest
from tests.ports import free_port
from tests.redis_server import RedisServer


def test_clean_state_is_clean_on_each_broker(
    broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    world = build(broker, server, tmp_path, seed=5)
    for options in ({}, {"ledger": None}, {"ledger": None, "runs": None}, {"idle": False, "crashed": True}):
        report = check(world, **options)
        assert report.clean, report.examples
        totals = report.totals
        assert totals.records == len(world.lines())
        assert (totals.users, totals.invalid, totals.tombstones) == (30, 26, 2)
        assert totals.gap_seqs == 8
        assert totals.skipped == 8  # late and stale ones
        assert totals.conflicts == 4
        assert totals.processed > 300
        assert totals.failed > 5
        assert totals.duplicates > 10
        assert totals.dead_letters == totals.failed + totals.skipped + totals.invalid + totals.conflicts
    assert wait_until_idle(world.settings, 0)


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_what_kafka_has_let_go_of_is_told_and_not_judged(
    kafka_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path, seed: int
) -> None:
    world = build(kafka_broker, server, tmp_path, seed=seed)
    before = check(world, ledger=None, runs=None)
    assert before.notes == []
    topic = world.settings.kafka_topic
    lows = {number: high * (1 + seed % 4) // 5 for number, (_, high) in world.marks().items()}
    admin = AdminClient(world.settings.kafka_client())
    deleted = admin.delete_records([TopicPartition(topic, number, low) for number, low in lows.items()])
    for future in deleted.values():
        future.result()
    report = check(world, ledger=None, runs=None)
    assert report.clean, report.examples
    assert report.totals.records == before.totals.records - sum(lows.values())
    assert report.notes == [
        f"records below offset {low} of {topic}/{number} are gone from Kafka: they are not judged"
        for number, low in lows.items()
    ]


def test_totals_and_latency_are_told(world: World) -> None:
    report = check(world)
    assert report.clean, report.examples
    assert report.latency_ms(0.99) >= report.latency_ms(0.5) > 0
    assert report.totals.runs == report.totals.processed + 3 * report.totals.failed
    shown = report.as_json()
    assert shown["clean"] is True
    assert shown["totals"]["processed"] == report.totals.processed


def test_nothing_at_all_is_clean(embedded_broker: BrokerUnderTest, server: RedisServer, world: World) -> None:
    world.redis.flushall()
    report = audit(settings_for(embedded_broker, server))
    assert report.clean, report.examples
    assert report.totals.records == 0


def test_a_late_event_that_was_in_time_may_be_processed(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    class Patient(World):
        def _before_late(self) -> None:
            pass

    world = build(embedded_broker, server, tmp_path, Patient)
    report = check(world)
    assert report.clean, report.examples
    assert report.totals.gap_seqs == 4


def test_keys_whose_time_is_over_are_not_missed(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"event:{line.id}")
    settings = world.settings.model_copy(update={"event_ttl_s": 1})
    report = check(world, settings=settings)
    assert report.clean, report.examples
    assert report.totals.expired == 1


def test_copies_with_one_origin_are_allowed(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    class Replaying(World):
        def dead_letter(self, message: Any, reason: Any, attempts: int, error: str = "") -> None:
            super().dead_letter(message, reason, attempts, error)
            super().dead_letter(message, reason, attempts, error)

    world = build(embedded_broker, server, tmp_path, Replaying)
    report = check(world)
    assert report.clean, report.examples


def test_unfinished_work_above_the_floor_is_no_loss(world: World) -> None:
    lines = [line for line in world.lines() if line.partition == 0 and line.kind != "invalid"]
    last = max(lines, key=lambda line: line.offset)
    marks = {number: high for number, (_low, high) in world.marks().items()}
    world.redis.hset(f"partition:{world.settings.kafka_topic}:0", "offset", last.offset)
    settings = world.settings.model_copy(update={"kafka_group_id": "behind"})
    commit(settings, marks | {0: last.offset})
    world.redis.delete(f"event:{last.id}", f"dedup:{last.id}", f"dlq:{last.id}")
    world.redis.lrem("dlq:list", 0, last.id)
    counts = check(world, settings=settings, idle=False, runs=None).counts
    assert "lost" not in counts
    assert check(world, settings=settings, runs=None).counts["position"] == 1


def test_record_that_was_not_acknowledged_may_be_there_or_not(world: World, tmp_path: Path) -> None:
    lines = world.ledger.read_text().splitlines(keepends=True)
    there = pick(world, lambda line: processed(world, line))
    edited = tmp_path / "ledger"
    text = "".join(
        line.replace(f'"offset":{there.offset},', '"offset":-1,') if f'"id":"{there.id}"' in line else line
        for line in lines[:-1]
    )
    gone = (
        '{"kind":"event","id":"gone","user":"gone-user","seq":1,"type":"t","fail":false,"partition":-1,'
        '"offset":-1,"sent_ms":1,"acked_ms":0,"crc":0}\n'
    )
    edited.write_text(text + gone + lines[-1])
    report = check(world, ledger=edited, runs=None)
    assert report.clean, report.examples
    assert report.totals.unacknowledged == 2


def test_every_kind_is_planted() -> None:
    """A kind that no test plants is a kind that may never be found."""
    text = "".join(path.read_text() for path in Path(__file__).parent.glob("test_*.py"))
    for kind in KINDS:
        assert f'"{kind}"' in text


def test_ledger_of_another_topic_is_refused(world: World) -> None:
    settings = world.settings.model_copy(update={"kafka_topic": "others"})
    with pytest.raises(UsageError, match=r"topic .*kafka_topic is others"):
        check(world, settings=settings)


def test_ledger_that_is_none_is_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("hello\n")
    for path in (tmp_path / "x", tmp_path / "missing"):
        with pytest.raises(UsageError, match=str(path)):
            check(world, ledger=path)


def test_runs_that_are_none_are_refused(world: World, tmp_path: Path) -> None:
    (tmp_path / "0.runs").write_text("hello\n")
    with pytest.raises(UsageError, match="line 1"):
        check(world, runs=tmp_path)


def test_redis_away(world: World) -> None:
    settings = Settings(
        **(world.settings.model_dump() | {"redis_url": f"redis://127.0.0.1:{free_port()}/0"}),
    )
    with pytest.raises(DependencyError, match="redis_url"):
        check(world, settings=settings)


def test_what_lies_below_a_baseline_is_told_and_is_no_violation(world: World) -> None:
    topic, lines = world.settings.kafka_topic, [line for line in world.lines() if line.partition == 0]
    baseline = sorted(line.offset for line in lines)[len(lines) // 2]
    world.redis.hset(f"partition:{topic}:0", "baseline", baseline)
    below = [line for line in lines if line.offset < baseline]
    lost = {line.id for line in below if line.kind not in ("invalid", "tombstone")}
    lost -= {line.id for line in lines if line.offset >= baseline}
    for id in lost | {f"{topic}-0-{line.offset}" for line in below}:
        world.redis.delete(f"event:{id}", f"dedup:{id}", f"dlq:{id}")
        world.redis.lrem("dlq:list", 0, id)
    report = check(world, runs=None)
    assert report.clean, report.examples
    (told,) = report.as_json()["below_baselines"]
    assert (told["partition"], told["offset"]) == (0, baseline)
    invalid = sum(line.kind == "invalid" for line in below)
    conflicts = sum(line.kind == "conflict" and line.id in lost for line in below)  # ids under a second seq
    assert told["events_without_outcome"] == len(lost) + invalid + conflicts
    line, verdict = report.lines()
    assert line.startswith(f"below the baseline of partition 0 (offset {baseline}): ")
    assert f"{told['events_without_outcome']} events without outcome" in line
    assert verdict == "the audit is clean: no violation at or above the baselines"


def test_a_ledger_that_is_still_being_written_makes_no_phantoms(world: World, tmp_path: Path) -> None:
    lines = world.ledger.read_bytes().splitlines(keepends=True)
    growing = tmp_path / "ledger"
    growing.write_bytes(b"".join(lines[: len(lines) // 2]) + lines[len(lines) // 2][:20])
    report = check(world, ledger=growing, idle=False)
    assert report.clean, report.examples
    assert report.totals.records < len(world.lines())
    assert "still writes it" in report.lines()[0]
    assert report.lines()[-1] == "the audit is clean: no violation"


def test_what_was_written_after_the_floors_were_read_is_not_judged(world: World) -> None:
    """The floor as the audit sees it is old: everything above it may be half there."""
    topic, lines = world.settings.kafka_topic, world.lines()
    for number in (0, 1):
        mine = sorted(line.offset for line in lines if line.partition == number)
        world.redis.hset(f"partition:{topic}:{number}", "offset", mine[len(mine) // 2])
    settings = world.settings.model_copy(update={"kafka_group_id": "busy"})
    floors = {n: int(world.redis.hget(f"partition:{topic}:{n}", "offset") or 0) for n in (0, 1)}
    late = [line for line in lines if line.offset >= floors[line.partition]]
    for line in late:  # a dead letter's traces come last
        for id in (line.id, f"{topic}-{line.partition}-{line.offset}"):
            if world.redis.delete(f"dlq:{id}"):
                world.redis.lrem("dlq:list", 0, id)
    for ledger in (world.ledger, None):
        report = check(world, settings=settings, ledger=ledger, idle=False)
        assert report.clean, report.examples
        assert report.totals.processed > 100
