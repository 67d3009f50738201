"""CONTRACT 4.3 and 4.4: ids that come again, seqs that are taken, seqs that come late."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.effects import Acquire, Finalize, Produce, Run
from tests.unit.pipeline_driver import Driver, event, final_elsewhere

LOCKINGS = ("event", "partition")


def until(stage: str, locking: str = "event", **settings: Any) -> Driver:
    """A driver whose event u-1 has come to this stage of its way and no further."""
    driver = Driver(locking=locking, retry_backoff_ms=100, **settings).own()
    if stage == "parked":
        driver.send(event("u", 2, id="u-1"))
        return driver
    held = {"queued": Acquire, "running": Run, "finalizing": Finalize}.get(stage)
    if held is not None:
        driver.hold(held)
    driver.send(event("u", 1, fail=int(stage == "retrying")))
    return driver


def come_to_rest(driver: Driver) -> None:
    driver.free()
    if driver.pipeline.buffer.parked:
        driver.send(event("u", 1, id="u-first"))
    driver.pass_ms(100)
    assert driver.pipeline.is_idle()
    assert driver.floor_stored() == driver.end == driver.commits[-1]
    assert driver.locks() == []


STAGES = ("parked", "queued", "running", "finalizing", "retrying", "final")


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_copy_of_an_event_is_counted_and_never_run(stage: str, locking: str) -> None:
    driver = until(stage, locking)
    seq = 2 if stage == "parked" else 1
    driver.send(event("u", seq, id="u-1"))
    before = driver.hash("u-1")
    come_to_rest(driver)
    assert [attempt for id, attempt in driver.runs if id == "u-1"] == ([1, 2] if stage == "retrying" else [1])
    assert driver.counts["events.duplicate"] == 1
    assert (driver.letters(), driver.produced) == ([], [])
    assert driver.hash("u-1") == (before or driver.hash("u-1"))
    assert driver.order("u") == [1, 2][:seq]


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("stage", STAGES)
def test_a_second_event_with_the_seq_of_another_is_stale_at_once(stage: str, locking: str) -> None:
    driver = until(stage, locking)
    seq = 2 if stage == "parked" else 1
    [offset] = driver.send(event("u", seq, id="second"))
    if stage not in ("queued", "finalizing"):  # there the calls are held
        assert driver.status("second") == "skipped"
    come_to_rest(driver)
    skipped = driver.hash("second")
    assert (skipped["status"], skipped["attempts"], skipped["reason"]) == ("skipped", "0", "stale")
    assert driver.letter("second")["reason"] == "stale"
    assert driver.produced == [offset]
    assert "second" not in driver.ran()
    assert driver.status("u-1") == "processed"
    assert driver.order("u") == [1, 2][:seq]


@pytest.mark.parametrize("locking", LOCKINGS)
def test_copies_in_one_batch_are_duplicates_of_the_first(locking: str) -> None:
    driver = Driver(locking=locking).own()
    driver.send(event("u", 1), event("u", 1), event("u", 2), event("u", 1), event("u", 2))
    assert driver.ran() == ["u-1", "u-2"]
    assert driver.counts["events.duplicate"] == 3
    assert driver.floor_stored() == 5


@pytest.mark.parametrize("locking", LOCKINGS)
def test_a_copy_of_a_failed_event_rewrites_and_produces_nothing(locking: str) -> None:
    driver = Driver(locking=locking, max_attempts=1).own()
    driver.send(event("u", 1, fail=True))
    before = (driver.hash("u-1"), driver.letter("u-1"), driver.produced[:])
    driver.pass_ms(100)
    driver.send(event("u", 1, fail=True))
    assert (driver.hash("u-1"), driver.letter("u-1"), driver.produced) == before
    assert driver.letters() == ["u-1"]
    assert driver.runs == [("u-1", 1)]
    assert driver.counts["events.duplicate"] == 1
    assert driver.floor_stored() == 2


def test_a_copy_may_come_while_the_first_is_looked_up_below_the_expected_seq() -> None:
    driver = Driver().own()
    driver.send(event("u", 1), event("u", 2))
    driver.hold(Acquire)
    driver.send(event("u", 1, id="late"))
    driver.send(event("u", 1, id="late"))
    driver.free()
    assert driver.status("late") == "skipped"
    assert driver.produced == [2]
    assert driver.counts["events.duplicate"] == 1
    assert driver.floor_stored() == 4


# --- below the expected seq ---------------------------------------------------------------------------


def test_below_the_expected_seq_the_ledger_tells_late_from_stale() -> None:
    driver = Driver(gap_timeout_ms=100).own()
    driver.send(event("u", 1), event("u", 4))
    driver.pass_ms(100)
    assert driver.ledger("u") == ["2-3:timeout"]
    driver.send(event("u", 3, id="late"), event("u", 1, id="stale"), event("u", 4, id="stale too"))
    assert driver.letter("late")["reason"] == "late"
    assert driver.letter("stale")["reason"] == driver.letter("stale too")["reason"] == "stale"
    for id in ("late", "stale", "stale too"):
        assert (driver.status(id), driver.hash(id)["attempts"]) == ("skipped", "0")
    assert driver.order("u") == [1, 4]
    assert driver.produced == [2, 3, 4]
    assert driver.ran() == ["u-1", "u-4"]


def test_below_the_expected_seq_nothing_is_dead_lettered_if_the_policy_says_skip() -> None:
    driver = Driver(late_policy="skip").own()
    driver.send(event("u", 1))
    driver.send(event("u", 1, id="stale"))
    assert driver.status("stale") == "skipped"
    assert "reason" not in driver.hash("stale")
    assert (driver.letters(), driver.produced) == ([], [])
    assert driver.floor_stored() == driver.commits[-1] == 2


def test_two_ids_for_one_seq_in_the_ledger_are_both_late() -> None:
    driver = Driver(gap_timeout_ms=100).own()
    driver.send(event("u", 2))
    driver.pass_ms(100)
    driver.send(event("u", 1, id="a"), event("u", 1, id="b"))
    assert driver.letter("a")["reason"] == driver.letter("b")["reason"] == "late"


def test_a_second_id_for_the_seq_of_a_failed_event_is_stale() -> None:
    driver = Driver(max_attempts=1).own()
    driver.send(event("u", 1, fail=True))
    driver.send(event("u", 1, id="again"))
    assert driver.letter("again")["reason"] == "stale"
    assert driver.order("u") == []


# --- ids that are another event's ---------------------------------------------------------------------


@pytest.mark.parametrize("locking", LOCKINGS)
def test_an_id_of_another_event_is_a_conflict_under_the_position_and_moves_its_user_on(locking: str) -> None:
    driver = Driver(locking=locking).own()
    final_elsewhere(driver, "taken", "w", 5)
    before = driver.hash("taken")
    [offset, *_] = driver.send(event("u", 1, id="taken"), event("u", 2))
    letter = driver.letter(f"events-0-{offset}")
    assert letter["reason"] == "id_conflict"
    assert letter["eventId"] == f"events-0-{offset}"
    assert driver.hash("taken") == before
    assert driver.letter("taken") == driver.hash(f"events-0-{offset}") == {}
    assert driver.produced == [offset]
    assert driver.order("u") == [2]
    assert driver.floor_stored() == 2
    if locking == "event":
        assert driver.ran() == ["u-2"]


@pytest.mark.parametrize("locking", LOCKINGS)
def test_a_conflict_at_the_tail_is_remembered_by_the_next_key(locking: str) -> None:
    driver = Driver(locking=locking).own()
    final_elsewhere(driver, "taken", "w", 5)
    driver.send(event("u", 1, id="taken"))
    assert (driver.order("u"), driver.following("u")) == ([], 2)


def test_an_unsequenced_event_with_anothers_id_is_a_conflict() -> None:
    driver = Driver().own()
    driver.send(event("u", 1, id="a"))
    [offset] = driver.send(event("u", 0, id="a"))
    assert driver.letter(f"events-0-{offset}")["reason"] == "id_conflict"
    assert driver.produced == [offset]
    assert driver.runs == [("a", 1)]
    assert driver.floor_stored() == 2


@pytest.mark.parametrize(
    ("held", "locking"),
    [(Acquire, "event"), (Run, "event"), (Finalize, "event"), (Run, "partition"), (Finalize, "partition")],
    ids=["acquire", "run", "finalize", "run-partition", "finalize-partition"],
)
def test_an_id_that_is_under_way_for_another_seq_is_waited_for(held: type, locking: str) -> None:
    driver = Driver(locking=locking).own()
    driver.hold(held)
    driver.send(event("u", 1, id="a"))
    [offset, _] = driver.send(event("v", 1, id="a"), event("v", 2))
    assert "v-2" not in driver.ran()
    driver.free()
    assert driver.runs == [("a", 1), ("v-2", 1)]
    assert driver.order("u") == [1]
    assert driver.order("v") == [2]
    assert driver.letter(f"events-0-{offset}")["reason"] == "id_conflict"
    assert driver.floor_stored() == 3


def test_an_id_twice_in_one_users_chain_conflicts_with_itself() -> None:
    driver = Driver().own()
    driver.send(event("u", 1, id="a"), event("u", 2, id="a"), event("u", 3))
    assert driver.ran() == ["a", "u-3"]
    assert driver.order("u") == [1, 3]
    assert driver.letter("events-0-1")["reason"] == "id_conflict"


def test_a_stale_event_with_the_id_of_another_is_a_conflict() -> None:
    driver = Driver().own()
    driver.send(event("u", 1), event("u", 2), event("v", 1))
    driver.send(event("u", 1, id="v-1"))
    assert driver.letter("events-0-3")["reason"] == "id_conflict"
    assert driver.hash("v-1")["userId"] == "v"
    assert driver.order("u") == [1, 2]


@pytest.mark.parametrize("locking", LOCKINGS)
def test_with_only_the_marker_left_it_is_a_duplicate_and_its_user_moves_on(locking: str) -> None:
    driver = Driver(locking=locking).own()
    driver.store.command("SET", "dedup:u-1", "1")
    driver.send(event("u", 1), event("u", 2))
    assert driver.hash("u-1") == {}
    assert (driver.letters(), driver.produced) == ([], [])
    assert driver.order("u") == [2]
    assert driver.counts["events.duplicate"] == 1
    assert driver.floor_stored() == 2
    if locking == "event":
        assert driver.ran() == ["u-2"]


def test_an_event_that_is_final_already_passes_in_its_turn() -> None:
    driver = Driver(retry_backoff_ms=100).own()
    final_elsewhere(driver, "u-2", "u", 2)
    driver.send(event("u", 1, fail=1), event("u", 2), event("u", 3))
    assert driver.following("u") == 0
    assert driver.ran() == ["u-1"]
    driver.pass_ms(100)
    assert driver.runs == [("u-1", 1), ("u-1", 2), ("u-3", 1)]
    assert driver.pipeline.buffer.expected("u") == 4
    assert driver.order("u")[-1] == 3


def test_an_event_that_is_final_already_and_last_moves_its_user_on() -> None:
    driver = Driver().own()
    final_elsewhere(driver, "u-1", "u", 1)
    driver.send(event("u", 1))
    assert driver.runs == []
    assert driver.counts["events.duplicate"] == 1
    assert max(driver.following("u"), *driver.order("u"), 0) >= 1
    assert driver.locks() == []


def test_an_id_whose_lock_ran_out_and_that_became_final_while_its_handler_ran_is_not_rewritten() -> None:
    driver = Driver().own()

    def lose() -> None:
        driver.store.command("DEL", "inflight:u-1")
        final_elsewhere(driver, "u-1", "w", 9)

    driver.during["u-1"] = lose
    driver.send(event("u", 1), event("u", 2))
    assert driver.hash("u-1")["userId"] == "w"
    assert driver.letter("events-0-0")["reason"] == "id_conflict"
    assert driver.produced == [0]
    assert driver.order("u") == [2]
    assert driver.floor_stored() == 2


def test_the_floor_stays_above_what_another_worker_has_processed_while_its_handler_ran() -> None:
    """Redis has seen that it is processed, and has let the floor pass: it does not come down again."""
    driver = Driver(locking="partition").own()
    driver.during["u-1"] = lambda: final_elsewhere(driver, "u-1", "u", 1)
    driver.hold(Acquire)
    driver.send(event("u", 1), event("v", 1))
    assert driver.floor_stored() == 2
    driver.send(event("v", 2))
    assert driver.pipeline.floor == driver.floor_stored() == 3
    driver.free()
    assert driver.counts["events.duplicate"] == 1
    assert (driver.letters(), driver.produced, driver.order("u"), driver.order("v")) == ([], [], [1], [1, 2])
    assert driver.pipeline.is_idle()


def test_a_copy_that_is_still_to_be_looked_up_gets_its_letter_once_and_does_not_hold_the_floor() -> None:
    driver = Driver(gap_timeout_ms=1000).own()
    driver.store.command("RPUSH", "order:u", "1", "3")
    driver.store.command("SET", "next:u", "4")
    words = ("status", "failed", "processedAt", "1", "attempts", "3", "userId", "u", "type", "t", "seq", "2")
    more = ("error", "no", "partition", "0", "offset", "3", "reason", "handler")
    driver.store.command("HSET", "event:x", *words, *more)  # an earlier life has failed it, from offset 3
    driver.store.command("SET", "dedup:x", "1")
    driver.send(event("u", 6))  # parked
    driver.hold(Acquire)
    driver.send(event("u", 2, id="x"))  # below: to be looked up
    driver.hold(Finalize)
    driver.pass_ms(1000)  # the gap is closing: what is below waits until that is written
    driver.send(event("v", 1))
    driver.send(event("u", 2, id="x"))  # the one at offset 3
    driver.hold(Produce)
    for kind in (Acquire, Finalize):
        driver.held.discard(kind)
        driver.settle()
    driver.free()
    driver.pass_ms(10_000)
    assert driver.produced == [3]
    assert driver.pipeline.floor == driver.committed == driver.end
