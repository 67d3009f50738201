"""CONTRACT section 5, the pipeline's part: async handlers run beside each other, one of each user."""

from __future__ import annotations

from asyncio import CancelledError
from typing import Any

import pytest

from eventproc.effects import Acquire, Death, Finalize, Renew, Run
from eventproc.errors import Fenced, Reject
from tests.unit.pipeline_driver import Driver, event, final_elsewhere

LOCKINGS = ("event", "partition")


def many(concurrency: int = 10, **options: Any) -> Driver:
    return Driver(concurrency=concurrency, **options).own()


@pytest.mark.parametrize("locking", LOCKINGS)
def test_one_of_each_user_runs_and_the_next_once_it_has_ended(locking: str) -> None:
    driver = many(locking=locking)
    driver.send(event("u", 1), event("u", 2), event("v", 1), event("w"), event("w", id="w2"))
    assert sorted(driver.running()) == ["u-1", "v-1", "w-0", "w2"]  # unsequenced ones stand in no order
    driver.finish("u-1")
    assert sorted(driver.running()) == ["u-2", "v-1", "w-0", "w2"]
    driver.finish()
    assert driver.order("u") == [1, 2]
    assert driver.floor_stored() == 5
    assert driver.locks() == []


def test_no_more_run_than_may_and_every_end_makes_room() -> None:
    driver = many(2)
    driver.send(*(event(user, 1) for user in "abcd"))
    assert driver.running() == ["a-1", "b-1"]
    driver.finish("b-1")
    assert driver.running() == ["a-1", "c-1"]
    driver.finish("c-1")
    assert driver.running() == ["a-1", "d-1"]


def test_what_has_ended_is_final_although_an_earlier_record_runs() -> None:
    driver = many()
    driver.send(event("slow", 1), event("u", 1), event("u", 2))
    driver.finish("u-1")
    driver.finish("u-2")
    assert driver.order("u") == [1, 2]
    assert driver.floor_stored() == 0  # it is held
    driver.finish("slow-1")
    assert driver.floor_stored() == 3


def test_a_retry_holds_only_its_user() -> None:
    driver = many(retry_backoff_ms=100)
    driver.send(event("u", 1, fail=1), event("u", 2), event("v", 1), event("v", 2))
    driver.finish("u-1", "v-1")
    assert driver.running() == ["v-2"]
    driver.pass_ms(100)
    assert driver.running() == ["v-2", "u-1"]
    driver.finish("u-1")
    driver.finish()
    assert driver.hash("u-1")["attempts"] == "2"
    assert driver.order("u") == [1, 2]
    assert driver.counts["handler_runs"] == 5


@pytest.mark.parametrize(
    ("error", "reason", "attempts"), [(CancelledError(), "handler", "1"), (Reject("no"), "rejected", "1")]
)
def test_whatever_ends_a_handler_is_its_failure(error: BaseException, reason: str, attempts: str) -> None:
    driver = many(max_attempts=1)
    driver.send(event("u", 1), event("u", 2))
    driver.finish("u-1", error=error)
    driver.finish()
    assert (driver.letter("u-1")["reason"], driver.letter("u-1")["attempts"]) == (reason, attempts)
    assert driver.order("u") == [2]
    assert driver.produced == [0]
    assert driver.floor_stored() == 2


def test_what_is_final_already_takes_its_turn_and_no_slot() -> None:
    driver = many(1)
    final_elsewhere(driver, "u-2", "u", 2)
    driver.store.command("RPUSH", "order:v", 7)  # so that v is known to Redis
    driver.send(event("u", 1), event("u", 2), event("u", 3))
    assert driver.running() == ["u-1"]
    driver.finish("u-1")
    assert driver.running() == ["u-3"]
    driver.finish()
    assert driver.floor_stored() == 3
    assert driver.counts["events.duplicate"] == 1


def test_a_rewind_waits_for_what_runs_and_throws_its_results_away() -> None:
    driver = many()
    driver.send(event("u", 1), event("v", 1))
    driver.store.flush()
    driver.pass_ms(1_000)  # the heartbeat finds it out
    driver.pass_ms(5_000)
    assert driver.counts["rewinds"] == 1
    assert not driver.pipeline.owned  # they still run
    assert driver.running() == ["u-1", "v-1"]
    driver.finish("u-1")
    assert not driver.pipeline.owned
    driver.finish("v-1")
    assert driver.pipeline.owned
    assert driver.status("u-1") == ""  # nothing came of it
    driver.read()
    driver.settle()
    assert sorted(driver.running()) == ["u-1", "v-1"]
    driver.finish()
    assert driver.status("u-1") == driver.status("v-1") == "processed"
    assert driver.hash("u-1")["attempts"] == "1"


def test_a_drain_waits_for_what_runs_and_begins_nothing() -> None:
    driver = many(2)
    driver.send(*(event(user, 1) for user in "abc"))
    driver.pipeline.drain()
    driver.settle()
    assert not driver.pipeline.drained
    driver.finish("b-1")
    assert not driver.pipeline.drained
    driver.finish("a-1")
    assert driver.pipeline.drained
    assert driver.ran() == ["b-1", "a-1"]
    assert driver.locks() == []
    assert driver.floor_stored() == 2


