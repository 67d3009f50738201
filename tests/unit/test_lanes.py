"""Lanes: order within one, turns between them, timers."""

from __future__ import annotations

from eventproc.effects import Entry
from eventproc.lanes import Lanes
from tests.unit.pipeline_driver import LogRecord


def entry(lane: str | int, seq: int = 0) -> Entry:
    made = Entry(seq, LogRecord(seq, b""), f"{lane}-{seq}", str(lane), seq)
    made.lane = lane
    return made


def entered(lanes: Lanes, lane: str, *seqs: int) -> list[Entry]:
    made = [entry(lane, seq) for seq in seqs]
    for each in made:
        lanes.enter(each)
    return made


def ids(entries: list[Entry]) -> list[str]:
    return [each.id for each in entries]


def test_what_enters_is_taken_in_order_each_lanes_by_seq() -> None:
    lanes = Lanes()
    entered(lanes, "u", 1, 2)
    entered(lanes, "v", 1)
    entered(lanes, "u", 3)
    assert lanes.ready() == 4
    taken = ids(lanes.take(10))
    assert [id for id in taken if id.startswith("u")] == ["u-1", "u-2", "u-3"]
    assert sorted(taken) == ["u-1", "u-2", "u-3", "v-1"]
    assert lanes.ready() == 0
    assert lanes.is_idle()


def test_no_more_is_taken_than_asked_for() -> None:
    lanes = Lanes()
    entered(lanes, "u", 1, 2, 3)
    assert ids(lanes.take(2)) == ["u-1", "u-2"]
    assert lanes.ready() == 1
    assert ids(lanes.take(5)) == ["u-3"]
    assert lanes.take(5) == []


def test_what_was_blocked_is_taken_by_seq_whatever_order_it_is_freed_in() -> None:
    lanes = Lanes()
    made = [entry("u", seq) for seq in (1, 2, 3)]
    for each in (made[2], made[0], made[1]):
        lanes.block(each)
    lanes.enter(made[2])
    lanes.enter(made[1])
    assert lanes.take(10) == []
    lanes.enter(made[0])
    assert ids(lanes.take(10)) == ["u-1", "u-2", "u-3"]
    assert lanes.is_idle()


def test_a_blocked_head_holds_its_lane_and_no_other() -> None:
    lanes = Lanes()
    head, *_ = entered(lanes, "u", 1, 2)
    entered(lanes, "v", 1)
    lanes.block(head)
    assert ids(lanes.take(10)) == ["v-1"]
    assert not lanes.is_idle()
    assert ids(lanes.entries()) == ["u-1", "u-2"]
    lanes.enter(head)
    assert ids(lanes.take(10)) == ["u-1", "u-2"]


def test_a_lane_that_has_waited_gets_its_turn_however_long_the_line_is() -> None:
    for most in (1, 2, 10):
        lanes = Lanes()
        head, *_ = entered(lanes, "u", *range(1, 1001))
        lanes.block(head)
        lanes.enter(head)
        entered(lanes, "v", *range(1, 1001))
        seen = [each for _ in range(20) for each in lanes.take(most)]
        assert len(seen) == 20 * most
        assert sum(each.lane == "u" for each in seen) == sum(each.lane == "v" for each in seen) == 10 * most


def test_what_was_left_unrun_goes_back_before_what_entered_meanwhile() -> None:
    lanes = Lanes()
    entered(lanes, "u", 1, 2, 3)
    taken = lanes.take(10)
    entered(lanes, "u", 4)
    lanes.put_back(taken[1:])
    assert ids(lanes.take(10)) == ["u-2", "u-3", "u-4"]


def test_what_stands_before_a_blocked_entry_runs_and_the_rest_waits() -> None:
    lanes = Lanes()
    _, middle, _ = entered(lanes, "u", 1, 2, 3)
    lanes.block(middle)
    assert ids(lanes.take(10)) == ["u-1"]
    assert lanes.take(10) == []
    lanes.enter(middle)
    assert ids(lanes.take(10)) == ["u-2", "u-3"]


