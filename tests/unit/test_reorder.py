"""The reorder buffer, rule by rule (CONTRACT section 4); long histories are in tests/property."""

from __future__ import annotations

import gc
import random
import sys
import weakref
from typing import Any

import pytest

from benchmarks import test_core as bench
from eventproc._reorder import Arrivals, ReorderBuffer, partition_of

LISTS = ("ready", "below", "occupied", "jumped", "unknown", "evicted")


def told(arrivals: Arrivals) -> dict[str, list[Any]]:
    """The lists that are not empty."""
    return {name: found for name in LISTS if (found := getattr(arrivals, name))}


class Feed:
    """A buffer, and offsets that count up by themselves. Items are named `<user><seq>`."""

    def __init__(self, **caps: int) -> None:
        caps = {"gap_timeout_ms": 100, "max_seq_jump": 1000, **caps}
        self.buffer = ReorderBuffer(position=0, **caps)

    def push(self, *names: str, now_ms: int = 0, size: int = 1) -> dict[str, list[Any]]:
        n, first = len(names), self.buffer.position
        users = [name[0] for name in names]
        seqs = [int(name[1:]) for name in names]
        offsets = list(range(first, first + n))
        return told(self.buffer.push(users, seqs, offsets, [size] * n, list(names), now_ms))

    def known(self, *users: str, expected: int = 1, adopt: bool = False) -> Feed:
        """Users that are loaded, follow their seq and have nothing in flight."""
        for user in users:
            self.push(f"{user}{expected}" if not adopt else f"{user}{expected + 1}")
            self.buffer.load([user], [expected], [adopt], 0)
            if not adopt:
                self.buffer.finish([user])
        return self


def test_in_order_is_ready_at_once() -> None:
    feed = Feed().known("a")
    assert feed.push("a2", "a3") == {"ready": ["a2", "a3"]}
    assert feed.buffer.expected("a") == 4


def test_unsequenced_is_ready_and_makes_no_user() -> None:
    feed = Feed()
    assert feed.push("a0", "b0") == {"ready": ["a0", "b0"]}
    assert (feed.buffer.users, feed.buffer.unfinalized()) == (0, 2)


def test_gap_parks_until_filled() -> None:
    feed = Feed().known("a")
    assert feed.push("a5", "a3", "a4", size=7) == {}
    assert (feed.buffer.parked, feed.buffer.parked_bytes) == (3, 21)
    assert feed.push("a2") == {"ready": ["a2", "a3", "a4", "a5"]}
    assert (feed.buffer.parked, feed.buffer.parked_bytes) == (0, 0)
    assert feed.buffer.next_deadline_ms() == -1


def test_released_but_unfinished_is_below() -> None:
    feed = Feed().known("a")
    assert feed.push("a2", "a2", "a1") == {"ready": ["a2"], "below": ["a2", "a1"]}


def test_second_item_under_a_parked_seq_is_occupied_and_the_first_stays() -> None:
    feed = Feed().known("a")
    feed.push("a3")
    first = feed.buffer.push(["a"], [3], [10], [1], ["twin"], 0)
    assert first.occupied == [("twin", "a3")]
    assert feed.push("a2") == {"ready": ["a2", "a3"]}


def test_same_object_under_a_parked_seq_is_occupied_too() -> None:
    buffer = ReorderBuffer(position=0)
    item = object()
    arrivals = buffer.push(["a", "a"], [3, 3], [0, 1], [1, 1], [item, item], 0)
    assert arrivals.occupied == [(item, item)]
    assert buffer.parked == 1


@pytest.mark.parametrize(("jump", "seq", "jumped"), [(10, 12, False), (10, 13, True), (0, 2**53 - 1, False)])
def test_jump_is_above_expected_plus_limit(jump: int, seq: int, jumped: bool) -> None:
    feed = Feed(max_seq_jump=jump).known("a")
    assert feed.push(f"a{seq}") == ({"jumped": [f"a{seq}"]} if jumped else {})


def test_last_seq_of_all_can_be_processed() -> None:
    feed = Feed().known("a", expected=2**53 - 2)
    last = f"a{2**53 - 1}"
    assert feed.push(last) == {"ready": [last]}
    assert feed.buffer.expected("a") == 2**53
    assert feed.push(last) == {"below": [last]}


# --- load ------------------------------------------------------------------------------------------


def test_unknown_user_is_named_once_and_everything_parks_without_deadline() -> None:
    feed = Feed(gap_timeout_ms=10)
    assert feed.push("a1", "a9", "b1", "a1") == {"unknown": ["a", "b"], "occupied": [("a1", "a1")]}
    assert feed.buffer.next_deadline_ms() == -1
    assert feed.buffer.due(10_000) == []
    assert feed.buffer.expected("a") == 0


