"""CONTRACT 4.6 and the locks of section 3: failing handlers, pauses, what waits for whom."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.effects import Acquire, Finalize, Produce, Run
from eventproc.errors import Reject
from eventproc.event import Event
from tests.unit.pipeline_driver import Driver, event

LOCKINGS = ("event", "partition")


@pytest.mark.parametrize("locking", LOCKINGS)
def test_a_retry_holds_up_only_its_user(locking: str) -> None:
    driver = Driver(locking=locking, retry_backoff_ms=100).own()
    driver.send(event("u", 1, fail=1), event("u", 2), event("v", 1), event("u", 3))
    assert driver.ran() == ["u-1", "v-1"]
    driver.send(event("v", 2), event("u", 4))
    assert driver.ran() == ["u-1", "v-1", "v-2"]
    driver.pass_ms(100)
    assert driver.runs[3:] == [("u-1", 2), ("u-2", 1), ("u-3", 1), ("u-4", 1)]
    assert driver.order("u") == [1, 2, 3, 4]
    assert driver.hash("u-1")["attempts"] == "2"
    assert driver.counts["retries"] == 1


def test_what_was_not_run_behind_a_failure_goes_back_in_order() -> None:
    driver = Driver(retry_backoff_ms=10).own()
    driver.send(*(event("u", seq, fail=int(seq in (2, 4))) for seq in range(1, 7)))
    assert driver.ran() == ["u-1", "u-2"]
    driver.pass_ms(10)
    assert driver.ran() == ["u-1", "u-2", "u-2", "u-3", "u-4"]
    driver.pass_ms(10)
    assert driver.ran() == ["u-1", "u-2", "u-2", "u-3", "u-4", "u-4", "u-5", "u-6"]
    assert driver.order("u") == [1, 2, 3, 4, 5, 6]


def test_a_batch_that_arrives_behind_a_retry_waits_too_and_in_order() -> None:
    driver = Driver(retry_backoff_ms=10).own()
    driver.hold(Run)
    driver.send(event("u", 1, fail=1), event("u", 2))
    driver.send(event("u", 3))  # granted while the first two run
    driver.free()
    driver.send(event("u", 4))
    assert driver.ran() == ["u-1"]
    driver.pass_ms(10)
    assert driver.ran() == ["u-1", "u-1", "u-2", "u-3", "u-4"]


def test_the_pause_grows_with_the_attempt() -> None:
    driver = Driver(retry_backoff_ms=10, max_attempts=4).own()
    driver.send(event("u", 1, fail=True))
    for pause_ms in (10, 20, 30):
        before = len(driver.runs)
        driver.pass_ms(pause_ms - 1)
        assert len(driver.runs) == before
        driver.pass_ms(1)
        assert len(driver.runs) == before + 1
    assert driver.hash("u-1")["attempts"] == "4"


def test_an_exponential_pause_doubles_with_jitter_and_has_a_limit() -> None:
    driver = Driver(
        retry_backoff="exponential", retry_backoff_ms=100, retry_backoff_max_ms=300, max_attempts=6
    ).own()
    driver.send(event("u", 1, fail=True))
    pauses = []
    for _ in range(5):
        due_ms = driver.pipeline.next_deadline_ms()
        pauses.append(due_ms - driver.clock.now_ms)
        driver.pass_ms(pauses[-1])
    assert driver.status("u-1") == "failed"
    assert 50 <= pauses[0] <= 100
    assert 100 <= pauses[1] <= 200
    assert all(200 <= pause <= 300 for pause in pauses[2:])


@pytest.mark.parametrize("locking", LOCKINGS)
def test_attempts_used_up_fail_the_event_and_the_user_goes_on(locking: str) -> None:
    driver = Driver(locking=locking, retry_backoff_ms=5).own()
    driver.hold(Produce)  # the next seq does not wait for the dead letter's acknowledgement
    driver.send(event("u", 1, fail=True), event("u", 2))
    driver.pass_ms(5)
    driver.pass_ms(10)
    assert driver.runs == [("u-1", 1), ("u-1", 2), ("u-1", 3), ("u-2", 1)]
    failed = driver.hash("u-1")
    assert (failed["status"], failed["attempts"], failed["reason"]) == ("failed", "3", "handler")
    assert failed["error"].startswith("ValueError: it fails (pipeline_driver.py:")
    assert (failed["partition"], failed["offset"]) == ("0", "0")
    assert driver.letter("u-1")["attempts"] == "3"
    assert driver.order("u") == [2]
    assert driver.ledger("u") == []


def test_a_failure_at_the_tail_is_remembered_by_the_next_key_until_the_list_tells_enough() -> None:
    driver = Driver(max_attempts=1).own()
    driver.send(event("u", 1, fail=True))
    assert (driver.order("u"), driver.following("u")) == ([], 2)
    driver.send(event("u", 2))
    assert (driver.order("u"), driver.following("u")) == ([2], 0)


def test_a_rejected_event_is_not_retried() -> None:
    driver = Driver().own()
    driver.send(event("u", 1, reject="no such account"), event("u", 2))
    assert driver.runs == [("u-1", 1), ("u-2", 1)]
    assert driver.letter("u-1")["reason"] == "rejected"
    assert driver.letter("u-1")["error"] == "no such account"
    assert driver.hash("u-1")["attempts"] == "1"
    assert driver.counts["retries"] == 0


@pytest.mark.parametrize("reason", [7, None, ["a"], "\ud800"], ids=["int", "none", "list", "surrogate"])
def test_a_reject_with_an_odd_reason_is_recorded_all_the_same(reason: object) -> None:
    driver = Driver().own()

    def reject() -> None:
        raise Reject(reason)  # type: ignore[arg-type]

    driver.during["u-1"] = reject
    driver.send(event("u", 1))
    assert driver.status("u-1") == "failed"
    assert driver.letter("u-1")["reason"] == "rejected"


def test_a_message_that_is_no_text_does_not_keep_a_failure_from_being_recorded() -> None:
    driver = Driver(max_attempts=1).own()

    def fail() -> None:
        raise ValueError("half a pair: \ud83d")

    driver.during["u-1"] = fail
    driver.send(event("u", 1))
    assert driver.status("u-1") == "failed"
    assert driver.letter("u-1")["error"].startswith("ValueError: half a pair")


@pytest.mark.parametrize("locking", LOCKINGS)
def test_an_unsequenced_event_that_fails_holds_nobody_up(locking: str) -> None:
    driver = Driver(locking=locking, retry_backoff_ms=10).own()
    driver.send(event("u", 0, id="free", fail=1), event("u", 1), event("u", 0, id="other"))
    assert sorted(driver.ran()) == ["free", "other", "u-1"]
    driver.pass_ms(10)
    assert driver.runs[3:] == [("free", 2)]
    assert driver.status("free") == "processed"


def test_a_lock_too_old_to_last_through_a_run_is_taken_again_first() -> None:
    driver = Driver(retry_backoff_ms=16_000, inflight_ttl_ms=30_000).own()
    driver.send(event("u", 1, fail=1), event("u", 2), event("u", 3))
    driver.hold(Acquire)
    driver.pass_ms(16_000)
    assert driver.ran() == ["u-1"]
    [again] = driver.waiting(Acquire)
    assert [entry.id for entry in again.entries] == ["u-1"]
    driver.free()
    assert driver.ran() == ["u-1", "u-1", "u-2", "u-3"]
    assert driver.locks() == []


def test_a_lock_that_another_worker_took_meanwhile_is_waited_for() -> None:
    driver = Driver(retry_backoff_ms=16_000, inflight_ttl_ms=30_000).own()
    driver.send(event("u", 1, fail=1), event("u", 2))
    driver.store.command("SET", "inflight:u-1", "events:3:99:someone")
    driver.pass_ms(16_000)
    driver.pass_ms(1_000)
    assert driver.ran() == ["u-1"]
    driver.store.command("DEL", "inflight:u-1")
    driver.pass_ms(50)
    assert driver.ran() == ["u-1", "u-1", "u-2"]


def test_a_locked_id_is_asked_for_again_and_only_its_user_waits() -> None:
    driver = Driver().own()
    driver.store.command("SET", "inflight:u-1", "events:3:99:someone")
    driver.send(event("u", 1), event("u", 2), event("v", 1))
    assert driver.ran() == ["v-1"]
    driver.pass_ms(49)
    assert len(driver.asked(Acquire)) == 1
    driver.pass_ms(1)
    assert len(driver.asked(Acquire)) == 2
    driver.store.command("DEL", "inflight:u-1")
    driver.pass_ms(50)
    assert driver.ran() == ["v-1", "u-1", "u-2"]
    assert driver.floor_stored() == 3


def test_a_locked_id_that_becomes_final_elsewhere_is_not_run_here() -> None:
    driver = Driver().own()
    driver.store.command("SET", "inflight:a", "events:3:99:someone")
    driver.send(event("u", 0, id="a"))
    driver.store.command("DEL", "inflight:a")
    driver.store.command("HSET", "event:a", "status", "processed", "userId", "u", "attempts", 1)
    driver.pass_ms(50)
    assert driver.runs == []
    assert driver.counts["events.duplicate"] == 1
    assert driver.floor_stored() == 1


def test_no_more_is_locked_than_runs_within_half_a_locks_life() -> None:
    driver = Driver(inflight_ttl_ms=1_000).own()
    driver.took_ms = 100
    driver.send(event("u", 1))  # 100 ms each, as far as is known
    driver.hold(Run)
    driver.send(*(event("u", seq) for seq in range(2, 21)))
    assert len(driver.asked(Acquire)[-1].entries) <= 5


def test_slow_handlers_run_in_small_slices() -> None:
    driver = Driver().own()
    driver.took_ms = 200
    driver.send(event("u", 1))
    driver.send(*(event("u", seq) for seq in range(2, 6)))
    assert [len(run.entries) for run in driver.asked(Run)] == [1, 1, 1, 1, 1]


def test_a_failing_event_that_another_worker_made_final_is_a_duplicate() -> None:
    driver = Driver(max_attempts=1).own()
    driver.hold(Finalize)
    driver.send(event("u", 1, fail=True))
    driver.store.command("HSET", "event:u-1", "status", "processed", "userId", "u", "seq", 1, "attempts", 1)
    driver.free()
    assert driver.hash("u-1")["status"] == "processed"
    assert (driver.letters(), driver.produced) == ([], [])
    assert driver.counts["events.duplicate"] == 1
    assert driver.commits[-1] == 1


@pytest.mark.parametrize("concurrency", [0, 8])
def test_a_retry_is_given_the_event_as_it_came(concurrency: int) -> None:
    driver = Driver(retry_backoff_ms=1, concurrency=concurrency).own()
    seen: list[tuple[int, dict[str, Any]]] = []

    def handle(given: Event) -> None:
        seen.append((given.attempt, dict(given.payload)))
        given.payload.clear()
        given.document.clear()
        if given.attempt == 1:
            raise ConnectionError("away for a moment")

    driver.runner._handler = handle
    driver.send(event("u", 1, amount=5))
    for _ in range(3):
        if concurrency:
            driver.finish()
        driver.pass_ms(50)
    assert seen == [(1, {"amount": 5, "seq": 1}), (2, {"amount": 5, "seq": 1})]
    assert driver.status("u-1") == "processed"
