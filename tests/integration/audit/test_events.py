"""Defects of single events: lost, rewritten, impossible, locked, run without need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.audit.planting import (
    check,
    only,
    pick,
    processed,
    status,
)
from tests.integration.audit.world import World


def test_lost_event(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"event:{line.id}", f"dedup:{line.id}")
    report = check(world)
    only(report, "lost")
    assert line.id in report.examples["lost"][0]
    only(check(world, ledger=None), "lost")


def test_lost_event_whose_marker_is_left(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"event:{line.id}")
    only(check(world), "lost")


def test_lost_unsequenced_event(world: World) -> None:
    line = pick(world, lambda line: line.kind == "unsequenced")
    world.redis.delete(f"event:{line.id}", f"dedup:{line.id}", f"dlq:{line.id}")
    world.redis.lrem("dlq:list", 0, line.id)
    assert check(world).counts["lost"] == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [("userId", "someone"), ("seq", "999"), ("type", "other")],
    ids=["user", "seq", "type"],
)
def test_rewritten_hash(world: World, field: str, value: str) -> None:
    line = pick(world, lambda line: line.kind == "unsequenced" and status(world, line.id) == "processed")
    world.redis.hset(f"event:{line.id}", field, value)
    report = check(world, runs=None)
    assert report.counts["rewritten"] == 1
    if field == "type":
        only(report, "rewritten")


def test_rewritten_position(world: World) -> None:
    line = pick(world, lambda line: line.kind == "event" and line.fail and line.seq > 0)
    world.redis.hset(f"event:{line.id}", "offset", "99999")
    assert set(check(world).counts) == {"rewritten", "dlq"}


def test_leftover_lock(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.set(f"inflight:{line.id}", "someone")
    report = check(world)
    only(report, "lock")
    assert "someone" in report.examples["lock"][0]
    assert check(world, idle=False).clean


@pytest.mark.parametrize(
    ("changes", "which"),
    [
        ({"attempts": "0"}, "processed"),
        ({"attempts": "4"}, "processed"),
        ({"attempts": "x"}, "processed"),
        ({"status": "done"}, "unsequenced"),
        ({"processedAt": ""}, "processed"),
        ({"attempts": "2"}, "failed"),
        ({"error": ""}, "failed"),
        ({"attempts": "1"}, "late"),
    ],
)
def test_impossible_status(world: World, changes: Any, which: str) -> None:
    wanted = {
        "processed": lambda line: processed(world, line),
        "unsequenced": lambda line: line.kind == "unsequenced" and not line.fail,
        "failed": lambda line: line.kind == "event" and line.fail,
        "late": lambda line: line.kind == "late",
    }
    line = pick(world, wanted[which])
    world.redis.hset(f"event:{line.id}", mapping=changes)
    if "attempts" in changes and which != "processed":
        world.redis.hset(f"dlq:{line.id}", mapping=changes)
    report = check(world, runs=None)
    assert report.counts["status"] == 1
    assert set(report.counts) <= {"status", "dlq"}  # the topic's header tells the attempts too


def test_a_crash_after_too_few_runs(world: World) -> None:
    line = pick(world, lambda line: line.kind == "event" and line.fail)
    world.redis.hset(f"event:{line.id}", mapping={"reason": "crash"})
    world.redis.hset(f"dlq:{line.id}", mapping={"reason": "crash"})
    report = check(world, runs=None)
    assert report.counts["status"] == 1
    assert "is failed (crash) with attempts 3, not 4" in report.examples["status"][0]


def test_good_event_that_is_failed(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.hset(
        f"event:{line.id}",
        mapping={"status": "failed", "attempts": 3, "error": "x", "partition": 0, "offset": 0},
    )
    assert "status" in check(world).counts


def test_failing_event_that_is_processed(world: World) -> None:
    line = pick(world, lambda line: line.kind == "unsequenced" and line.fail)
    world.redis.hset(f"event:{line.id}", mapping={"status": "processed", "attempts": 1})
    report = check(world, runs=None)
    assert report.counts["status"] == 1
    assert "payload.fail" in report.examples["status"][0]


def test_marker_missing(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"dedup:{line.id}")
    only(check(world), "status")


def test_event_of_an_invalid_record(world: World) -> None:
    line = pick(world, lambda line: line.kind == "invalid" and line.id != "")
    world.redis.hset(f"event:{line.id}", mapping={"status": "processed", "attempts": 1})
    only(check(world), "status")


def test_key_of_a_wrong_type(world: World) -> None:
    line = pick(world, lambda line: processed(world, line))
    world.redis.delete(f"event:{line.id}")
    world.redis.set(f"event:{line.id}", "text")
    counts = check(world).counts
    assert counts["foreign"] == 1
    assert set(counts) == {"foreign", "lost"}


def test_handler_ran_twice_without_a_crash(world: World, tmp_path: Path) -> None:
    runs = tmp_path / "0.runs"
    lines = (world.runs / "0.runs").read_text().splitlines(keepends=True)
    at = next(at for at, text in enumerate(lines) if text.endswith("\t1\tok\n") and "\t0\t" not in text)
    runs.write_text("".join([*lines[: at + 1], lines[at], *lines[at + 1 :]]))
    (tmp_path / "1.runs").write_bytes((world.runs / "1.runs").read_bytes())
    only(check(world, runs=tmp_path), "doubled")
    report = check(world, runs=tmp_path, crashed=True)
    assert report.clean, report.examples
    assert report.totals.reruns == 1


def test_processed_without_a_run(world: World, tmp_path: Path) -> None:
    line = pick(world, lambda line: processed(world, line))
    for name in ("0.runs", "1.runs"):
        lines = (world.runs / name).read_text().splitlines(keepends=True)
        (tmp_path / name).write_text("".join(text for text in lines if f"\t{line.id}\t" not in text))
    only(check(world, runs=tmp_path), "status")


def test_run_of_something_that_nobody_produced(world: World, tmp_path: Path) -> None:
    for name in ("0.runs", "1.runs"):
        (tmp_path / name).write_bytes((world.runs / name).read_bytes())
    with (tmp_path / "0.runs").open("a") as file:
        file.write("nobody\t1\tnothing\t1\tok\n")
        file.write("torn li")
    only(check(world, runs=tmp_path), "phantom")