def test_load_judges_what_is_parked() -> None:
    feed = Feed(max_seq_jump=100)
    feed.push("a7", "a2", "a6", "a1", "a9", "a300", "a5")
    answer = feed.buffer.load(["a"], [5], [False], 0)
    assert told(answer) == {"ready": ["a5", "a6", "a7"], "below": ["a2", "a1"], "jumped": ["a300"]}
    assert feed.buffer.parked == 1


def test_load_judges_as_if_the_items_arrived_one_by_one() -> None:
    """Whether a seq is a jump must not depend on how long the load took."""
    feed = Feed(max_seq_jump=10)
    feed.push("a1", "a12")
    assert told(feed.buffer.load(["a"], [1], [False], 0)) == {"ready": ["a1"]}
    other = Feed(max_seq_jump=10)
    other.push("a12", "a1")
    assert told(other.buffer.load(["a"], [1], [False], 0)) == {"ready": ["a1"], "jumped": ["a12"]}


def test_deadline_after_load_counts_from_the_arrival() -> None:
    feed = Feed(gap_timeout_ms=100)
    feed.push("a4", now_ms=7)
    feed.buffer.load(["a"], [1], [False], 90)
    assert feed.buffer.next_deadline_ms() == 107


def test_adopt_has_no_jump_check_until_its_gap_closes() -> None:
    feed = Feed(max_seq_jump=10)
    feed.push("a500")
    feed.buffer.load(["a"], [1], [True], 0)
    assert feed.push("a900") == {}
    assert feed.buffer.close(["a"]) == [("a", 1, 499, True)]
    assert feed.push("a5000") == {"jumped": ["a5000"]}
    assert told(feed.buffer.open(["a"], 0)) == {"ready": ["a500"]}
    assert feed.buffer.close(["a"]) == [("a", 501, 899, False)]


def test_adopt_ends_when_the_first_seq_arrives_in_order() -> None:
    feed = Feed(max_seq_jump=10)
    feed.push("a400")
    feed.buffer.load(["a"], [1], [True], 0)
    assert feed.push("a1") == {"ready": ["a1"]}
    assert feed.push("a500", "a400") == {"jumped": ["a500"], "occupied": [("a400", "a400")]}
    assert feed.buffer.close(["a"]) == [("a", 2, 399, False)]


# --- deadlines -------------------------------------------------------------------------------------


def test_deadline_follows_the_lowest_parked_item() -> None:
    feed = Feed(gap_timeout_ms=100).known("a")
    feed.push("a9", now_ms=1)
    assert feed.buffer.next_deadline_ms() == 101
    feed.push("a5", now_ms=50)
    assert feed.buffer.next_deadline_ms() == 150
    feed.push("a7", now_ms=60)
    assert feed.buffer.next_deadline_ms() == 150
    assert feed.buffer.oldest_gap() == ("a", 50)
    feed.push("a2", "a3", "a4", now_ms=70)
    assert feed.buffer.next_deadline_ms() == 160


def test_due_reports_once_earliest_first() -> None:
    feed = Feed(gap_timeout_ms=100).known("a", "b", "c")
    feed.push("b3", now_ms=1)
    feed.push("c3", "a3", now_ms=2)
    assert feed.buffer.due(100) == []
    assert feed.buffer.due(102) == ["b", "c", "a"]
    assert feed.buffer.due(9999) == []
    assert feed.buffer.next_deadline_ms() == -1


def test_lower_arrival_takes_back_what_was_reported() -> None:
    feed = Feed(gap_timeout_ms=100).known("a")
    feed.push("a9", now_ms=0)
    assert feed.buffer.due(100) == ["a"]
    feed.push("a5", now_ms=101)
    assert feed.buffer.close(["a"], only_due=True) == []
    assert feed.buffer.due(200) == []
    assert feed.buffer.due(201) == ["a"]
    assert feed.buffer.close(["a"], only_due=True) == [("a", 2, 4, False)]


def test_further_gap_may_be_due_at_once() -> None:
    feed = Feed(gap_timeout_ms=100).known("a")
    feed.push("a3", "a6", now_ms=0)
    assert feed.buffer.due(100) == ["a"]
    feed.buffer.close(["a"])
    assert told(feed.buffer.open(["a"], 105)) == {"ready": ["a3"]}
    assert feed.buffer.due(105) == ["a"]
    assert feed.buffer.close(["a"]) == [("a", 4, 5, False)]


