"""CONTRACT 4.10: a key of the wrong type in the way sets its user aside; everybody else goes on."""

from __future__ import annotations

import pytest

from eventproc.effects import Finalize
from tests.simulation.memory_store import ReplyError
from tests.unit.pipeline_driver import Driver, event, final_elsewhere

RETRY_MS = 5_000


def in_the_way(driver: Driver, key: str) -> None:
    """A key of a type that nothing of ours has at these places."""
    if key.startswith(("order:", "gaps:")):
        driver.store.command("SET", key, "not ours")
    else:
        driver.store.command("RPUSH", key, "not ours")


def set_aside(driver: Driver, key: str, user: str = "u") -> None:
    """The user is, it is told, and the others are not."""
    assert driver.pipeline.foreign == {user: key}
    [(name, fields)] = driver.warnings
    assert name == "foreign_key"
    assert {user, key} <= set(fields.values())
    assert driver.counts["foreign_keys"] == 1


@pytest.mark.parametrize("key", ["order:u", "next:u"])
def test_a_user_whose_state_cannot_be_read_waits_and_is_read_again(key: str) -> None:
    driver = Driver().own()
    in_the_way(driver, key)
    driver.send(event("u", 2), event("v", 1), event("u", 1))
    set_aside(driver, key)
    assert driver.order("v") == [1]
    assert driver.pipeline.floor == 0
    driver.send(event("v", 2), event("u", 3))
    assert driver.order("v") == [1, 2]
    driver.pass_ms(RETRY_MS)
    set_aside(driver, key)  # named once, not each time
    driver.store.command("DEL", key)
    driver.pass_ms(RETRY_MS)
    assert driver.pipeline.foreign == {}
    assert driver.ran() == ["v-1", "v-2", "u-1", "u-2", "u-3"]
    assert driver.order("u") == [1, 2, 3]
    assert driver.floor_stored() == driver.commits[-1] == 5


@pytest.mark.parametrize("key", ["event:u-1", "dedup:u-1", "inflight:u-1"])
def test_a_key_in_the_way_of_an_id_holds_up_its_user_only(key: str) -> None:
    driver = Driver().own()
    in_the_way(driver, key)
    driver.send(event("u", 1), event("u", 2), event("v", 1))
    set_aside(driver, key)
    assert driver.ran() == ["v-1"]
    assert driver.floor_stored() == 0
    driver.store.command("DEL", key)
    driver.pass_ms(RETRY_MS)
    assert driver.pipeline.foreign == {}
    assert driver.order("u") == [1, 2]
    assert driver.floor_stored() == driver.commits[-1] == 3
    assert driver.locks() == []


def test_a_ledger_of_the_wrong_type_holds_up_a_look_at_it() -> None:
    driver = Driver().own()
    driver.send(event("u", 1), event("u", 2))
    in_the_way(driver, "gaps:u")
    driver.send(event("u", 1, id="below"), event("v", 1))
    set_aside(driver, "gaps:u")
    assert driver.status("below") == ""
    assert driver.floor_stored() == 2
    driver.store.command("DEL", "gaps:u")
    driver.pass_ms(RETRY_MS)
    assert driver.letter("below")["reason"] == "stale"
    assert driver.floor_stored() == 4


def appears_while_running(driver: Driver, id: str, key: str) -> None:
    driver.during[id] = lambda: in_the_way(driver, key)


@pytest.mark.parametrize("locking", ["event", "partition"])
@pytest.mark.parametrize("key", ["order:u", "event:u-2"])
def test_effects_that_redis_refuses_wait_for_the_key_and_are_not_run_again(key: str, locking: str) -> None:
    driver = Driver(locking=locking).own()
    appears_while_running(driver, "u-1", key)
    driver.send(event("u", 1), event("u", 2), event("u", 3), event("v", 1))
    assert driver.pipeline.foreign == {"u": key}
    assert driver.order("v") == [1]
    refused_at = 0 if key == "order:u" else 1
    driver.pass_ms(500)  # it is not idle, so the commit may take its time
    assert driver.pipeline.floor == driver.floor_stored() == driver.commits[-1] == refused_at
    driver.send(event("u", 4), event("v", 2))
    assert "u-4" not in driver.ran()
    assert driver.order("v") == [1, 2]
    driver.pass_ms(RETRY_MS)
    assert driver.floor_stored() == refused_at
    driver.store.command("DEL", key)
    driver.pass_ms(RETRY_MS)
    assert driver.pipeline.foreign == {}
    assert driver.order("u") == [1, 2, 3, 4]
    assert [id for id in driver.ran() if id.startswith("u")] == ["u-1", "u-2", "u-3", "u-4"]
    assert driver.floor_stored() == driver.commits[-1] == 6
    assert driver.locks() == []


