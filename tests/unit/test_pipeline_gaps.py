"""CONTRACT 4.2: when a missing seq is given up, and when not. Also the early closing of full buffers."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.effects import Acquire, FetchEnd, Finalize, LoadUsers, Run
from tests.unit.pipeline_driver import Driver, event, finalize_of

TIMEOUT_MS = 100
LOCKINGS = ("event", "partition")


def with_gap(**settings: Any) -> Driver:
    """Seq 1 is missing, 2 is parked since now."""
    driver = Driver(gap_timeout_ms=TIMEOUT_MS, **settings).own()
    driver.send(event("u", 2))
    return driver


@pytest.mark.parametrize("locking", LOCKINGS)
def test_a_gap_closes_without_further_traffic_once_its_deadline_has_passed(locking: str) -> None:
    driver = with_gap(locking=locking)
    driver.pass_ms(TIMEOUT_MS - 1)
    assert driver.asked(FetchEnd) == []
    assert driver.pipeline.next_deadline_ms() == driver.clock.now_ms + 1
    driver.pass_ms(1)
    assert len(driver.asked(FetchEnd)) == 1
    assert driver.ran() == ["u-2"]
    assert driver.ledger("u") == ["1-1:timeout"]
    assert driver.order("u") == [2]
    assert driver.following("u") == 0
    assert driver.floor_stored() == driver.commits[-1] == 1
    assert driver.counts["gaps_closed.timeout"] == 1


def test_a_later_event_of_the_user_does_not_put_the_deadline_off_a_lower_one_does() -> None:
    driver = Driver(gap_timeout_ms=TIMEOUT_MS).own()
    driver.send(event("u", 5))
    driver.pass_ms(60)
    driver.send(event("u", 6))
    assert driver.pipeline.next_deadline_ms() == driver.clock.now_ms + 40
    driver.send(event("u", 3))
    assert driver.pipeline.next_deadline_ms() == driver.clock.now_ms + TIMEOUT_MS


def test_the_end_is_asked_for_and_nothing_closes_before_the_answer() -> None:
    driver = with_gap()
    driver.hold(FetchEnd)
    driver.pass_ms(TIMEOUT_MS)
    driver.pass_ms(10 * TIMEOUT_MS)
    assert len(driver.asked(FetchEnd)) == 1
    assert (driver.runs, driver.ledger("u")) == ([], [])
    driver.free()
    assert driver.ran() == ["u-2"]


def test_nothing_closes_before_it_has_read_to_the_end_it_was_told() -> None:
    driver = with_gap()
    driver.write(event("v", 1), event("v", 2))
    driver.pass_ms(TIMEOUT_MS)
    assert driver.ledger("u") == []
    driver.pass_ms(5 * TIMEOUT_MS)
    assert driver.ledger("u") == []
    driver.read()
    driver.settle()
    assert driver.ledger("u") == ["1-1:timeout"]


def test_the_missing_seq_may_lie_before_the_end_it_was_told() -> None:
    driver = with_gap()
    driver.write(event("v", 1), event("u", 1))
    driver.pass_ms(TIMEOUT_MS)
    driver.read()
    driver.settle()
    assert driver.order("u") == [1, 2]
    assert driver.ledger("u") == []


def test_a_position_without_a_record_counts_as_read() -> None:
    driver = with_gap()
    driver.end += 1  # a transaction marker is the tail
    driver.pass_ms(TIMEOUT_MS)
    assert driver.ledger("u") == []
    driver.pipeline.on_position(driver.end)
    driver.settle()
    assert driver.ledger("u") == ["1-1:timeout"]
    assert driver.commits[-1] == 2


def test_a_gap_that_was_filled_meanwhile_is_not_closed() -> None:
    driver = with_gap()
    driver.hold(FetchEnd)
    driver.pass_ms(TIMEOUT_MS)
    driver.send(event("u", 1))
    driver.free()
    driver.pass_ms(10 * TIMEOUT_MS)
    assert driver.order("u") == [1, 2]
    assert driver.ledger("u") == []


def test_a_gap_that_became_another_one_meanwhile_waits_anew() -> None:
    driver = Driver(gap_timeout_ms=TIMEOUT_MS).own()
    driver.send(event("u", 3))
    driver.hold(FetchEnd)
    driver.pass_ms(TIMEOUT_MS)
    driver.send(event("u", 2))
    driver.free()
    driver.pass_ms(TIMEOUT_MS - 1)
    assert driver.ledger("u") == []
    driver.pass_ms(1)
    assert driver.ledger("u") == ["1-1:timeout"]
    assert driver.order("u") == [2, 3]


def test_a_gap_behind_the_one_that_was_filled_is_not_closed_by_its_answer() -> None:
    driver = with_gap()
    driver.hold(FetchEnd)
    driver.pass_ms(TIMEOUT_MS)
    driver.send(event("u", 4), event("u", 1))
    driver.free()
    assert driver.order("u") == [1, 2]
    assert driver.ledger("u") == []
    driver.pass_ms(TIMEOUT_MS)
    assert driver.ledger("u") == ["3-3:timeout"]


@pytest.mark.parametrize(
    "stage", [Acquire, Run, Finalize, None], ids=["queued", "running", "done", "retrying"]
)
def test_nothing_closes_while_something_of_the_user_is_in_flight(stage: type | None) -> None:
    driver = Driver(gap_timeout_ms=TIMEOUT_MS, retry_backoff_ms=1_000).own()
    if stage is not None:
        driver.hold(stage)
    driver.send(event("u", 1, fail=int(stage is None)), event("u", 3), event("v", 2))
    driver.pass_ms(TIMEOUT_MS)
    driver.pass_ms(TIMEOUT_MS)
    assert driver.ledger("u") == []
    if stage is not Finalize:
        assert driver.ledger("v") == ["1-1:timeout"]
    driver.free()
    if stage is None:
        driver.pass_ms(1_000 - 2 * TIMEOUT_MS)
    assert driver.ledger("u") == ["2-2:timeout"]
    assert driver.order("u") == [1, 3]


def test_a_gap_that_fills_while_its_closing_waits_for_what_is_in_flight_is_not_closed() -> None:
    driver = Driver(gap_timeout_ms=TIMEOUT_MS, retry_backoff_ms=500).own()
    driver.send(event("u", 1, fail=1), event("u", 3))
    driver.pass_ms(TIMEOUT_MS)
    driver.send(event("u", 2), event("u", 5))
    driver.pass_ms(500 - TIMEOUT_MS)
    assert driver.order("u") == [1, 2, 3, 5]  # 5 has waited for 400 ms by now
    assert driver.ledger("u") == ["4-4:timeout"]


def test_what_is_left_of_a_gap_that_fills_in_part_meanwhile_is_closed() -> None:
    driver = Driver(gap_timeout_ms=TIMEOUT_MS, retry_backoff_ms=500).own()
    driver.send(event("u", 1, fail=1), event("u", 4))
    driver.pass_ms(TIMEOUT_MS)  # due, and its end is read
    driver.send(event("u", 2))
    driver.pass_ms(500 - TIMEOUT_MS)
    assert driver.order("u") == [1, 2, 4]
    assert driver.ledger("u") == ["3-3:timeout"]


def test_the_ledger_and_the_next_key_are_written_before_the_first_handler_beyond_runs() -> None:
    driver = with_gap()
    driver.hold(Finalize)
    driver.pass_ms(TIMEOUT_MS)
    [call] = driver.waiting(Finalize)
    assert [(gap.first, gap.last, gap.reason) for group in call.groups for gap in group.gaps] == [
        (1, 1, "timeout")
    ]
    assert driver.asked(Acquire) == driver.asked(Run) == []
    seen = []
    driver.during["u-2"] = lambda: seen.append((driver.ledger("u"), driver.following("u")))
    driver.free()
    assert seen == [(["1-1:timeout"], 2)]


def test_what_arrives_below_while_the_closing_is_written_is_late() -> None:
    driver = with_gap()
    driver.hold(Finalize)
    driver.pass_ms(TIMEOUT_MS)
    driver.send(event("u", 1))
    assert driver.runs == []
    driver.free()
    assert driver.ran() == ["u-2"]
    assert driver.letter("u-1")["reason"] == "late"
    assert driver.order("u") == [2]


def test_what_arrives_above_while_the_closing_is_written_runs_after_it() -> None:
    driver = with_gap()
    driver.hold(Finalize)
    driver.pass_ms(TIMEOUT_MS)
    driver.send(event("u", 3))
    driver.free()
    assert driver.ran() == ["u-2", "u-3"]


def test_each_gap_has_a_deadline_of_its_own() -> None:
    driver = with_gap()
    driver.pass_ms(50)
    driver.send(event("u", 4))
    driver.pass_ms(50)
    assert driver.ledger("u") == ["1-1:timeout"]
    driver.pass_ms(49)
    assert driver.ledger("u") == ["1-1:timeout"]
    driver.pass_ms(1)
    assert driver.ledger("u") == ["1-1:timeout", "3-3:timeout"]


def test_many_users_gaps_are_closed_with_one_question_and_one_call() -> None:
    driver = Driver(gap_timeout_ms=TIMEOUT_MS).own()
    driver.send(*(event(f"u{n}", 2) for n in range(50)))
    before = len(driver.asked(Finalize))
    driver.clock.now_ms += TIMEOUT_MS
    driver.step()
    [end] = driver.waiting(FetchEnd)
    driver.carry_out(end)
    call = finalize_of(driver.step())
    assert len(call.groups) == 50
    assert len(driver.asked(Finalize)) == before + 1


# --- time that does not count -------------------------------------------------------------------------


def test_no_gap_closes_while_redis_or_kafka_is_away_and_the_full_timeout_starts_anew() -> None:
    driver = with_gap()
    driver.pass_ms(90)
    driver.pipeline.suspend()
    driver.pass_ms(10 * TIMEOUT_MS)
    assert driver.asked(FetchEnd) == []
    assert driver.pipeline.next_deadline_ms() == -1  # nothing to wake up for
    driver.pipeline.resume(driver.clock.now_ms)
    driver.pass_ms(TIMEOUT_MS - 1)
    assert driver.asked(FetchEnd) == []
    driver.pass_ms(1)
    assert driver.ledger("u") == ["1-1:timeout"]


@pytest.mark.parametrize("answered", [False, True])
def test_an_outage_undoes_a_question_that_is_under_way(answered: bool) -> None:
    driver = with_gap()
    driver.write(event("v", 1))  # so that it has not read to the end
    driver.hold(FetchEnd)
    driver.pass_ms(TIMEOUT_MS)
    [question] = driver.waiting(FetchEnd)
    if answered:
        driver.carry_out(question)
    driver.pipeline.suspend()
    driver.read()
    driver.settle()
    assert driver.ledger("u") == []
    driver.pipeline.resume(driver.clock.now_ms)
    if not answered:
        driver.carry_out(question)
    driver.free()
    assert driver.ledger("u") == []
    driver.pass_ms(TIMEOUT_MS - 1)
    assert driver.ledger("u") == []
    driver.pass_ms(1)
    assert driver.ledger("u") == ["1-1:timeout"]


def test_a_stall_of_the_process_starts_the_full_timeout_anew() -> None:
    driver = with_gap()
    driver.clock.now_ms += 10 * TIMEOUT_MS
    driver.pipeline.resume(driver.clock.now_ms)
    driver.settle()
    assert driver.asked(FetchEnd) == []
    driver.pass_ms(TIMEOUT_MS)
    assert driver.ledger("u") == ["1-1:timeout"]


def test_a_closing_that_waits_for_what_is_in_flight_is_undone_by_an_outage() -> None:
    driver = Driver(gap_timeout_ms=TIMEOUT_MS, retry_backoff_ms=300).own()
    driver.send(event("u", 1, fail=1), event("u", 3))
    driver.pass_ms(TIMEOUT_MS)
    driver.pipeline.suspend()
    driver.pipeline.resume(driver.clock.now_ms + 190)
    driver.pass_ms(200)
    assert driver.order("u") == [1]
    assert driver.ledger("u") == []
    driver.pass_ms(90)
    assert driver.ledger("u") == ["2-2:timeout"]


def pausing() -> Driver:
    """Reading is paused, for something of v is not acquired; seq 1 of u is missing."""
    driver = Driver(gap_timeout_ms=3_000, batch_max=1).own()
    driver.send(event("u", 2))
    driver.hold(Acquire)
    driver.send(*(event("v", seq) for seq in range(1, 10)))
    assert not driver.pipeline.wants_records()
    driver.pass_ms(1_000)
    assert driver.pipeline.paused
    return driver


def test_a_pause_in_reading_does_not_count_and_the_full_timeout_starts_anew() -> None:
    driver = pausing()
    driver.pass_ms(10_000)
    assert driver.asked(FetchEnd) == []
    driver.free()
    assert not driver.pipeline.paused
    driver.pass_ms(2_999)
    assert driver.asked(FetchEnd) == []
    driver.pass_ms(1)
    assert driver.ledger("u") == ["1-1:timeout"]


def test_the_end_of_a_pause_is_not_the_end_of_an_outage() -> None:
    driver = pausing()
    driver.pipeline.suspend()  # Kafka is away, Redis is not
    driver.free()
    assert driver.pipeline.wants_records()
    driver.pass_ms(10_000)
    assert driver.asked(FetchEnd) == []
    driver.pipeline.resume(driver.clock.now_ms)
    driver.pass_ms(3_000)
    assert driver.ledger("u") == ["1-1:timeout"]


def test_a_short_pause_in_reading_stops_no_timer() -> None:
    driver = Driver(gap_timeout_ms=3_000, batch_max=1).own()
    driver.send(event("u", 2))
    driver.hold(Acquire)
    driver.send(*(event("v", seq) for seq in range(1, 10)))
    driver.pass_ms(999)
    assert not driver.pipeline.paused
    driver.free()
    driver.pass_ms(2_001)
    assert driver.ledger("u") == ["1-1:timeout"]


def test_users_that_are_not_loaded_yet_have_no_gap_and_their_events_arrival_counts() -> None:
    driver = Driver(gap_timeout_ms=TIMEOUT_MS).own()
    driver.hold(LoadUsers)
    driver.send(event("u", 2))
    driver.pass_ms(5 * TIMEOUT_MS)
    assert driver.asked(FetchEnd) == []
    driver.free()
    assert driver.ledger("u") == ["1-1:timeout"]


# --- overflow -----------------------------------------------------------------------------------------


def test_more_than_one_user_may_park_closes_its_gap_early() -> None:
    driver = Driver(max_parked_per_user=3).own()
    driver.send(event("u", 1), event("v", 5))
    driver.send(event("u", 3), event("u", 4), event("u", 5))
    assert driver.ledger("u") == []
    driver.send(event("u", 6))
    assert driver.ledger("u") == ["2-2:overflow"]
    assert driver.ledger("v") == []
    assert driver.order("u") == [1, 3, 4, 5, 6]
    assert driver.counts["gaps_closed.overflow"] == 1
    driver.send(event("u", 2))
    assert driver.letter("u-2")["reason"] == "late"


def test_more_than_the_partition_may_park_closes_the_oldest_gap() -> None:
    driver = Driver(max_parked=3).own()
    driver.send(event("old", 2))
    driver.pass_ms(10)
    driver.send(event("new", 2), event("newer", 2))
    driver.send(event("newest", 2))
    assert driver.ledger("old") == ["1-1:overflow"]
    assert driver.pipeline.buffer.parked == 3
    assert driver.ran() == ["old-2"]


def test_more_bytes_than_may_be_parked_close_the_oldest_gap() -> None:
    driver = Driver(max_parked_bytes=1_000).own()
    driver.send(event("old", 2, text="x" * 400))
    driver.send(event("new", 2, text="x" * 400))
    assert driver.runs == []
    driver.send(event("newest", 2, text="x" * 400))
    assert driver.ledger("old") == ["1-1:overflow"]
    assert driver.pipeline.buffer.parked_bytes <= 1_000


def test_an_overflow_waits_for_what_is_in_flight_of_the_user() -> None:
    driver = Driver(max_parked_per_user=3, retry_backoff_ms=100).own()
    driver.send(event("u", 1, fail=1))
    driver.send(*(event("u", seq) for seq in (3, 4, 5, 6)))
    assert driver.ledger("u") == []
    driver.pass_ms(100)
    assert driver.ledger("u") == ["2-2:overflow"]
    assert driver.order("u") == [1, 3, 4, 5, 6]


def test_an_overflow_that_has_passed_by_then_closes_nothing() -> None:
    driver = Driver(max_parked_per_user=3, retry_backoff_ms=100).own()
    driver.send(event("u", 1, fail=1))
    driver.send(*(event("u", seq) for seq in (3, 4, 5, 6)))
    driver.send(event("u", 2), event("u", 8))  # the gap is filled, another one stands behind
    driver.pass_ms(100)
    assert driver.order("u") == [1, 2, 3, 4, 5, 6]
    assert driver.ledger("u") == []


def test_an_overflow_closes_even_while_timers_stand_still() -> None:
    driver = Driver(max_parked_per_user=2).own()
    driver.pipeline.suspend()
    driver.send(event("u", 2), event("u", 3))
    driver.send(event("u", 4))
    assert driver.ledger("u") == ["1-1:overflow"]


def test_a_gap_that_holds_the_floor_at_max_replay_records_is_closed_early() -> None:
    driver = Driver(max_replay_records=5).own()
    driver.send(event("u", 2), event("w", 2))
    driver.send(*(event("v", seq) for seq in range(1, 3)))
    assert driver.ledger("u") == []
    driver.send(event("v", 3))
    assert driver.ledger("u") == ["1-1:overflow"]
    assert driver.ledger("w") == []
    assert driver.pipeline.floor == 1
    assert driver.pipeline.wants_records()
    driver.send(event("v", 4))
    assert driver.ledger("w") == ["1-1:overflow"]
    assert driver.floor_stored() == 6


def test_something_else_that_holds_the_floor_closes_no_gap() -> None:
    driver = Driver(max_replay_records=5, retry_backoff_ms=10_000, retry_backoff_max_ms=60_000).own()
    driver.send(event("v", 1, fail=1), event("u", 2))
    driver.send(*(event("w", seq) for seq in range(1, 4)))
    assert not driver.pipeline.wants_records()
    driver.pass_ms(1)
    assert driver.ledger("u") == []
