"""Defects of users' sequences: order, gaps, next, which id won."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.audit.planting import (
    check,
    elements,
    hash_of,
    is_hole,
    keys,
    only,
    pick,
    processed,
    skip,
    status,
)
from tests.integration.audit.world import World


def test_seq_twice_in_the_order_list(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.linsert(f"order:{line.user}", "after", str(line.seq), str(line.seq))
    only(check(world), "doubled")


def test_two_ids_processed_for_one_seq(world: World) -> None:
    line = next(line for line in world.lines() if line.kind == "stale")
    loser = next(
        other
        for other in world.lines()
        if (other.user, other.seq) == (line.user, line.seq) and status(world, other.id) == "skipped"
    )
    winner = next(
        other
        for other in world.lines()
        if (other.user, other.seq) == (line.user, line.seq) and other.id != loser.id
    )
    if winner.fail or loser.fail:
        pytest.fail("choose another seed: the stale pair fails")
    world.redis.hset(f"event:{loser.id}", mapping={"status": "processed", "attempts": 1})
    report = check(world, runs=None)
    assert report.counts["doubled"] == 1
    assert set(report.counts) == {"doubled", "dlq"}  # its dead letter is there without need


def test_order_list_out_of_order(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    key = f"order:{line.user}"
    world.redis.lrem(key, 1, str(line.seq))
    world.redis.linsert(key, "before", str(line.seq - 1), str(line.seq))
    only(check(world), "reordered")


def test_last_runs_out_of_order(world: World, tmp_path: Path) -> None:
    lines = (world.runs / "0.runs").read_text().splitlines(keepends=True)
    line = pick(world, lambda line: line.partition == 0 and processed(world, line))
    at = next(at for at, text in enumerate(lines) if f"\t{line.id}\t" in text)
    (tmp_path / "0.runs").write_text("".join([lines[at], *lines[:at], *lines[at + 1 :]]))
    (tmp_path / "1.runs").write_bytes((world.runs / "1.runs").read_bytes())
    report = check(world, runs=tmp_path)
    assert set(report.counts) == {"reordered"}


def test_processed_seq_missing_from_the_order_list(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.lrem(f"order:{line.user}", 1, str(line.seq))
    only(check(world), "gap")


def test_seq_passed_over_without_ledger_entry(world: World) -> None:
    gap, user = next(
        (gap, key.split(":", 1)[1])
        for key in keys(world, "gaps:*")
        for gap in elements(world.redis, key)
        if is_hole(world, key.split(":", 1)[1], int(gap.split("-")[0]))
    )
    world.redis.lrem(f"gaps:{user}", 1, gap)
    report = check(world)
    only(report, "gap")
    assert "passed over" in report.examples["gap"][0]


def test_skipped_event_whose_seq_nobody_gave_up(world: World) -> None:
    line = pick(world, lambda line: line.kind == "late")
    for gap in elements(world.redis, f"gaps:{line.user}"):
        if gap.startswith(f"{line.seq}-{line.seq}:"):
            world.redis.lrem(f"gaps:{line.user}", 1, gap)
            only(check(world), "gap")
            return
    pytest.fail("the late event's seq is not a ledger entry of its own")


def test_ledger_entry_over_a_processed_seq(world: World) -> None:
    line = pick(world, lambda line: processed(world, line) and not world.redis.exists(f"gaps:{line.user}"))
    world.redis.rpush(f"gaps:{line.user}", f"{line.seq}-{line.seq}:timeout:1")
    only(check(world), "gap")


def test_gap_over_an_event_that_lay_before_the_one_beyond_it(world: World) -> None:
    """Given up, though it came first: provable by the offsets alone."""
    lines = world.lines()
    for line in lines:
        beyond = [o for o in lines if (o.user, o.seq, o.kind) == (line.user, line.seq + 1, "event")]
        if processed(world, line) and beyond and all(o.offset > line.offset for o in beyond):
            if [o.id for o in lines].count(line.id) > 1 or world.redis.exists(f"gaps:{line.user}"):
                continue
            break
    else:
        pytest.fail("no such event")
    skip(world, line, "late")
    world.redis.rpush(f"gaps:{line.user}", f"{line.seq}-{line.seq}:timeout:1")
    report = check(world, runs=None)
    assert report.counts["gap"] == 1
    assert set(report.counts) == {"gap", "dlq"}  # it has no dead letter either
    assert "lies before" in report.examples["gap"][0]


def test_gap_over_an_event_that_came_in_time(world: World) -> None:
    """The late events of this workload came within a minute: with that timeout their gaps were none."""
    settings = world.settings.model_copy(update={"gap_timeout_ms": 60_000})
    report = check(world, settings=settings)
    assert set(report.counts) == {"gap"}
    assert all("before that gap could close" in text for text in report.examples["gap"])
    assert check(world, settings=settings, ledger=None).clean  # the topic's times prove nothing


def test_second_to_arrive_won(world: World) -> None:
    lines = world.lines()
    stale = next(line for line in lines if line.kind == "stale")
    pair = [line for line in lines if (line.user, line.seq) == (stale.user, stale.seq)]
    first, second = sorted({line.id: line for line in pair}.values(), key=lambda line: line.offset)
    if first.fail or second.fail:
        pytest.fail("choose another seed: the stale pair fails")
    hashes = hash_of(world, first.id), hash_of(world, second.id)
    world.redis.hset(f"event:{second.id}", mapping={"status": "processed", "attempts": 1})
    skip(world, first, "stale")
    assert [h["status"] for h in hashes] == ["processed", "skipped"]
    assert check(world, runs=None).counts["status"] == 1


def test_next_without_need(world: World) -> None:
    line = pick(world, lambda line: processed(world, line) and not world.redis.exists(f"next:{line.user}"))
    world.redis.set(f"next:{line.user}", 3)
    only(check(world), "next")
    world.redis.set(f"next:{line.user}", 300)
    only(check(world), "next")


def test_next_missing(world: World) -> None:
    key = keys(world, "next:*")[0]
    world.redis.delete(key)
    only(check(world), "next")


def test_seq_that_nobody_produced(world: World) -> None:
    line = pick(world, lambda line: processed(world, line) and not world.redis.exists(f"next:{line.user}"))
    world.redis.rpush(f"order:{line.user}", 1000)
    only(check(world), "phantom")