def test_locks_are_renewed_while_a_handler_runs_also_in_a_drain() -> None:
    driver = many(inflight_ttl_ms=6_000)
    driver.send(event("u", 1))
    for _ in range(4):
        driver.pass_ms(3_000)
        assert driver.locks() == ["u-1"]
    driver.pipeline.drain()
    for _ in range(4):
        driver.pass_ms(3_000)
        assert driver.locks() == ["u-1"]
    driver.finish()
    assert driver.pipeline.drained
    assert driver.locks() == []


def test_a_renewal_that_finds_another_owner_ends_the_worker() -> None:
    driver = many(inflight_ttl_ms=600)
    driver.hold(Finalize)
    driver.send(event("u", 1))
    driver.store.command("HSET", "partition:events:0", "epoch", 2**52, "owner", "other")
    with pytest.raises(Fenced):
        driver.pass_ms(200)
    assert driver.asked(Renew)


def test_a_lock_that_has_grown_old_behind_its_user_is_taken_again() -> None:
    driver = many(inflight_ttl_ms=1_000)
    driver.send(event("u", 1), event("u", 2))
    driver.pass_ms(900)
    driver.finish("u-1")
    assert driver.running() == ["u-2"]
    assert [entry.id for call in driver.asked(Acquire) for entry in call.entries].count("u-2") == 2
    driver.finish()
    assert driver.order("u") == [1, 2]


def test_all_that_ran_at_a_death_run_alone_and_one_by_one() -> None:
    driver = many(death=Death("d1", [0, 1, 2], "exited with code 7"))
    driver.send(*(event(user, 1) for user in "abc"), event("c", 2), event("d", 1))
    assert driver.running() == ["d-1"]
    driver.finish()
    for id in ("a-1", "b-1", "c-1", "c-2"):
        assert driver.running() == [id]
        driver.finish()
    assert driver.floor_stored() == 5
    assert [len(run.entries) for run in driver.asked(Run)] == [1] * 5


def test_nothing_begins_beside_a_suspect() -> None:
    driver = many(death=Death("d1", [0], "exited with code 7"))
    driver.send(event("u", 1), event("u", 2))
    assert driver.running() == ["u-1"]
    driver.send(event("v", 1))
    driver.pass_ms(1_000)
    assert driver.running() == ["u-1"]
    driver.finish()
    assert sorted(driver.running()) == ["u-2", "v-1"]


def test_one_that_has_killed_three_times_is_failed_and_its_user_moves_on() -> None:
    driver = Driver(concurrency=10, death=Death("d1", [0], "exited with code 7"))
    driver.store.command("HSET", "partition:events:0", "suspect:0", "2 x")
    driver.own()
    driver.send(event("u", 1), event("u", 2), event("v", 1))
    driver.finish()
    driver.finish()
    assert driver.hash("u-1")["reason"] == "crash"
    assert driver.order("u") == [2]
    assert driver.produced == [0]
    assert driver.ran() == ["v-1", "u-2"]


def test_memory_that_runs_out_beside_others_counts_for_nobody() -> None:
    driver = many(max_attempts=1)
    driver.send(event("innocent", 1), event("hog", 1))
    driver.finish("innocent-1", error=MemoryError())
    assert driver.running() == ["hog-1"]
    driver.finish("hog-1", error=MemoryError())  # alone by now
    assert driver.letter("hog-1")["reason"] == "handler"
    assert driver.running() == ["innocent-1"]
    driver.finish()
    assert driver.hash("innocent-1")["attempts"] == "1"
    assert driver.locks() == []


def test_a_user_who_is_set_aside_runs_nothing_and_the_others_go_on() -> None:
    driver = many()
    driver.store.command("SET", "order:u", "x")
    driver.send(event("v", 1), event("u", 1), event("u", 2))
    assert "u-1" not in driver.running()
    driver.finish()
    assert driver.order("v") == [1]
    driver.store.command("DEL", "order:u")
    driver.pass_ms(5_000)
    driver.finish("u-1")
    driver.finish("u-2")
    assert driver.order("u") == [1, 2]


def test_a_user_whose_key_goes_wrong_while_it_runs_is_held_back_in_order() -> None:
    driver = many()
    driver.send(event("u", 1), event("u", 2), event("u", 3))
    driver.store.command("SET", "order:u", "x")
    driver.finish("u-1")
    driver.finish()  # u-2, if it had begun by then
    driver.store.command("DEL", "order:u")
    driver.pass_ms(5_000)
    while driver.running():
        driver.finish()
    assert driver.order("u") == [1, 2, 3]
    assert driver.floor_stored() == 3


def test_what_waits_behind_a_running_handler_stops_reading_and_what_waits_for_a_retry_does_not() -> None:
    driver = many(10, batch_max=10, retry_backoff_ms=10_000)
    driver.send(*(event("slow", seq) for seq in range(1, 61)))
    assert driver.running() == ["slow-1"]
    assert not driver.pipeline.wants_records()
    assert len(driver.locks()) <= 30  # nor are they locked long before their turn
    driver.finish("slow-1", error=ValueError())
    assert driver.running() == []
    assert driver.pipeline.wants_records()
    driver.send(event("other", 1))
    assert driver.running() == ["other-1"]