def test_what_failed_is_refused_too_and_dead_lettered_after_the_key_is_gone() -> None:
    driver = Driver(max_attempts=1).own()
    appears_while_running(driver, "u-1", "next:u")
    driver.send(event("u", 1, fail=True), event("u", 2), event("v", 1))
    assert driver.pipeline.foreign == {"u": "next:u"}
    assert driver.produced == []
    assert driver.order("v") == [1]
    driver.store.command("DEL", "next:u")
    driver.pass_ms(RETRY_MS)
    assert driver.produced == [0]
    assert driver.status("u-1") == "failed"
    assert driver.order("u") == [2]
    assert driver.floor_stored() == 3


def test_a_conflict_holds_the_floor_until_its_user_has_moved_on() -> None:
    driver = Driver().own()
    driver.send(event("u", 1))
    final_elsewhere(driver, "x", "another")
    in_the_way(driver, "next:u")
    driver.send(event("u", 2, id="x"), event("v", 1))
    set_aside(driver, "next:u")
    driver.pass_ms(1_000)
    assert driver.produced == []
    assert driver.floor_stored() == 1
    driver.store.command("DEL", "next:u")
    driver.pass_ms(RETRY_MS)
    assert driver.following("u") == 3
    assert driver.letter("events-0-1")["reason"] == "id_conflict"
    assert driver.produced == [1]
    assert driver.floor_stored() == driver.commits[-1] == 3


def test_a_gap_whose_ledger_is_in_the_way_is_written_later_and_nothing_runs_beyond_it() -> None:
    driver = Driver(gap_timeout_ms=100).own()
    driver.send(event("u", 2), event("v", 2))
    in_the_way(driver, "gaps:u")
    driver.pass_ms(100)
    set_aside(driver, "gaps:u")
    assert driver.ran() == ["v-2"]
    driver.send(event("u", 3), event("u", 1))
    driver.pass_ms(RETRY_MS)
    assert driver.ran() == ["v-2"]
    driver.store.command("DEL", "gaps:u")
    driver.pass_ms(RETRY_MS)
    assert driver.ran() == ["v-2", "u-2", "u-3"]
    assert driver.ledger("u") == ["1-1:timeout"]
    assert driver.letter("u-1")["reason"] == "late"
    assert driver.floor_stored() == driver.end


def test_an_unsequenced_event_that_is_refused_holds_the_floor_and_is_written_later() -> None:
    driver = Driver().own()
    appears_while_running(driver, "free", "event:free")
    driver.send(event("u", 0, id="free"), event("u", 1))
    assert driver.order("u") == [1]
    assert driver.floor_stored() == 0
    assert driver.pipeline.floor == 0
    driver.store.command("DEL", "event:free")
    driver.pass_ms(RETRY_MS)
    assert driver.status("free") == "processed"
    assert driver.ran().count("free") == 1
    assert driver.floor_stored() == driver.commits[-1] == 2
    assert driver.locks() == []


@pytest.mark.parametrize("key", ["order:u", "event:u-1"])
def test_a_lock_that_another_partition_has_taken_meanwhile_is_left(key: str) -> None:
    driver = Driver().own()
    appears_while_running(driver, "u-1", key)
    driver.send(event("u", 1))
    assert driver.locks() == []
    driver.store.command("SET", "inflight:u-1", "events:1:7:other")
    driver.pass_ms(RETRY_MS)
    assert driver.locks() == ["u-1"]


def test_a_lock_that_was_not_taken_is_left_to_its_owner() -> None:
    driver = Driver(locking="partition").own()
    driver.send(event("u", 1))
    driver.store.command("SET", "inflight:stale", "events:1:7:other")
    driver.send(event("u", 1, id="stale"))
    assert driver.status("stale") == "skipped"
    assert driver.locks() == ["stale"]


def test_a_dead_letter_list_of_the_wrong_type_is_named_and_waited_for() -> None:
    driver = Driver().own()
    driver.store.command("SET", "dlq:list", "not ours")
    driver.send(b"bad", event("v", 1))
    assert driver.order("v") == [1]
    assert driver.floor_stored() == 0
    assert driver.produced == []
    driver.store.command("DEL", "dlq:list")
    driver.pass_ms(RETRY_MS)
    assert driver.letters() == ["events-0-0"]
    assert driver.produced == [0]
    assert driver.floor_stored() == 2


