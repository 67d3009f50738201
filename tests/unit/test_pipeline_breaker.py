"""The breaker in the pipeline: nothing more is dead-lettered, what fails stays unfinished, how it goes on."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.effects import FetchEnd, Run
from tests.simulation.memory_store import MemoryStore
from tests.unit.pipeline_driver import Driver, ManualClock, event, final_elsewhere

BAD = b"no json"


def make(most: int = 2, **settings: Any) -> Driver:
    settings = {"max_attempts": 2, "retry_backoff_ms": 0} | settings
    return Driver(dlq_max_consecutive=most, **settings).own()


def settle(driver: Driver) -> None:
    """Retries come with time, and so does a floor that nothing else is written with."""
    for _ in range(20):
        driver.pass_ms(1)
    driver.pass_ms(100)


@pytest.mark.parametrize("locking", ["event", "partition"])
def test_it_opens_before_the_next_dead_letter_and_the_event_stays_unfinished(locking: str) -> None:
    driver = make(locking=locking)
    offsets = driver.send(*(event(f"u{n}", 1, fail=True) for n in range(5)), event("good", 1))
    settle(driver)
    assert driver.letters() == ["u0-1", "u1-1"]
    assert [driver.status(f"u{n}-1") for n in range(5)] == ["failed", "failed", "", "", ""]
    assert driver.status("good-1") == "processed"  # it was on its way
    assert driver.pipeline.stopped == "2 dead letters in a row (dlq_max_consecutive)"
    assert driver.pipeline.next_dead_letter is not None
    assert driver.pipeline.next_dead_letter.id == "u2-1"
    assert driver.pipeline.paused
    assert driver.floor_stored() == driver.pipeline.floor == offsets[2]
    [told] = [fields for name, fields in driver.warnings if name == "dead_letters_stopped"]
    assert (told["id"], told["user"], told["offset"]) == ("u2-1", "u2", offsets[2])
    assert "eventproc-supervisor resume --partition 0" in told["remedy"]


def test_while_it_is_open_nothing_is_read_locked_or_run() -> None:
    driver = make(1)
    driver.send(event("u", 1, fail=True), event("v", 1, fail=True))
    settle(driver)
    runs = len(driver.runs)
    assert driver.pipeline.stopped
    assert not driver.pipeline.wants_records()
    driver.write(event("w", 1))
    assert driver.read() == 0
    driver.pass_ms(60_000)
    assert len(driver.runs) == runs


def test_resumed_the_last_run_is_done_once_more() -> None:
    driver = make(1)
    driver.send(event("u", 1, fail=True), event("v", 1, fail=2), event("v", 2))
    settle(driver)
    assert driver.runs.count(("v-1", 2)) == 1
    assert driver.order("v") == []
    driver.pipeline.close_breaker()
    assert driver.pipeline.next_dead_letter is None
    settle(driver)
    assert driver.runs.count(("v-1", 2)) == 2
    # it fails again, as the first dead letter since; its user goes on
    assert driver.status("v-1") == "failed"
    assert driver.hash("v-1")["attempts"] == "2"
    assert driver.order("v") == [2]
    assert not driver.pipeline.stopped
    assert driver.floor_stored() == driver.end


@pytest.mark.parametrize("batch_max", [1, 500])  # what follows stands in line, or was in the same run
@pytest.mark.parametrize("max_attempts", [1, 2])  # with a retry its lane is kept apart already
def test_a_cured_handler_processes_what_was_held_in_order(batch_max: int, max_attempts: int) -> None:
    driver = make(1, batch_max=batch_max, max_attempts=max_attempts)
    sick = [True]

    def fall_ill() -> None:
        if sick:
            raise ValueError("the database is away")

    driver.send(event("u", 1, fail=True))
    for seq in (1, 2, 3):
        driver.during[f"v-{seq}"] = fall_ill
    driver.send(*(event("v", seq) for seq in (1, 2, 3)))
    settle(driver)
    assert driver.pipeline.stopped
    sick.clear()
    driver.pipeline.close_breaker()
    settle(driver)
    assert driver.order("v") == [1, 2, 3]
    assert [driver.hash(f"v-{seq}")["attempts"] for seq in (1, 2, 3)] == [str(max_attempts), "1", "1"]
    assert driver.letters() == ["u-1"]
    assert driver.floor_stored() == driver.end
    assert driver.locks() == []


def test_it_opens_again_when_it_goes_on_like_that() -> None:
    driver = make(2)
    driver.send(*(event(f"u{n}", 1, fail=True) for n in range(7)))
    for letters in (2, 4, 6, 7):
        settle(driver)
        assert len(driver.letters()) == letters
        assert bool(driver.pipeline.stopped) == (letters < 7)
        driver.pipeline.close_breaker()
    assert driver.floor_stored() == 7


def test_a_success_between_two_failures_keeps_it_closed_within_one_run_too() -> None:
    driver = Driver(dlq_max_consecutive=1, max_attempts=1).own()
    driver.hold(Run)
    for n in range(6):
        driver.send(event(f"u{n}", 1, fail=n % 2 == 0))
    driver.free()
    assert len(driver.letters()) == 3
    assert not driver.pipeline.stopped


@pytest.mark.parametrize("batches", [False, True])
def test_a_success_between_two_failures_keeps_it_closed_beside_the_loop_too(batches: bool) -> None:
    driver = Driver(dlq_max_consecutive=1, max_attempts=1, concurrency=10, batches=batches).own()
    for n in range(6):
        driver.send(event(f"u{n}", 1, fail=n % 2 == 0))
        driver.finish()
    assert len(driver.letters()) == 3
    assert not driver.pipeline.stopped


@pytest.mark.parametrize("reason", ["invalid", "late", "stale", "id_conflict", "seq_jump"])
def test_every_kind_of_dead_letter_is_held_and_sent_when_resumed(reason: str) -> None:
    driver = make(1, gap_timeout_ms=100, max_seq_jump=10)
    final_elsewhere(driver, "taken", "other", 1)
    driver.send(event("u", 2))
    driver.pass_ms(100)  # seq 1 is given up
    driver.send(event("x", 1, fail=True))
    settle(driver)
    assert driver.letters() == ["x-1"]
    body = {
        "invalid": BAD,
        "late": event("u", 1),
        "stale": event("u", 2, id="second"),
        "id_conflict": event("v", 1, id="taken"),
        "seq_jump": event("u", 1000),
    }[reason]
    [offset] = driver.send(body)
    settle(driver)
    assert driver.pipeline.stopped
    assert driver.letters() == ["x-1"]
    assert driver.floor_stored() == offset
    driver.pipeline.close_breaker()
    settle(driver)
    assert len(driver.letters()) == 2
    assert driver.letter(driver.letters()[1])["reason"] == reason
    assert driver.produced[-1] == offset
    assert driver.floor_stored() == driver.end


def test_gap_timers_stand_still_and_start_anew() -> None:
    driver = make(1, gap_timeout_ms=1000)
    driver.send(event("u", 2), event("v", 1, fail=True), event("w", 1, fail=True))
    settle(driver)
    assert driver.pipeline.stopped
    driver.pass_ms(60_000)
    assert driver.asked(FetchEnd) == []
    assert driver.ledger("u") == []
    assert driver.pipeline.next_deadline_ms() == -1  # nothing to wake up for
    driver.pipeline.close_breaker()
    driver.settle()
    driver.pass_ms(999)
    assert driver.ledger("u") == []
    driver.pass_ms(1)
    assert driver.ledger("u") == ["1-1:timeout"]


def test_draining_leaves_what_is_held_to_the_next_start() -> None:
    driver = make(1)
    driver.send(event("u", 1, fail=True), event("v", 1, fail=True), BAD, event("w", 1))
    settle(driver)
    driver.pipeline.drain()
    driver.pass_ms(1)
    assert driver.pipeline.drained
    assert driver.locks() == []
    assert driver.commits[-1] == driver.floor_stored() == 1

    after = Driver(
        store=driver.store, clock=driver.clock, end=4, committed=1, max_attempts=1, force=True
    ).own()
    after.log = driver.log
    after.fetch_at = 1
    after.read()
    after.settle()
    assert sorted(after.letters()) == ["events-0-2", "u-1", "v-1"]
    assert after.floor_stored() == 4


def test_a_replayed_dead_letter_is_produced_all_the_same() -> None:
    """It is final as failed already; only its copy is missing."""
    driver = make(1)
    driver.lose_produced = True
    driver.send(event("u", 1, fail=True))
    settle(driver)
    again = make(1, store=driver.store, clock=driver.clock, force=True, end=1)
    again.log = driver.log
    again.read()
    again.settle()
    assert again.produced == [0]
    assert not again.pipeline.stopped


def test_a_drain_drops_the_lock_of_what_was_only_looked_up_and_is_held() -> None:
    driver = Driver(dlq_max_consecutive=1, max_attempts=1).own()
    driver.send(event("u", 1), event("u", 2))
    driver.send(event("a", 1, reject="no"))
    driver.send(event("u", 1, id="late"))  # below the expected seq: looked up, locked, and not dead-lettered
    assert driver.pipeline.stopped
    assert driver.locks() == ["late"]
    driver.pipeline.drain()
    driver.settle()
    assert driver.pipeline.drained
    assert driver.locks() == []


@pytest.mark.parametrize("concurrency", [0, 4])
def test_what_kills_its_worker_is_held_too_and_not_run_again(concurrency: int) -> None:
    clock = ManualClock()
    store = MemoryStore(clock)
    charges = [text for at in (0, 1) for text in (f"suspect:{at}", "3 was killed by SIGSEGV")]
    store.command("HSET", "partition:events:0", *charges)
    driver = Driver(store=store, clock=clock, dlq_max_consecutive=1, concurrency=concurrency).own()
    driver.send(event("a", 1), event("b", 1), event("b", 2))
    assert driver.hash("a-1")["reason"] == "crash"
    assert driver.pipeline.stopped
    assert driver.pipeline.next_dead_letter is not None
    assert driver.pipeline.next_dead_letter.id == "b-1"
    assert (driver.status("b-1"), driver.ran(), driver.running()) == ("", [], [])
    driver.pipeline.close_breaker()
    driver.settle()
    if concurrency:
        driver.finish("b-2")
    assert driver.hash("b-1")["reason"] == "crash"
    assert driver.ran() == ["b-2"]
    assert driver.order("b") == [2]
    assert driver.floor_stored() == 3