def test_what_failed_goes_back_before_what_entered_meanwhile() -> None:
    lanes = Lanes()
    entered(lanes, "u", 1, 2)
    first, second = lanes.take(10)
    entered(lanes, "u", 3)
    lanes.block(first)
    lanes.put_back([second])
    assert lanes.take(10) == []
    lanes.enter(first)
    assert ids(lanes.take(10)) == ["u-1", "u-2", "u-3"]


def test_a_dropped_head_lets_the_rest_move() -> None:
    lanes = Lanes()
    head, _ = entered(lanes, "u", 1, 2)
    lanes.block(head)
    lanes.drop(head)
    assert ids(lanes.take(10)) == ["u-2"]
    assert lanes.is_idle()


def test_dropping_the_only_entry_or_one_that_stands_nowhere_leaves_nothing() -> None:
    lanes = Lanes()
    only = entry("u", 1)
    lanes.drop(only)
    lanes.block(only)
    lanes.drop(only)
    lanes.drop(only)
    assert lanes.is_idle()
    assert lanes.entries() == []


def test_a_dropped_entry_behind_a_blocked_head_frees_nobody() -> None:
    lanes = Lanes()
    head, second, _ = entered(lanes, "u", 1, 2, 3)
    lanes.block(head)
    lanes.drop(second)
    assert lanes.take(10) == []
    lanes.enter(head)
    assert ids(lanes.take(10)) == ["u-1", "u-3"]


def test_blocking_or_freeing_twice_is_as_good_as_once() -> None:
    lanes = Lanes()
    [one] = entered(lanes, "u", 1)
    lanes.block(one)
    lanes.block(one)
    assert lanes.ready() == 0
    lanes.enter(one)
    lanes.enter(one)
    assert lanes.ready() == 1
    assert ids(lanes.take(10)) == ["u-1"]
    assert lanes.is_idle()


def test_timers_fire_when_due_in_order_and_those_of_one_time_as_they_were_set() -> None:
    lanes = Lanes()
    fired: list[str] = []
    for due_ms, name in ((30, "c"), (10, "a"), (30, "d"), (20, "b")):
        lanes.later(due_ms, lambda name=name: fired.append(name))  # type: ignore[misc]
    assert lanes.next_due_ms() == 10
    assert not lanes.is_idle()
    lanes.fire(9)
    assert fired == []
    lanes.fire(20)
    assert fired == ["a", "b"]
    assert lanes.next_due_ms() == 30
    lanes.fire(1_000)
    assert fired == ["a", "b", "c", "d"]
    assert (lanes.next_due_ms(), lanes.is_idle()) == (-1, True)


def test_a_timer_may_set_another() -> None:
    lanes = Lanes()
    fired: list[int] = []
    lanes.later(5, lambda: lanes.later(7, lambda: fired.append(7)))
    lanes.fire(6)
    assert fired == []
    lanes.fire(7)
    assert fired == [7]


# --- one of each lane at a time -----------------------------------------------------------------------


def test_of_each_lane_only_the_head_is_taken_and_the_next_once_it_is_dropped() -> None:
    lanes = Lanes(one_each=True)
    first, second, _ = entered(lanes, "u", 1, 2, 3)
    entered(lanes, "v", 1)
    assert ids(lanes.take(10)) == ["u-1", "v-1"]
    assert lanes.take(10) == []
    assert not lanes.is_idle()
    lanes.drop(first)
    assert ids(lanes.take(10)) == ["u-2"]
    entered(lanes, "u", 4)
    assert lanes.take(10) == []
    lanes.enter(second)  # it is to run again
    assert ids(lanes.take(10)) == ["u-2"]


def test_lanes_take_turns_when_only_some_may_be_taken() -> None:
    lanes = Lanes(one_each=True)
    made = [entered(lanes, lane, 1, 2)[0] for lane in "uvw"]
    assert ids(lanes.take(2)) == ["u-1", "v-1"]
    lanes.drop(made[0])
    assert ids(lanes.take(2)) == ["w-1", "u-2"]