def test_rearm_starts_the_timeout_anew_for_that_user_only() -> None:
    feed = Feed(gap_timeout_ms=100).known("a", "b")
    feed.push("a3", "a6", "b3", now_ms=0)
    assert feed.buffer.due(100) == ["a", "b"]
    feed.buffer.rearm(["a", "nobody"], 150)
    assert feed.buffer.next_deadline_ms() == 250
    feed.push("a2", now_ms=160)
    assert feed.buffer.next_deadline_ms() == 250  # a6 arrived before 150


def test_restart_timers_holds_for_all_that_arrived_before() -> None:
    feed = Feed(gap_timeout_ms=100).known("a", "b")
    feed.push("a3", "b3", "c5", now_ms=0)
    assert feed.buffer.due(100) == ["a", "b"]
    feed.buffer.restart_timers(400)
    assert feed.buffer.due(499) == []
    feed.buffer.load(["c"], [1], [False], 450)
    assert feed.buffer.due(500) == ["a", "b", "c"]


# --- close and open --------------------------------------------------------------------------------


def test_closed_user_releases_nothing_until_open() -> None:
    feed = Feed(max_seq_jump=50).known("a")
    feed.push("a5", "a6")
    assert feed.buffer.close(["a", "a", "nobody"]) == [("a", 2, 4, False)]
    assert feed.buffer.expected("a") == 5
    assert feed.push("a3", "a7", "a5", "a9", "a56") == {
        "below": ["a3"],
        "occupied": [("a5", "a5")],
        "jumped": ["a56"],
    }
    assert feed.buffer.due(10_000) == []
    assert feed.buffer.oldest_gap() is None
    assert told(feed.buffer.open(["a"], 0)) == {"ready": ["a5", "a6", "a7"]}
    assert feed.buffer.parked == 1


def test_nothing_to_close_without_a_gap() -> None:
    feed = Feed().known("a")
    feed.push("b7")
    assert feed.buffer.close(["a", "b"]) == []


# --- caps ------------------------------------------------------------------------------------------


def test_user_above_its_cap_is_overfull() -> None:
    feed = Feed(max_parked_per_user=2).known("a", "b")
    feed.push("b3", "a3", "a5")
    assert feed.buffer.overfull() == []
    feed.push("a7")
    assert feed.buffer.overfull() == ["a"]


def test_oldest_gaps_are_overfull_until_the_rest_fits() -> None:
    feed = Feed(max_parked=3).known("a", "b", "c")
    feed.push("c3", "a3", "b3", "b4", "a5", "c4", "c9")
    # 7 parked: closing c releases c3 c4, closing a releases a3, closing b releases b3 b4.
    assert feed.buffer.overfull() == ["c", "a", "b"]
    feed.buffer.close(["c"])
    assert feed.buffer.overfull() == ["a"]


def test_bytes_make_overfull() -> None:
    feed = Feed(max_parked_bytes=100).known("a", "b")
    feed.push("a3", size=60)
    feed.push("b3", size=40)
    assert feed.buffer.overfull() == []
    feed.push("b5", size=1)
    assert feed.buffer.overfull() == ["a"]


def test_what_waits_for_load_closes_nobodys_gap() -> None:
    feed = Feed(max_parked=2).known("a")
    feed.push("a3", "b1", "c1", "d1")
    assert feed.buffer.parked == 4
    assert feed.buffer.overfull() == []


def test_floor_gap_is_the_one_whose_item_lies_at_the_floor() -> None:
    feed = Feed().known("a", "b")
    feed.push("a9", now_ms=1)
    feed.push("b3", now_ms=2)
    feed.push("a5", now_ms=3)
    assert feed.buffer.floor_gap() is None
    feed.buffer.settle([0, 1])
    assert feed.buffer.oldest_gap() == ("b", 2)
    assert feed.buffer.floor_gap() == ("a", 3)


# --- users -----------------------------------------------------------------------------------------


def test_least_recently_used_idle_users_are_evicted() -> None:
    feed = Feed(max_users=2).known("a", "b")
    feed.push("a1")  # below, but a use
    assert feed.push("c1")["evicted"] == ["b"]
    assert feed.buffer.expected("b") == 0
    assert feed.push("b2")["unknown"] == ["b"]


def test_users_with_something_parked_or_in_flight_stay() -> None:
    feed = Feed(max_users=0)
    feed.push("a1", "b3")
    assert told(feed.buffer.load(["a", "b"], [1, 1], [False, False], 0)) == {"ready": ["a1"]}
    assert feed.push("a0") == {"ready": ["a0"]}
    feed.buffer.finish(["", "a"])
    assert feed.push("a0") == {"ready": ["a0"], "evicted": ["a"]}
    assert feed.buffer.users == 1