def test_several_users_may_be_set_aside_and_rejoin_one_by_one() -> None:
    driver = Driver().own()
    for user in ("a", "b"):
        appears_while_running(driver, f"{user}-1", f"order:{user}")
    driver.send(event("a", 1), event("b", 1), event("c", 1))
    assert driver.pipeline.foreign == {"a": "order:a", "b": "order:b"}
    driver.send(event("a", 2), event("b", 2), event("c", 2))
    driver.store.command("DEL", "order:b")
    driver.pass_ms(RETRY_MS)
    assert driver.pipeline.foreign == {"a": "order:a"}
    assert driver.order("b") == [1, 2]
    assert driver.order("c") == [1, 2]
    driver.store.command("DEL", "order:a")
    driver.pass_ms(RETRY_MS)
    assert driver.order("a") == [1, 2]
    assert driver.pipeline.foreign == {}
    assert driver.floor_stored() == 6


def test_while_a_user_is_set_aside_effects_are_tried_again_every_few_seconds_only() -> None:
    driver = Driver().own()
    appears_while_running(driver, "u-1", "order:u")
    driver.send(event("u", 1))

    def tries() -> int:
        return sum(any(group.user == "u" for group in call.groups) for call in driver.asked(Finalize))

    assert tries() == 1
    for _ in range(10):
        driver.pass_ms(RETRY_MS // 10)
    assert tries() == 2


def test_a_drain_does_not_wait_for_a_user_that_is_set_aside() -> None:
    driver = Driver().own()
    appears_while_running(driver, "u-1", "order:u")
    driver.send(event("u", 1), event("u", 2), event("v", 1))
    driver.pipeline.drain()
    driver.settle()
    assert driver.pipeline.drained
    assert driver.commits[-1] == driver.floor_stored() == 0
    assert driver.locks() == []


def test_a_drain_drops_the_locks_of_what_ran_before_its_user_was_set_aside() -> None:
    driver = Driver(batch_max=1).own()
    appears_while_running(driver, "u-1", "order:u")
    driver.hold(Finalize)
    driver.send(event("u", 1), event("u", 2))
    assert driver.ran() == ["u-1", "u-2"]
    driver.pipeline.drain()
    driver.free()
    assert driver.pipeline.drained
    assert driver.locks() == []


@pytest.mark.parametrize(
    ("words", "key"),
    [
        (("HSET", "event:u-1", "status", "open", "seq", "1"), "event:u-1"),
        (("HSET", "event:u-1", "status", "failed", "seq", "A7"), "event:u-1"),
        (("HSET", "event:u-1", "status", "failed", "offset", "n/a"), "event:u-1"),
        (("HSET", "event:u-1", "status", "failed", "attempts", "-"), "event:u-1"),
        (("RPUSH", "order:u", "99999999999999999999"), "order:u"),
        (("RPUSH", "order:u", "9007199254740992"), "order:u"),
        (("SET", "next:u", "9007199254740993"), "next:u"),
    ],
)
def test_a_key_of_the_right_type_that_holds_something_else_is_foreign(
    words: tuple[str, ...], key: str
) -> None:
    driver = Driver().own()
    driver.store.command(*words)
    driver.send(event("v", 1), event("u", 1))
    assert driver.pipeline.foreign == {"u": key}
    assert driver.order("v") == [1]
    driver.store.command("DEL", key)
    driver.pass_ms(5000)
    driver.pass_ms(5000)
    assert driver.order("u") == [1]
    assert not driver.pipeline.foreign


def test_the_largest_seqs_are_no_foreigners() -> None:
    driver = Driver().own()
    driver.store.command("RPUSH", "order:u", "9007199254740990")
    driver.store.command("SET", "next:w", "9007199254740992")
    driver.send(event("u", 2**53 - 1), event("w", 2**53 - 1))
    assert not driver.pipeline.foreign
    assert driver.status("u-9007199254740991") == "processed"
    assert driver.hash("w-9007199254740991")["reason"] == "stale"


@pytest.mark.parametrize("field", ["epoch", "rev", "offset", "baseline"])
def test_a_partition_key_that_holds_no_position_is_named(field: str) -> None:
    driver = Driver()
    driver.store.command("HSET", "partition:events:0", "epoch", "5", "owner", "x", field, "n/a")
    with pytest.raises(ReplyError, match=rf"^FOREIGN key partition:events:0 has {field} n/a"):
        driver.settle()
