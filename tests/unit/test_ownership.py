"""CONTRACT section 6: taking a partition, standing by for its owner, and where reading starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from eventproc.effects import Claim, Claimed, FetchOffsets, Offsets
from eventproc.errors import ConfigError
from eventproc.ownership import STANDBY_POLL_MS, Ownership
from eventproc.settings import Settings


def ownership(
    *, may_take: Callable[[str], bool] = lambda owner: False, force: bool = False, **settings: Any
) -> Ownership:
    return Ownership(Settings(**settings), 3, "me", may_take, force)


def claim(taking: Ownership, offsets: Offsets, now_ms: int = 0) -> Claim:
    """Its next claim, once Kafka has told its offsets."""
    assert isinstance(taking.step(now_ms), FetchOffsets)
    assert taking.step(now_ms) is None
    taking.on_offsets(offsets)
    request = taking.step(now_ms)
    assert isinstance(request, Claim)
    assert taking.step(now_ms) is None
    return request


def test_kafka_is_asked_first_then_redis_and_nothing_twice() -> None:
    taking = ownership(lease_ms=7_000)
    request = claim(taking, Offsets(0, 10, 4))
    assert request == Claim("me", 7_000, "", False, 4, 4)
    assert not taking.owned
    assert taking.on_claimed(Claimed("ok", 17, 5, 6), 0) == 6
    assert taking.owned
    assert (taking.epoch, taking.rev, taking.baseline) == (17, 5, -1)
    assert taking.step(10_000) is None


@pytest.mark.parametrize(
    ("policy", "committed", "expected"),
    [
        ("group", 4, (4, 4)),
        ("group", 0, (0, 0)),
        ("group", -1, (2, -1)),
        ("earliest", 4, (2, -1)),
        ("earliest", -1, (2, -1)),
        ("stop", 4, (-1, -1)),
        ("stop", -1, (2, -1)),
    ],
)
def test_an_empty_redis_is_given_the_groups_position_as_baseline_or_the_start(
    policy: str, committed: int, expected: tuple[int, int]
) -> None:
    request = claim(ownership(on_redis_empty=policy), Offsets(2, 10, committed))
    assert (request.offset, request.baseline) == expected


def test_an_empty_redis_stops_it_if_the_setting_says_so_and_the_message_tells_the_remedy() -> None:
    taking = ownership(on_redis_empty="stop", kafka_group_id="billing")
    claim(taking, Offsets(2, 10, 4))
    with pytest.raises(ConfigError, match=r"no position for events/3.*billing.*committed 4.*on_redis_empty"):
        taking.on_claimed(Claimed("ok", 17), 0)
    assert not taking.owned


def outside(policy: str, stored: int, offsets: Offsets) -> Ownership:
    """The first claim has found a position outside the log, and Kafka has told the same again."""
    taking = ownership(on_offset_out_of_range=policy)
    claim(taking, offsets)
    assert taking.on_claimed(Claimed("ok", 17, 0, stored), 0) == -1
    assert not taking.owned
    claim(taking, offsets)
    return taking


@pytest.mark.parametrize("stored", [1, 11])
def test_a_position_outside_the_log_stops_it(stored: int) -> None:
    taking = outside("stop", stored, Offsets(2, 10, 4))
    with pytest.raises(ConfigError, match=rf"position of events/3 is {stored}.*2 to 10.*on_offset_out_of"):
        taking.on_claimed(Claimed("ok", 18, 0, stored), 0)


@pytest.mark.parametrize(("policy", "expected"), [("earliest", 2), ("latest", 10)])
@pytest.mark.parametrize("stored", [1, 11])
def test_a_position_outside_the_log_is_replaced_if_the_setting_says_so(
    policy: str, expected: int, stored: int
) -> None:
    taking = outside(policy, stored, Offsets(2, 10, 4))
    assert taking.on_claimed(Claimed("ok", 18, 0, stored), 0) == expected
    assert taking.owned


@pytest.mark.parametrize("stored", [2, 10])
def test_both_ends_of_the_log_are_inside_it(stored: int) -> None:
    taking = ownership()
    claim(taking, Offsets(2, 10, 4))
    assert taking.on_claimed(Claimed("ok", 17, 0, stored), 0) == stored


def test_a_position_that_moved_on_between_kafkas_answer_and_the_claim_is_no_fault() -> None:
    taking = ownership()
    claim(taking, Offsets(0, 10, 4))
    assert taking.on_claimed(Claimed("ok", 17, 0, 12), 0) == -1
    claim(taking, Offsets(0, 15, 4))
    assert taking.on_claimed(Claimed("ok", 18, 0, 12), 0) == 12
    assert taking.epoch == 18


def test_a_claim_anew_tells_the_epoch_that_it_has_to_be_above() -> None:
    taking = ownership()
    assert claim(taking, Offsets(0, 10, 4)).above == 0
    taking.on_claimed(Claimed("ok", 17, 5, 6), 0)
    taking.lost(6)
    assert claim(taking, Offsets(0, 10, 4)).above == 17


def test_while_another_one_owns_it_it_stands_by_and_asks_again_every_second() -> None:
    taking = ownership()
    claim(taking, Offsets(0, 10, 4), 500)
    assert taking.on_claimed(Claimed("held", owner="other", age_ms=20), 500) == -1
    assert taking.standby_for == "other"
    assert taking.step(500 + STANDBY_POLL_MS - 1) is None
    request = claim(taking, Offsets(0, 99, 50), 500 + STANDBY_POLL_MS)
    assert (request.may_take, request.offset) == ("", 50)
    assert taking.on_claimed(Claimed("ok", 17, 0, 60), 1_600) == 60
    assert taking.standby_for == ""


def test_what_was_read_of_the_log_before_a_standby_does_not_count_after_it() -> None:
    taking = ownership()
    claim(taking, Offsets(0, 10, 4), 0)
    taking.on_claimed(Claimed("held", owner="other"), 0)
    claim(taking, Offsets(500, 1_000, 900), 3_600_000)
    assert taking.on_claimed(Claimed("ok", 17, 0, 950), 3_600_000) == 950


def test_an_owner_that_is_known_to_be_gone_is_superseded_at_once() -> None:
    asked = []

    def may_take(owner: str) -> bool:
        asked.append(owner)
        return owner == "dead"

    taking = ownership(may_take=may_take)
    claim(taking, Offsets(0, 10, 4))
    assert taking.on_claimed(Claimed("held", owner="dead"), 0) == -1
    request = taking.step(0)
    assert isinstance(request, Claim)
    assert request.may_take == "dead"
    assert taking.on_claimed(Claimed("held", owner="alive"), 0) == -1  # it was faster
    assert taking.standby_for == "alive"
    assert asked == ["dead", "alive"]
    assert taking.step(0) is None


def test_an_owner_that_holds_on_although_it_may_be_taken_is_asked_for_no_oftener() -> None:
    taking = ownership(may_take=lambda owner: True)
    claim(taking, Offsets(0, 10, 4))
    taking.on_claimed(Claimed("held", owner="dead"), 0)
    assert isinstance(taking.step(0), Claim)
    taking.on_claimed(Claimed("held", owner="dead"), 0)
    assert taking.step(0) is None


def test_takeover_is_by_force_once() -> None:
    taking = ownership(force=True)
    assert claim(taking, Offsets(0, 10, 4)).force
    taking.on_claimed(Claimed("ok", 17, 0, 4), 0)
    taking.lost(5)
    assert not claim(taking, Offsets(0, 10, 4)).force


def test_after_a_loss_it_claims_with_the_floor_it_last_had_acknowledged() -> None:
    taking = ownership(on_redis_empty="stop")
    claim(taking, Offsets(0, 10, 4))
    taking.on_claimed(Claimed("ok", 17, 3, 6), 0)
    taking.lost(8)
    assert not taking.owned
    request = claim(taking, Offsets(0, 10, 4))
    assert (request.offset, request.baseline) == (8, 8)
    assert taking.on_claimed(Claimed("ok", 18, 0, 8, 8), 0) == 8
    assert (taking.epoch, taking.rev, taking.baseline) == (18, 0, 8)
