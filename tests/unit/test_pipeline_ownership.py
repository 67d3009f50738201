"""CONTRACT section 6 through the pipeline: fence, revision, start, standby, and users without state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eventproc.effects import (
    Acquire,
    Acquired,
    Claim,
    FetchEnd,
    FetchOffsets,
    Finalize,
    Finalized,
    LoadUsers,
    Produce,
    Run,
    Seek,
)
from eventproc.errors import ConfigError, Fenced
from tests.unit.pipeline_driver import Driver, event


def another(first: Driver, **options: Any) -> Driver:
    """A second worker on the same Redis, Kafka and clock."""
    options = {"owner": "host:1:a/0/2"} | options
    second = Driver(
        store=first.store,
        clock=first.clock,
        low=first.low,
        end=first.end,
        committed=first.committed,
        **options,
    )
    second.log = first.log
    return second


def test_nothing_is_wanted_or_asked_before_the_partition_is_owned() -> None:
    driver = Driver()
    driver.hold(FetchOffsets, Claim)
    driver.settle()
    assert not driver.pipeline.wants_records()
    assert [type(request) for request in driver.made] == [FetchOffsets]
    driver.held = {Claim}
    driver.settle()
    assert [type(request) for request in driver.made] == [FetchOffsets, Claim]
    driver.free()
    assert driver.pipeline.ownership.owned
    assert driver.asked(Seek) == [Seek(0)]


# --- fenced -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Acquire, Finalize])
def test_a_worker_that_was_superseded_is_fenced_by_its_next_call_and_writes_nothing(kind: type) -> None:
    first = Driver().own()
    first.hold(kind)
    first.send(event("u", 1))
    another(first, force=True).own()
    before = first.contents()
    with pytest.raises(Fenced, match="events/0 has been taken"):
        first.free()
    assert first.contents() == before
    assert first.status("u-1") == ""


def test_a_worker_that_is_idle_is_fenced_within_a_second() -> None:
    first = Driver().own()
    another(first, force=True).own()
    with pytest.raises(Fenced):
        first.pass_ms(1_000)


def test_fenced_names_the_exit_code_six() -> None:
    assert Fenced.exit_code == 6


# --- rewound ------------------------------------------------------------------------------------------


def test_a_failover_that_lost_writes_resets_everything_and_what_was_lost_is_done_again() -> None:
    driver = Driver().own()
    driver.send(event("u", 1))
    snapshot = driver.store.snapshot()
    driver.send(event("u", 2), event("u", 3))
    driver.pass_ms(1_000)
    driver.store.restore(snapshot)
    driver.pass_ms(1_000)
    assert driver.counts["rewinds"] == 1
    assert [name for name, _ in driver.warnings] == ["rewound"]
    assert driver.pipeline.ownership.owned
    assert driver.asked(Seek)[-1] == Seek(1)
    driver.fetch_at = 1
    driver.read()
    driver.settle()
    assert driver.order("u") == [1, 2, 3]
    assert driver.ran() == ["u-1", "u-2", "u-3", "u-2", "u-3"]
    assert driver.floor_stored() == driver.commits[-1] == 3


@pytest.mark.parametrize("kind", [Acquire, Finalize])
def test_a_flush_is_met_with_a_claim_at_the_floor_that_redis_last_acknowledged(kind: type) -> None:
    driver = Driver(on_redis_empty="stop").own()
    driver.send(event("u", 1), event("u", 2))
    driver.hold(kind)
    driver.send(event("u", 3), event("v", 9))
    driver.store.flush()
    driver.free()
    claim = driver.asked(Claim)[-1]
    assert (claim.offset, claim.baseline) == (2, 2)
    assert driver.asked(Seek)[-1] == Seek(2)
    assert driver.pipeline.ownership.baseline == 2
    assert driver.pipeline.buffer.parked == 0
    driver.fetch_at = 2
    driver.read()
    driver.settle()
    driver.pass_ms(5_000)
    assert driver.order("u") == [3]
    assert driver.ledger("u") == ["1-2:reset"]


def test_after_a_rewind_what_was_under_way_is_thrown_away() -> None:
    driver = Driver(max_attempts=1).own()
    driver.hold(Run, Produce, LoadUsers, FetchEnd)
    driver.held.discard(LoadUsers)
    driver.send(event("u", 1), event("w", 2))
    driver.hold(LoadUsers)
    driver.send(event("v", 1))
    driver.pass_ms(5_000)
    [run], [end], [load] = driver.waiting(Run), driver.waiting(FetchEnd), driver.waiting(LoadUsers)
    driver.store.flush()
    driver.pass_ms(1_000)
    assert driver.counts["rewinds"] == 1
    assert driver.pipeline.buffer.parked == 0
    before = driver.contents()
    for old in (run, end, load):
        driver.carry_out(old)
    driver.held.clear()
    driver.settle()
    assert driver.order("u") == []
    assert {key for key in driver.contents() if not key.startswith("partition:")} == {
        key for key in before if not key.startswith("partition:")
    }
    driver.fetch_at = 0
    driver.read()
    driver.settle()
    assert driver.order("u") == [1]
    assert driver.order("v") == [1]


def test_a_late_reply_of_before_a_rewind_changes_nothing() -> None:
    driver = Driver().own()
    driver.hold(Acquire, Finalize)
    driver.send(event("u", 1))
    [acquire] = driver.waiting(Acquire)
    driver.pass_ms(1_000)
    [heartbeat] = driver.waiting(Finalize)
    driver.answer(heartbeat, Finalized("rewound"))
    assert not driver.pipeline.ownership.owned
    driver.answer(acquire, Acquired("ok", [0]))
    driver.answer(heartbeat, Finalized("ok", 1))
    driver.free()
    assert driver.runs == []
    assert driver.pipeline.buffer.position == 0


def test_a_dead_letter_acknowledged_after_a_rewind_settles_nothing_of_the_new_life() -> None:
    driver = Driver(max_attempts=1).own()
    driver.hold(Produce)
    driver.send(event("u", 1, fail=True))
    [old] = driver.waiting(Produce)
    driver.store.flush()
    driver.pass_ms(1_000)
    driver.fetch_at = 0
    driver.read()
    driver.settle()
    driver.carry_out(old)
    driver.settle()
    assert driver.pipeline.floor == 0
    driver.free()
    assert driver.produced == [0, 0]
    assert driver.pipeline.floor == driver.commits[-1] == 1


def test_a_flush_before_the_first_position_was_written_is_survived() -> None:
    driver = Driver(low=5, end=9, on_offset_out_of_range="earliest")
    driver.store.command("HSET", "partition:events:0", "epoch", 1, "owner", "x", "offset", 2, "rev", 0)
    driver.hold(Finalize)
    driver.settle()
    assert driver.asked(Seek) == [Seek(5)]
    driver.store.flush()
    driver.free()
    assert driver.counts["rewinds"] == 1
    assert driver.pipeline.ownership.owned
    assert driver.asked(Seek)[-1] == Seek(5)
    driver.settle()
    assert driver.floor_stored() == 5


# --- standby and takeover -----------------------------------------------------------------------------


def test_a_second_worker_stands_by_until_the_lease_has_run_out() -> None:
    first = Driver(lease_ms=10_000).own()
    first.send(event("u", 1))
    second = another(first)
    second.settle()
    assert second.pipeline.ownership.standby_for == "host:1:a/0/1"
    assert not second.pipeline.wants_records()
    second.pass_ms(9_000)
    assert not second.pipeline.ownership.owned
    second.pass_ms(1_000)
    assert second.pipeline.ownership.owned
    assert second.pipeline.ownership.standby_for == ""
    assert second.fetch_at == 1


def test_a_worker_that_goes_on_keeps_its_lease() -> None:
    first = Driver(lease_ms=10_000).own()
    second = another(first)
    for _ in range(30):
        first.pass_ms(1_000)
        second.settle()
    assert not second.pipeline.ownership.owned


def test_a_standby_takes_over_although_the_log_has_grown_far_since_it_began() -> None:
    first = Driver(lease_ms=10_000).own()
    second = another(first)
    second.settle()
    first.send(*(event("u", seq) for seq in range(1, 30)))
    second.end, second.committed = first.end, first.committed
    second.pass_ms(10_000)
    assert second.pipeline.ownership.owned
    assert second.fetch_at == 29


@pytest.mark.parametrize(
    "options",
    [{"may_take": lambda owner: owner == "host:1:a/0/1"}, {"force": True}],
    ids=["gone", "takeover"],
)
def test_an_owner_that_is_gone_or_is_taken_over_need_not_be_waited_for(
    options: dict[str, Callable[[str], bool]],
) -> None:
    first = Driver().own()
    first.hold(Run)
    first.send(event("u", 1))
    assert first.locks() == ["u-1"]
    second = another(first, **options).own()
    second.read()
    second.settle()
    assert second.order("u") == [1]  # the lock of an older epoch of this partition is taken over at once
    assert second.locks() == []


# --- where it starts ----------------------------------------------------------------------------------


def test_it_starts_at_the_position_in_redis_and_not_at_the_groups() -> None:
    first = Driver().own()
    first.send(event("u", 1), event("u", 2))
    second = another(first, force=True)
    second.committed = 0
    second.own()
    assert second.fetch_at == 2


@pytest.mark.parametrize(
    ("settings", "committed", "start", "baseline"),
    [
        ({}, 6, 6, 6),
        ({}, -1, 2, -1),
        ({"on_redis_empty": "earliest"}, 6, 2, -1),
    ],
)
def test_with_an_empty_redis_it_starts_where_the_setting_says(
    settings: dict[str, Any], committed: int, start: int, baseline: int
) -> None:
    driver = Driver(low=2, end=9, committed=committed, **settings).own()
    assert driver.fetch_at == start
    assert driver.floor_stored() == start
    assert driver.pipeline.ownership.baseline == baseline
    assert driver.stored("epoch") == str(driver.pipeline.ownership.epoch)


def test_with_an_empty_redis_it_stops_if_the_setting_says_so() -> None:
    driver = Driver(low=2, end=9, committed=6, on_redis_empty="stop")
    with pytest.raises(ConfigError, match="Redis holds no position for events/0"):
        driver.settle()


@pytest.mark.parametrize("stored", [1, 20])
@pytest.mark.parametrize(("policy", "start"), [("earliest", 5), ("latest", 9), ("stop", -1)])
def test_a_position_outside_the_log_is_an_error_unless_the_setting_says_where_to_go_on(
    policy: str, start: int, stored: int
) -> None:
    driver = Driver(low=5, end=9, on_offset_out_of_range=policy)
    driver.store.command("HSET", "partition:events:0", "epoch", 1, "owner", "x", "offset", stored, "rev", 0)
    if start < 0:
        with pytest.raises(ConfigError, match=f"is {stored}, but the log holds 5 to 9"):
            driver.settle()
        return
    driver.own()
    assert driver.fetch_at == start
    assert driver.floor_stored() == start  # written at once, so that a restart finds the same
    assert driver.commits[-1] == start


# --- users without state after a baseline -------------------------------------------------------------


def test_after_a_baseline_a_user_without_state_adopts_its_lowest_seq_after_one_timeout() -> None:
    driver = Driver(end=100, committed=100, gap_timeout_ms=100, max_seq_jump=1_000).own()
    driver.send(event("u", 5_000_001), event("u", 5_000_000))
    assert driver.runs == []
    assert driver.letters() == []
    driver.pass_ms(100)
    assert driver.ran() == ["u-5000000", "u-5000001"]
    assert driver.ledger("u") == ["1-4999999:reset"]
    assert driver.counts["gaps_closed.reset"] == 1
    driver.send(event("u", 5_000_003))
    driver.pass_ms(100)
    assert driver.ledger("u") == ["1-4999999:reset", "5000002-5000002:timeout"]


def test_after_a_baseline_a_user_with_state_goes_on_from_it() -> None:
    driver = Driver(end=100, committed=100, gap_timeout_ms=100)
    driver.store.command("RPUSH", "order:u", 7)
    driver.own().send(event("u", 9))
    driver.pass_ms(100)
    assert driver.ledger("u") == ["8-8:timeout"]


def test_without_a_baseline_no_user_adopts() -> None:
    driver = Driver(gap_timeout_ms=100, max_seq_jump=1_000).own()
    driver.send(event("u", 5_000))
    assert driver.letter("u-5000")["reason"] == "seq_jump"


def test_the_baseline_is_remembered_by_redis_for_the_next_worker() -> None:
    first = Driver(end=100, committed=100).own()
    second = another(first, force=True).own()
    assert second.pipeline.ownership.baseline == 100
    assert second.fetch_at == 100
