"""CONTRACT 4.7, 4.11 and section 6: the floor, dead letters, what is committed to Kafka and when."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.effects import Acquire, Commit, Finalize, Produce, Run
from eventproc.pipeline import COMMIT_AGAIN_MS
from tests.simulation.memory_store import MemoryStore
from tests.unit.pipeline_driver import Driver, event, finalize_of

LOCKINGS = ("event", "partition")


def restarted(first: Driver, bodies: list[bytes], **settings: Any) -> Driver:
    """The first worker is gone; another one takes over and reads the log from the start."""
    second = Driver(
        store=first.store, clock=first.clock, owner="host:1:a/0/2", may_take=lambda owner: True, **settings
    )
    second.own()
    second.send(*bodies)
    return second


@pytest.mark.parametrize("locking", LOCKINGS)
def test_the_finalize_call_carries_the_floor_that_it_allows(locking: str) -> None:
    driver = Driver(locking=locking).own()
    driver.hold(Finalize)
    driver.send(event("u", 1), event("u", 2), event("v", 2))
    [call] = driver.waiting(Finalize)
    assert call.floor == 2
    assert call.unfinalized == 1
    assert driver.pipeline.floor == 2
    assert driver.pipeline.acked_floor == 0


def test_what_is_not_read_yet_is_not_final_either() -> None:
    driver = Driver().own()
    driver.hold(Finalize)
    driver.pipeline.note_end(10)
    driver.send(event("u", 1), event("v", 2))
    [call] = driver.waiting(Finalize)
    assert call.unfinalized == 1 + 8
    driver.pipeline.note_end(0)  # what the last fetch told may be old
    assert driver.pipeline.buffer.position == 2


def test_a_parked_event_holds_the_floor() -> None:
    driver = Driver().own()
    driver.send(event("u", 2), event("v", 1), event("v", 2))
    assert driver.pipeline.floor == driver.floor_stored() == driver.commits[-1] == 0
    driver.send(event("u", 1))
    assert driver.pipeline.floor == driver.floor_stored() == driver.commits[-1] == 4


@pytest.mark.parametrize("stage", [Acquire, Run, None], ids=["queued", "running", "retrying"])
def test_what_is_under_way_holds_the_floor(stage: type | None) -> None:
    driver = Driver(retry_backoff_ms=100).own()
    driver.send(event("v", 1))
    if stage is not None:
        driver.hold(stage)
    driver.send(event("u", 1, fail=int(stage is None)))
    driver.pass_ms(50)
    assert driver.pipeline.floor == 1
    assert driver.commits[-1] == 1
    driver.free()
    driver.pass_ms(50)
    assert driver.floor_stored() == driver.commits[-1] == 2


def test_only_what_redis_acknowledged_is_committed() -> None:
    driver = Driver().own()
    driver.hold(Finalize)
    driver.send(event("u", 1))
    driver.pass_ms(10_000)
    assert driver.commits == [0]
    [call] = driver.waiting(Finalize)
    reply = driver.store.perform(driver.scripts, call)
    driver.pass_ms(10_000)
    assert driver.floor_stored() == 1
    assert driver.commits == [0]
    driver.answer(call, reply)
    driver.settle()
    assert driver.commits == [0, 1]


def test_a_commit_follows_at_once_when_idle_and_is_not_repeated_soon() -> None:
    driver = Driver().own()
    driver.send(event("u", 1))
    driver.pass_ms(10)
    driver.pass_ms(5_000)
    assert driver.commits == [0, 1]


def test_a_commit_is_repeated_when_redis_confirms_the_owner_since_a_zombie_may_have_taken_it_back() -> None:
    driver = Driver().own()
    driver.send(event("u", 1))
    driver.pass_ms(10)
    driver.hold(Finalize)
    driver.pass_ms(COMMIT_AGAIN_MS)
    assert driver.commits == [0, 1]  # nobody has said that it is still the owner
    driver.free(Finalize)
    driver.settle()
    assert driver.commits == [0, 1, 1]
    driver.pass_ms(COMMIT_AGAIN_MS - 1000)
    assert driver.commits == [0, 1, 1]


def test_under_load_a_commit_comes_no_oftener_than_the_interval_and_no_later() -> None:
    driver = Driver(commit_interval_ms=500).own()
    driver.hold(Commit)
    driver.send(event("x", 1))
    start_ms = driver.clock.now_ms
    for seq in range(1, 13):
        driver.held = {Commit, Run}
        driver.send(event("u", seq))  # so that it is never idle
        driver.held = {Commit}
        for run in driver.waiting(Run):
            driver.carry_out(run)
        driver.held = {Commit, Run}
        driver.write(event("v", seq))
        driver.read()
        driver.settle()
        driver.clock.now_ms += 100
        driver.step()
    commits = [commit.offset for commit in driver.asked(Commit)]
    assert driver.clock.now_ms - start_ms == 1_200
    assert 3 <= len(commits) <= 6
    assert commits == sorted(commits)
    assert commits[-1] > commits[1]


def test_a_floor_that_rises_without_effects_is_written_too() -> None:
    driver = Driver().own()
    driver.send(event("u", 1))
    driver.send(event("u", 1))  # a duplicate: nothing to write but the floor
    assert driver.floor_stored() == driver.commits[-1] == 2
    driver.send(None)
    assert driver.floor_stored() == driver.commits[-1] == 3


def test_when_idle_ownership_and_revision_are_checked_each_second() -> None:
    driver = Driver().own()
    driver.send(event("u", 1))
    before = len(driver.asked(Finalize))
    driver.pass_ms(999)
    assert len(driver.asked(Finalize)) == before
    driver.pass_ms(1)
    assert len(driver.asked(Finalize)) == before + 1
    assert driver.asked(Finalize)[-1].entries() == []


def test_revisions_count_the_finalize_calls_and_one_is_under_way_at_a_time() -> None:
    driver = Driver(batch_max=2).own()
    driver.hold(Finalize)
    driver.send(*(event("u", seq) for seq in range(1, 9)))
    assert len(driver.waiting(Finalize)) == 1
    driver.free()
    assert [call.rev for call in driver.asked(Finalize)] == list(range(1, len(driver.asked(Finalize)) + 1))
    assert driver.stored("rev") == str(len(driver.asked(Finalize)))


def test_a_reply_that_was_lost_and_a_call_sent_again_apply_once() -> None:
    driver = Driver(max_attempts=1).own()
    driver.hold(Finalize)
    driver.send(event("u", 1), event("u", 2, fail=True), event("u", 3))
    [call] = driver.waiting(Finalize)
    driver.store.perform(driver.scripts, call)  # its reply is lost
    driver.free()
    assert driver.order("u") == [1, 3]
    assert driver.letters() == ["u-2"]
    assert driver.produced == [1]
    assert driver.floor_stored() == 3


def test_an_unfinished_replay_of_the_log_ends_where_it_would_have_ended() -> None:
    """The first worker dies before any reply; what is in Redis then is found final or is done."""
    first = Driver(max_attempts=1).own()
    first.hold(Finalize)
    bodies = [event("u", 1), event("u", 2, fail=True), event("u", 3), event("v", 1), b"bad"]
    first.send(*bodies)
    second = restarted(first, bodies, max_attempts=1)
    assert second.order("u") == [1, 3]
    assert second.order("v") == [1]
    assert second.letters().count("events-0-4") == 1
    assert second.floor_stored() == second.commits[-1] == 5
    assert second.locks() == []


# --- dead letters -------------------------------------------------------------------------------------


def dead_letters() -> dict[str, bytes]:
    return {
        "handler": event("u", 1, fail=True),
        "rejected": event("u", 1, reject="no"),
        "invalid": b"bad",
        "seq_jump": event("u", 10**7),
        "stale": event("v", 1, id="again"),
        "id_conflict": event("u", 1, id="v-1"),
    }


@pytest.mark.parametrize("reason", dead_letters())
def test_a_dead_letter_holds_the_floor_until_kafka_has_acknowledged_it(reason: str) -> None:
    driver = Driver(max_attempts=1).own()
    driver.send(event("v", 1))
    driver.hold(Produce)
    driver.send(dead_letters()[reason], event("w", 1))
    [letter] = driver.waiting(Produce)
    assert (letter.entry.reason, letter.entry.offset) == (reason, 1)
    driver.pass_ms(5_000)
    assert driver.pipeline.floor == driver.floor_stored() == driver.commits[-1] == 1
    assert driver.counts[f"dead_letters.{reason}"] == 1
    assert not driver.pipeline.is_idle()
    driver.free()
    assert driver.pipeline.is_idle()
    assert driver.produced == [1]
    assert driver.floor_stored() == driver.commits[-1] == 3


def test_a_dead_letter_is_produced_only_after_it_is_final_in_redis() -> None:
    driver = Driver(max_attempts=1).own()
    driver.hold(Finalize)
    driver.send(event("u", 1, fail=True))
    assert driver.asked(Produce) == []
    driver.free()
    assert driver.produced == [0]


def test_a_dead_letter_that_kafka_refused_is_sent_again_and_only_counted_once() -> None:
    driver = Driver(max_attempts=1).own()
    driver.lose_produced = True
    driver.send(event("u", 1, fail=True), event("u", 2))
    assert len(driver.asked(Produce)) == 1
    driver.pass_ms(200)
    assert len(driver.asked(Produce)) == 2
    assert driver.floor_stored() == 0
    assert driver.order("u") == [2]
    assert ("dead_letter_not_acknowledged", {"offset": 0, "error": "lost"}) in driver.warnings
    driver.lose_produced = False
    driver.pass_ms(200)
    assert driver.produced == [0]
    assert driver.floor_stored() == driver.commits[-1] == 2
    assert driver.counts["dead_letters.handler"] == 1
    assert driver.counts["events.failed"] == 1


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("reason", ["handler", "rejected", "seq_jump", "stale"])
def test_a_dead_letter_replayed_from_its_own_position_is_only_produced_again(
    reason: str, locking: str
) -> None:
    bodies = [dead_letters()[reason], event("v", 2)]
    if reason == "stale":
        bodies[0] = event("v", 1, id="again")
    first = Driver(max_attempts=1, locking=locking)
    first.store.command("RPUSH", "order:v", 1)
    first.own().hold(Produce)
    first.send(*bodies)
    id = first.letters()[0]
    before = first.hash(id), first.letter(id), first.letters()
    first.pass_ms(1_000)
    second = restarted(first, bodies, max_attempts=1, locking=locking)
    assert second.produced == [0]
    assert (second.hash(id), second.letter(id), second.letters()) == before
    assert second.order("v")[-1] == 2
    assert second.floor_stored() == second.commits[-1] == 2
    assert second.locks() == []
    if locking == "event":
        assert id not in second.ran()


def test_a_replayed_dead_letter_keeps_its_reason_error_and_attempts_for_the_topic() -> None:
    bodies = [event("u", 1, fail=True)]
    first = Driver(max_attempts=2, retry_backoff_ms=0).own()
    first.hold(Produce)
    first.send(*bodies)
    [sent] = first.waiting(Produce)
    second = Driver(store=first.store, clock=first.clock, owner="host:1:a/0/2", may_take=lambda owner: True)
    second.own().hold(Produce)
    second.send(*bodies)
    [again] = second.waiting(Produce)
    for entry in (sent.entry, again.entry):
        assert (entry.reason, entry.attempts, entry.status) == ("handler", 2, "failed")
    assert again.entry.error == sent.entry.error


@pytest.mark.parametrize("reason", ["invalid", "id_conflict"])
def test_a_letter_without_a_hash_is_written_once_and_produced_again(reason: str) -> None:
    first = Driver(max_attempts=1)
    first.store.command("HSET", "event:v-1", "status", "processed", "userId", "v", "seq", 1, "attempts", 1)
    first.store.command("RPUSH", "order:v", 1)
    bodies = [dead_letters()[reason]]
    first.own().hold(Produce)
    first.send(*bodies)
    second = restarted(first, bodies, max_attempts=1)
    assert second.produced == [0]
    assert second.letters() == ["events-0-0"]
    assert second.floor_stored() == 1


def test_a_copy_of_a_dead_letter_at_another_position_is_not_produced() -> None:
    first = Driver(max_attempts=1).own()
    first.hold(Produce)
    bodies = [event("u", 1, fail=True), event("u", 1, fail=True)]
    first.send(bodies[0])
    second = restarted(first, bodies, max_attempts=1)
    assert second.produced == [0]
    assert second.counts["events.duplicate"] == 1
    assert second.floor_stored() == 2


@pytest.mark.parametrize("locking", LOCKINGS)
@pytest.mark.parametrize("moved_on", [True, False])
def test_a_dead_letter_is_produced_although_a_copy_is_read_before_it(moved_on: bool, locking: str) -> None:
    """The position was set back, to before a copy of what was finalized and never produced."""
    driver = Driver(locking=locking)
    words: list[str | int] = ["status", "failed", "reason", "handler", "error", "no", "attempts", 5]
    words += ["userId", "u", "seq", 1, "partition", 0, "offset", 2]
    driver.store.command("HSET", "event:u-1", *words)
    driver.store.command("SET", "dedup:u-1", "1")
    if moved_on:
        driver.store.command("SET", "next:u", 2)
    driver.own().hold(Produce)
    driver.send(event("u", 1), event("v", 1), event("u", 1), event("u", 2))
    [sent] = driver.waiting(Produce)
    letter = sent.entry
    assert (letter.offset, letter.status, letter.reason) == (2, "failed", "handler")
    assert (letter.attempts, letter.error, letter.record.value()) == (5, "no", event("u", 1))
    driver.pass_ms(1_000)
    assert driver.floor_stored() == 2
    driver.free()
    assert driver.counts["events.duplicate"] == 2
    assert driver.order("u") == [2]
    assert driver.floor_stored() == driver.commits[-1] == 4


def test_a_skipped_event_that_went_into_no_dlq_is_not_produced_when_replayed() -> None:
    store_owner = Driver(late_policy="skip")
    store: MemoryStore = store_owner.store
    store.command("RPUSH", "order:v", 1)
    bodies = [event("u", 2), event("v", 1, id="stale")]
    store_owner.own().send(*bodies)  # u-2 is parked and holds the floor
    second = restarted(store_owner, bodies, late_policy="skip")
    assert second.produced == []
    assert second.status("stale") == "skipped"
    assert second.counts["events.duplicate"] == 1


def test_offsets_that_are_no_records_do_not_hold_the_floor() -> None:
    driver = Driver().own()
    driver.write(event("u", 1))
    driver.write(event("u", 2), at=10)
    driver.read()
    driver.settle()
    assert driver.floor_stored() == driver.commits[-1] == 11


def test_one_finalize_call_settles_many_users_and_letters_together() -> None:
    driver = Driver(max_attempts=1).own()
    driver.hold(Finalize)
    driver.send(event("u", 1), b"bad", event("v", 1, fail=True), event("w", 0, id="free"))
    first = finalize_of(driver.waiting(Finalize))
    driver.free()
    seen = first.entries() + [e for call in driver.asked(Finalize)[1:] for e in call.entries()]
    assert sorted(entry.offset for entry in seen if entry.seq or entry.letter or entry.id == "free") == [
        0,
        1,
        2,
        3,
    ]
    assert driver.commits[-1] == 4