# --- offsets ---------------------------------------------------------------------------------------


def test_floor_is_the_lowest_unsettled_offset() -> None:
    buffer = ReorderBuffer(position=10)
    assert (buffer.floor(), buffer.position) == (10, 10)
    buffer.track([12, 15, 90])
    buffer.advance(95)
    buffer.advance(20)
    assert (buffer.floor(), buffer.position, buffer.unfinalized()) == (12, 95, 3)
    buffer.settle([15])
    assert buffer.floor() == 12
    buffer.settle([12])
    assert buffer.floor() == 90
    buffer.settle([90])
    assert (buffer.floor(), buffer.unfinalized()) == (95, 0)


def test_it_knows_what_is_settled() -> None:
    buffer = ReorderBuffer(position=0)
    buffer.push(["u"] * 3, [1, 2, 3], [2, 5, 6], [1] * 3, ["a", "b", "c"], 0)
    buffer.settle([5])
    assert [buffer.is_settled(offset) for offset in (0, 2, 3, 5, 6)] == [True, False, True, True, False]


def test_floor_over_many_offsets_with_holes_settled_in_any_order() -> None:
    rng = random.Random(5)
    buffer = ReorderBuffer(position=0)
    unsettled: set[int] = set()
    for first in range(0, 200_000, 10_000):
        offsets = sorted(rng.sample(range(first, first + 10_000), 3000))
        buffer.track(offsets)
        unsettled.update(offsets)
        done = rng.sample(sorted(unsettled), 2900)
        buffer.settle(done)
        unsettled.difference_update(done)
        assert buffer.floor() == min(unsettled)
        assert buffer.unfinalized() == len(unsettled)


@pytest.mark.parametrize("offsets", [[5, 5], [6, 5], [4], [5, 2**63 - 1], [5, -1], [5, 2**70]])
def test_offsets_must_ascend_from_the_position(offsets: list[int]) -> None:
    buffer = ReorderBuffer(position=5)
    n = len(offsets)
    with pytest.raises(ValueError, match="offset"):
        buffer.track(offsets)
    with pytest.raises(ValueError, match="offset"):
        buffer.push(["a"] * n, list(range(1, n + 1)), offsets, [1] * n, ["x"] * n, 0)
    assert (buffer.position, buffer.unfinalized(), buffer.users) == (5, 0, 0)


@pytest.mark.parametrize("wrong", [[0, 1, 1], [0, 7], [0, -1], [0, 2**64]])
def test_settling_twice_or_unknown_changes_nothing(wrong: list[int]) -> None:
    buffer = ReorderBuffer(position=0)
    buffer.track([0, 1, 2])
    with pytest.raises(ValueError, match="offset"):
        buffer.settle(wrong)
    assert (buffer.floor(), buffer.unfinalized()) == (0, 3)
    buffer.settle([0, 1, 2])
    with pytest.raises(ValueError, match="settle each record once"):
        buffer.settle([1])


# --- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize("seq", [-1, 2**53, 2**64])
def test_seq_out_of_range_is_refused(seq: int) -> None:
    buffer = ReorderBuffer(position=0)
    with pytest.raises(ValueError, match=f"seq {seq} is outside"):
        buffer.push(["a", "a"], [1, seq], [0, 1], [1, 1], ["x", "y"], 0)
    assert (buffer.position, buffer.users) == (0, 0)


@pytest.mark.parametrize("seq", [True, 1.0, "1", None])
def test_seq_of_another_type_is_refused(seq: Any) -> None:
    buffer = ReorderBuffer(position=0)
    with pytest.raises(TypeError, match="is not an int"):
        buffer.push(["a"], [seq], [0], [1], ["x"], 0)
    assert (buffer.position, buffer.users) == (0, 0)


def test_lists_of_different_length_are_refused() -> None:
    buffer = ReorderBuffer(position=0)
    with pytest.raises(ValueError, match="sizes has 1 elements, users has 2"):
        buffer.push(["a", "a"], [1, 2], [0, 1], [1], ["x", "y"], 0)


def test_sequenced_without_user_is_refused() -> None:
    buffer = ReorderBuffer(position=0)
    with pytest.raises(ValueError, match="has no user"):
        buffer.push([""], [1], [0], [1], ["x"], 0)
    with pytest.raises(TypeError, match="is not a str"):
        buffer.push([b"a"], [1], [0], [1], ["x"], 0)  # type: ignore[list-item]


