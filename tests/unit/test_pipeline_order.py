"""CONTRACT 4.1, 4.5, 4.8 and section 2: what runs in which order, and what never runs."""

from __future__ import annotations

import pytest

from eventproc.effects import Acquire, Finalize, Run
from tests.unit.pipeline_driver import Driver, event, final_elsewhere

LOCKINGS = ("event", "partition")


@pytest.mark.parametrize("locking", LOCKINGS)
def test_events_of_a_user_run_by_seq_whatever_order_they_arrive_in(locking: str) -> None:
    driver = Driver(locking=locking).own()
    driver.send(event("u", 3), event("u", 1), event("u", 4), event("u", 2))
    assert driver.ran() == ["u-1", "u-2", "u-3", "u-4"]
    assert driver.order("u") == [1, 2, 3, 4]
    assert driver.hash("u-3") == {
        "status": "processed",
        "attempts": "1",
        "userId": "u",
        "type": "t",
        "seq": "3",
        "processedAt": driver.hash("u-3")["processedAt"],
    }


def test_a_chain_in_one_batch_takes_one_call_of_each_kind() -> None:
    driver = Driver().own()
    driver.send(*(event("u", seq) for seq in range(1, 101)))
    assert driver.order("u") == list(range(1, 101))
    assert len(driver.asked(Acquire)) == len(driver.asked(Run)) == 1
    assert len([call for call in driver.asked(Finalize) if call.entries()]) == 1


