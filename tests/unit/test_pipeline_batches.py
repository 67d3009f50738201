"""CONTRACT section 5, the pipeline's part: a batch handler is given many events at once, one of each user."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.effects import Death, Renew, Run
from tests.unit.pipeline_driver import Driver, event, final_elsewhere

LOCKINGS = ("event", "partition")


def batches(most: int = 10, **options: Any) -> Driver:
    return Driver(concurrency=most, batches=True, **options).own()


def given(driver: Driver) -> list[list[str]]:
    """Ids of each batch so far."""
    return [[entry.id for entry in run.entries] for run in driver.asked(Run)]


@pytest.mark.parametrize("locking", LOCKINGS)
def test_one_of_each_user_is_in_a_batch_and_the_next_in_the_next(locking: str) -> None:
    driver = batches(locking=locking)
    driver.send(event("u", 1), event("u", 2), event("v", 1), event("w"))
    while driver.running():
        driver.finish()
    assert ["u-1", "v-1"] in given(driver) or ["u-1", "v-1", "w-0"] in map(sorted, given(driver))
    assert given(driver)[-1] == ["u-2"]
    assert driver.order("u") == [1, 2]
    assert driver.floor_stored() == 4
    assert driver.locks() == []


def test_a_batch_has_at_most_so_many_and_the_next_waits_for_its_end() -> None:
    driver = batches(2)
    driver.send(*(event(user, 1) for user in "abcde"))
    driver.send(event("f", 1))
    assert given(driver) == [["a-1", "b-1"]]
    driver.finish()
    driver.finish()
    driver.finish()
    assert given(driver) == [["a-1", "b-1"], ["c-1", "d-1"], ["e-1", "f-1"]]
    assert driver.floor_stored() == 6


def test_an_entry_that_fails_is_tried_again_and_holds_only_its_user() -> None:
    driver = batches(retry_backoff_ms=100)
    driver.send(event("u", 1, fail=1), event("u", 2), event("v", 1), event("v", 2))
    driver.finish()
    assert driver.running() == ["v-2"]
    driver.pass_ms(100)
    assert driver.running() == ["v-2"]  # one batch at a time
    driver.finish()
    assert driver.running() == ["u-1"]
    driver.finish()
    driver.finish()
    assert driver.hash("u-1")["attempts"] == "2"
    assert driver.order("u") == driver.order("v") == [1, 2]
    assert driver.ran() == ["u-1", "v-1", "v-2", "u-1", "u-2"]
    assert driver.counts["handler_runs"] == 5


def test_an_entry_that_fails_for_good_is_dead_lettered_alone() -> None:
    driver = batches(max_attempts=2, retry_backoff_ms=0)
    driver.send(event("u", 1, fail=True), event("u", 2), event("v", 1), event("w", 1, reject="no"))
    while driver.running():
        driver.finish()
    letter = driver.letter("u-1")
    assert (letter["reason"], letter["attempts"]) == ("handler", "2")
    assert letter["error"].startswith("ValueError: it fails")
    assert (driver.letter("w-1")["reason"], driver.letter("w-1")["attempts"]) == ("rejected", "1")
    assert driver.order("u") == [2]
    assert driver.order("v") == [1]
    assert driver.produced == [3, 0]
    assert driver.floor_stored() == 4


def test_what_is_final_already_takes_its_turn_and_no_place() -> None:
    driver = batches(1)
    final_elsewhere(driver, "u-2", "u", 2)
    driver.send(event("u", 1), event("u", 2), event("u", 3))
    driver.finish()
    driver.finish()
    assert given(driver) == [["u-1"], ["u-3"]]
    assert driver.floor_stored() == 3


def test_all_of_a_batch_that_died_run_alone_and_one_by_one() -> None:
    driver = batches(death=Death("d1", [0, 1, 2], "exited with code 7"))
    driver.send(*(event(user, 1) for user in "abc"), event("c", 2), event("d", 1))
    for _ in range(5):
        driver.finish()
    assert given(driver) == [["d-1"], ["a-1"], ["b-1"], ["c-1"], ["c-2"]]
    assert driver.floor_stored() == 5


def test_one_that_has_killed_three_times_is_failed_and_its_user_moves_on() -> None:
    driver = Driver(concurrency=10, batches=True, death=Death("d1", [0], "exited with code 7"))
    driver.store.command("HSET", "partition:events:0", "suspect:0", "2 x")
    driver.own()
    driver.send(event("u", 1), event("u", 2), event("v", 1))
    driver.finish()
    driver.finish()
    assert driver.hash("u-1")["reason"] == "crash"
    assert driver.ran() == ["v-1", "u-2"]
    assert driver.order("u") == [2]


def test_memory_that_runs_out_in_a_batch_counts_for_none_of_it() -> None:
    driver = batches(max_attempts=1)
    driver.send(event("a", 1), event("hog", 1), event("b", 1))
    driver.finish(error=MemoryError())
    assert driver.running() == ["a-1"]
    driver.finish()
    driver.finish(error=MemoryError())  # alone by now
    driver.finish()
    assert driver.letter("hog-1")["reason"] == "handler"
    assert [driver.hash(id)["attempts"] for id in ("a-1", "b-1")] == ["1", "1"]
    assert driver.floor_stored() == 3


def test_a_drain_waits_for_the_batch_and_begins_none() -> None:
    driver = batches(2)
    driver.send(*(event(user, 1) for user in "abc"))
    driver.pipeline.drain()
    driver.settle()
    assert not driver.pipeline.drained
    driver.finish()
    assert driver.pipeline.drained
    assert driver.ran() == ["a-1", "b-1"]
    assert driver.locks() == []
    assert driver.floor_stored() == 2


def test_locks_are_renewed_while_a_batch_runs() -> None:
    driver = batches(inflight_ttl_ms=6_000)
    driver.send(event("u", 1), event("v", 1))
    for _ in range(4):
        driver.pass_ms(3_000)
        assert driver.locks() == ["u-1", "v-1"]
    assert driver.asked(Renew)


def test_a_rewind_waits_for_the_batch_and_throws_its_results_away() -> None:
    driver = batches()
    driver.send(event("u", 1), event("v", 1))
    driver.store.flush()
    driver.pass_ms(1_000)
    driver.pass_ms(5_000)
    assert not driver.pipeline.owned
    driver.finish()
    assert driver.pipeline.owned
    assert driver.status("u-1") == ""
    driver.read()
    driver.settle()
    driver.finish()
    assert driver.status("u-1") == driver.status("v-1") == "processed"
    assert len(given(driver)) == 2