def test_finishing_what_is_not_in_flight_changes_nothing() -> None:
    feed = Feed(max_users=0).known("a")
    feed.push("a2", "a3")
    for wrong in (["a", "a", "a"], ["a", "nobody"]):
        with pytest.raises(ValueError, match="nothing ready to finish"):
            feed.buffer.finish(wrong)
    assert "evicted" not in feed.push("x0")
    feed.buffer.finish(["a", "a"])
    assert feed.push("x0")["evicted"] == ["a"]


def test_load_and_open_only_where_awaited() -> None:
    feed = Feed().known("a")
    feed.push("b1")
    for users in (["a"], ["b", "nobody"], ["b", "b"]):
        with pytest.raises(ValueError, match="user"):
            feed.buffer.load(users, [1] * len(users), [False] * len(users), 0)
    with pytest.raises(ValueError, match="'a' is not closed"):
        feed.buffer.open(["a"], 0)
    assert told(feed.buffer.load(["b"], [1], [False], 0)) == {"ready": ["b1"]}


@pytest.mark.parametrize("limit", ["gap_timeout_ms", "max_seq_jump", "max_parked", "max_users"])
def test_limits_are_checked(limit: str) -> None:
    with pytest.raises(ValueError, match=f"{limit} -1 is outside"):
        ReorderBuffer(position=0, **{limit: -1})
    with pytest.raises(ValueError, match="now_ms -1 is outside"):
        ReorderBuffer(position=0).due(-1)


# --- size ------------------------------------------------------------------------------------------


def test_hundred_thousand_parked_of_one_user_in_random_order() -> None:
    seqs = list(range(2, 100_002))
    random.Random(3).shuffle(seqs)
    n = len(seqs)
    buffer = ReorderBuffer(position=0, max_parked_per_user=n)
    buffer.push(["a"] * n, seqs, list(range(n)), [1] * n, list(seqs), 0)
    assert told(buffer.load(["a"], [1], [False], 0)) == {}
    assert buffer.parked == n
    assert buffer.push(["a"], [1], [n], [1], [1], 0).ready == list(range(1, 100_002))


def test_items_are_held_once_while_parked_and_not_after() -> None:
    item, user, seq = object(), "user-" + str(id(gc)), 10**12

    def references() -> list[int]:
        return [sys.getrefcount(item), sys.getrefcount(user), sys.getrefcount(seq)]

    before = references()
    buffer = ReorderBuffer(position=0, max_seq_jump=0)
    buffer.push([user], [seq], [0], [1], [item], 0)
    assert references()[0] == before[0] + 1
    assert buffer.push([user], [seq], [1], [1], [item], 0).occupied == [(item, item)]
    assert references()[0] == before[0] + 1
    buffer.load([user], [1], [False], 0)
    buffer.close([user])
    assert buffer.open([user], 0).ready == [item]
    assert references()[::2] == before[::2]
    buffer.finish([user])
    del buffer
    assert references() == before


def test_parked_items_that_hold_the_buffer_are_collected() -> None:
    class Item:
        buffer: ReorderBuffer

    item, buffer = Item(), ReorderBuffer(position=0)
    item.buffer = buffer
    buffer.push(["a"], [5], [0], [1], [item], 0)
    gone = weakref.ref(item)
    del item, buffer
    gc.collect()
    assert gone() is None


# --- partitioner -----------------------------------------------------------------------------------

#: murmur2 as the Java client's own tests have it.
MURMUR2 = {
    "21": -973932308,
    "foobar": -790332482,
    "a-little-bit-long-string": -985981536,
    "a-little-bit-longer-string": -1486304829,
    "lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8": -58897971,
    "abc": 479470107,
}


@pytest.mark.parametrize(("user", "murmur2"), MURMUR2.items())
@pytest.mark.parametrize("partitions", [1, 8, 12, 2**31 - 1])
def test_partition_is_that_of_the_java_client(user: str, murmur2: int, partitions: int) -> None:
    assert partition_of(user, partitions) == (murmur2 & 0x7FFFFFFF) % partitions


def test_partition_of_goes_by_utf8() -> None:
    assert {partition_of(user, 8) for user in ("čeněk", "ευα", "用户", "🙂", "")} <= set(range(8))
    with pytest.raises(UnicodeEncodeError):
        partition_of("\ud800", 8)
    with pytest.raises(ValueError, match="partitions 0"):
        partition_of("a", 0)


# --- the benchmarks run ----------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 50])
def test_benchmark_bodies_run(window: int) -> None:
    stream = bench.Stream(events=3000, users=40, window=window, batch=500)
    buffer = bench.warm_buffer(stream)
    bench.drive(buffer, stream)
    assert buffer.floor() == buffer.position == 40 + 3000


def test_memory_bodies_run() -> None:
    assert bench.park(2000, users=50) >= 0
    assert bench.idle(2000) >= 0