@pytest.mark.parametrize("locking", LOCKINGS)
def test_a_backlog_above_the_batch_size_keeps_every_users_order(locking: str) -> None:
    driver = Driver(locking=locking, batch_max=3).own()
    bodies = [event(f"u{n % 3}", n // 3 + 1) for n in range(60)]
    driver.write(*bodies)
    driver.read()
    driver.settle()
    for user in ("u0", "u1", "u2"):
        assert driver.order(user) == list(range(1, 21))
        assert [id for id in driver.ran() if id.startswith(user)] == [f"{user}-{n}" for n in range(1, 21)]
    assert all(len(call.entries) <= 3 for call in driver.asked(Acquire) + driver.asked(Run))
    assert all(len(call.entries()) <= 3 for call in driver.asked(Finalize))


def test_a_missing_seq_holds_up_only_its_user() -> None:
    driver = Driver().own()
    driver.send(event("u", 2), event("v", 1), event("v", 2))
    assert driver.ran() == ["v-1", "v-2"]
    driver.send(event("u", 1))
    assert driver.ran()[2:] == ["u-1", "u-2"]


def test_the_first_expected_seq_follows_the_order_list() -> None:
    driver = Driver()
    driver.store.command("RPUSH", "order:u", 5, 7)
    driver.own().send(event("u", 9), event("u", 8))
    assert driver.ran() == ["u-8", "u-9"]
    assert driver.order("u") == [5, 7, 8, 9]


def test_the_first_expected_seq_follows_the_next_key_where_that_is_ahead_and_the_key_goes() -> None:
    driver = Driver()
    driver.store.command("RPUSH", "order:u", 5)
    driver.store.command("SET", "next:u", 8)
    driver.own().send(event("u", 8))
    assert driver.order("u") == [5, 8]
    assert driver.following("u") == 0


def test_without_a_seq_an_event_runs_at_once_and_outside_the_sequence() -> None:
    driver = Driver().own()
    driver.send(event("u", 2), event("u", 0, id="free"))
    assert driver.ran() == ["free"]
    assert driver.status("free") == "processed"
    assert "seq" not in driver.hash("free")
    assert driver.order("u") == []


@pytest.mark.parametrize("held", [(), (Acquire,), (Run,), (Finalize,)], ids=lambda kinds: str(len(kinds)))
def test_the_same_unsequenced_event_twice_runs_once(held: tuple[type, ...]) -> None:
    driver = Driver().own()
    driver.hold(*held)
    driver.send(event("u", 0, id="free"))
    driver.send(event("u", 0, id="free"))
    driver.free()
    assert driver.ran() == ["free"]
    assert driver.counts["events.duplicate"] == 1
    assert driver.floor_stored() == 2


def test_nothing_runs_before_its_lock_is_granted() -> None:
    driver = Driver().own()
    driver.hold(Acquire)
    driver.send(event("u", 1))
    assert driver.runs == []
    assert driver.locks() == []
    driver.held = {Run}
    driver.settle()
    assert driver.runs == []
    assert driver.locks() == ["u-1"]
    driver.free()
    assert driver.ran() == ["u-1"]
    assert driver.locks() == []


def test_ownership_as_the_lock_takes_none_for_sequenced_events() -> None:
    driver = Driver(locking="partition").own()
    driver.hold(Run)
    driver.send(event("u", 1))
    assert driver.asked(Acquire) == []
    assert driver.locks() == []
    driver.send(event("u", 0, id="free"))
    assert [entry.id for call in driver.asked(Acquire) for entry in call.entries] == ["free"]


def test_a_tombstone_is_counted_and_passed_over() -> None:
    driver = Driver().own()
    driver.send(None, event("u", 1), None)
    assert driver.counts["events.tombstone"] == 2
    assert driver.ran() == ["u-1"]
    assert driver.commits[-1] == driver.floor_stored() == 3
    assert driver.produced == []


def test_an_invalid_record_is_dead_lettered_under_its_position_and_touches_no_user() -> None:
    driver = Driver().own()
    bad = event("u", 1).replace(b'"type":"t"', b'"type":""')
    [offset] = driver.send(bad)
    assert driver.runs == []
    letter = driver.letter(f"events-0-{offset}")
    assert letter["reason"] == "invalid"
    assert "type is empty" in letter["error"]
    assert letter["raw"] == bad.decode()
    assert (letter["partition"], letter["offset"], letter["userId"]) == ("0", str(offset), "")
    assert driver.produced == [offset]
    assert driver.hash("u-1") == driver.hash(f"events-0-{offset}") == {}
    assert (driver.order("u"), driver.following("u")) == ([], 0)
    assert driver.counts["events.invalid"] == 1


def test_an_event_that_uses_a_position_id_cannot_overwrite_a_dead_letter() -> None:
    driver = Driver().own()
    driver.send(b"bad", event("u", 1, id="events-0-0"))
    assert driver.letters() == ["events-0-0", "events-0-1"]
    assert driver.letter("events-0-0")["raw"] == "bad"
    assert driver.runs == []


def test_a_misrouted_record_is_counted_named_and_processed() -> None:
    driver = Driver(partition=0, partitions=8).own()
    assert driver.send(event("u", 1)) == [0]  # "u" lies elsewhere
    assert driver.counts["events.misrouted"] == 1
    assert driver.ran() == ["u-1"]
    [(name, fields)] = driver.warnings
    assert name == "misrouted"
    assert fields["user"] == "u"


def test_a_misrouted_record_is_dead_lettered_if_the_setting_says_so_and_its_user_stays() -> None:
    driver = Driver(partition=0, partitions=8, misrouted="dlq").own()
    driver.send(event("u", 1))
    assert driver.runs == []
    assert driver.status("u-1") == "failed"
    assert driver.letter("u-1")["reason"] == "misrouted"
    assert driver.produced == [0]
    assert (driver.order("u"), driver.following("u")) == ([], 0)
    assert driver.pipeline.buffer.expected("u") in (0, 1)


def test_a_misrouted_record_whose_id_is_final_is_a_duplicate() -> None:
    driver = Driver(partition=0, partitions=8, misrouted="dlq").own()
    final_elsewhere(driver, "u-1", "u", 1)
    before = driver.hash("u-1")
    driver.send(event("u", 1))
    assert driver.hash("u-1") == before
    assert (driver.letters(), driver.produced) == ([], [])
    assert driver.floor_stored() == 1


def test_a_seq_too_far_ahead_is_dead_lettered_and_its_users_order_untouched() -> None:
    driver = Driver(max_seq_jump=10).own()
    driver.send(event("u", 1), event("u", 13), event("u", 12))
    assert driver.status("u-13") == "failed"
    assert driver.hash("u-13")["attempts"] == "0"
    assert driver.letter("u-13")["reason"] == "seq_jump"
    assert driver.produced == [1]
    assert driver.order("u") == [1]
    assert driver.following("u") == 0
    driver.send(*(event("u", seq) for seq in range(2, 12)))
    assert driver.order("u") == list(range(1, 13))


def test_no_seq_is_too_far_ahead_when_the_check_is_off() -> None:
    driver = Driver(max_seq_jump=0).own()
    driver.send(event("u", 2**53 - 1))
    assert driver.letters() == []
    assert driver.pipeline.buffer.parked == 1


def test_a_jump_whose_id_is_final_already_is_a_duplicate() -> None:
    driver = Driver(max_seq_jump=10).own()
    final_elsewhere(driver, "u-50", "u", 50)
    driver.send(event("u", 50))
    assert driver.counts["events.duplicate"] == 1
    assert (driver.letters(), driver.produced) == ([], [])
    assert driver.floor_stored() == 1


def test_the_seq_that_jumped_is_still_to_come_under_another_id() -> None:
    driver = Driver(max_seq_jump=3).own()
    driver.send(event("u", 5, id="early"))
    assert driver.letter("early")["reason"] == "seq_jump"
    driver.send(*(event("u", seq) for seq in range(1, 6)))
    assert driver.order("u") == [1, 2, 3, 4, 5]
    assert driver.status("u-5") == "processed"


def test_reading_stops_while_redis_is_far_behind_and_goes_on_after() -> None:
    driver = Driver(batch_max=5).own()
    driver.hold(Acquire)
    driver.send(*(event("u", seq) for seq in range(1, 41)))
    assert not driver.pipeline.wants_records()
    driver.free()
    assert driver.pipeline.wants_records()
    assert driver.order("u") == list(range(1, 41))


def test_reading_stops_max_replay_records_above_the_floor() -> None:
    driver = Driver(max_replay_records=10).own()
    driver.hold(Run)
    driver.send(*(event("u", seq) for seq in range(1, 10)))
    assert driver.pipeline.wants_records()
    driver.send(event("u", 10))
    assert not driver.pipeline.wants_records()
    driver.free()
    assert driver.pipeline.wants_records()


def test_a_user_that_was_evicted_is_read_back() -> None:
    driver = Driver(max_users=1).own()
    driver.send(event("u", 1))
    driver.send(event("v", 1))
    driver.send(event("w", 1))
    assert driver.pipeline.buffer.users <= 2
    driver.send(event("u", 3), event("u", 2))
    assert driver.order("u") == [1, 2, 3]


def said_to_be_dense(driver: Driver) -> bool:
    """Of the last call that wrote something of user u."""
    dense = [group.dense for call in driver.asked(Finalize) for group in call.groups if group.user == "u"]
    return bool(dense[-1])


def test_a_list_without_a_hole_is_said_to_be_dense() -> None:
    driver = Driver()
    driver.store.command("RPUSH", "order:u", 1, 2)
    driver.own().send(event("u", 3))
    assert said_to_be_dense(driver)
    driver.send(event("u", 4), event("u", 5))
    assert said_to_be_dense(driver)
    assert driver.order("u") == [1, 2, 3, 4, 5]


def test_a_list_that_another_partition_writes_to_is_no_longer_said_to_be_dense(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = Driver().own()
    driver.send(event("u", 1), event("u", 2))
    driver.store.command("RPUSH", "order:u", 5)  # of a record that was misrouted
    monkeypatch.setattr(driver, "check_dense", lambda request: None)  # it cannot know
    for seq in (3, 4, 5, 6):
        driver.send(event("u", seq))
    assert not said_to_be_dense(driver)
    assert driver.order("u") == [1, 2, 5, 6]


@pytest.mark.parametrize("why", ["loaded", "next is ahead", "failed", "gap", "final elsewhere"])
def test_a_list_with_a_hole_is_not(why: str) -> None:
    driver = Driver(max_attempts=1)
    if why == "loaded":
        driver.store.command("RPUSH", "order:u", 1, 3)
    elif why == "next is ahead":
        driver.store.command("RPUSH", "order:u", 1)
        driver.store.command("SET", "next:u", 4)
    driver.own()
    if why == "failed":
        driver.send(event("u", 1), event("u", 2, fail=True), event("u", 3))
    elif why == "gap":
        driver.send(event("u", 1), event("u", 3))
        driver.pass_ms(6_000)
    elif why == "final elsewhere":
        final_elsewhere(driver, "u-3", "other", 9)
        driver.send(*(event("u", seq) for seq in (1, 2, 3)))
    driver.send(event("u", 4))
    driver.send(event("u", 5))
    assert driver.order("u")[-2:] == [4, 5]
    assert not said_to_be_dense(driver)


def test_ever_so_many_runs_that_take_no_time_do_no_harm() -> None:
    """By the smoothed time of a run is divided: it must not come to nothing."""
    driver = Driver().own()
    for took_ms in (1.0, *[0.0] * 4000):
        driver.pipeline._note_run_ms(took_ms)
    driver.send(event("u", 1), event("u", 2))
    assert driver.order("u") == [1, 2]


@pytest.mark.parametrize(
    ("locking", "behind"), [("event", Acquire), ("event", Run), ("partition", Run), ("partition", Finalize)]
)
def test_two_batches_are_read_ahead_of_what_takes_long(
    locking: str, behind: type[Acquire] | type[Run] | type[Finalize]
) -> None:
    driver = Driver(batch_max=10, locking=locking).own()
    driver.send(event("u", 1))  # u is loaded
    driver.hold(behind)
    seq = 2
    while driver.pipeline.wants_records():
        driver.send(event("u", seq))
        seq += 1
        assert seq < 100
    [*_, under_way] = driver.asked(behind)
    count = len(under_way.entries()) if isinstance(under_way, Finalize) else len(under_way.entries)
    assert seq - 2 == 20 + count
    driver.free()
    assert driver.order("u") == list(range(1, seq))
