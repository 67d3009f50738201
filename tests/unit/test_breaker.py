"""The breaker's counting: in a row, by share, and what counts once."""

from __future__ import annotations

from itertools import count

import pytest

from eventproc.breaker import WINDOW, Breaker


def admitted(breaker: Breaker, offsets: count[int], most: int) -> int:
    """How many dead letters are admitted, of at most so many."""
    for n in range(most):
        if not breaker.admits(next(offsets)):
            return n
    return most


def test_off_it_never_opens() -> None:
    breaker = Breaker(0, 0)
    assert admitted(breaker, count(), 5000) == 5000
    assert not breaker.open


@pytest.mark.parametrize("most", [1, 5])
def test_so_many_in_a_row_and_no_more(most: int) -> None:
    breaker, offsets = Breaker(0, most), count()
    for _ in range(3):
        assert admitted(breaker, offsets, most) == most
        breaker.succeeded(1)
    assert admitted(breaker, offsets, 10) == most
    assert breaker.reason == f"{most} dead letters in a row (dlq_max_consecutive)"


def test_no_event_is_no_success() -> None:
    breaker, offsets = Breaker(0, 2), count()
    assert admitted(breaker, offsets, 2) == 2
    breaker.succeeded(0)
    assert not breaker.admits(next(offsets))


def test_the_share_is_of_the_window_from_the_first_event_on() -> None:
    assert admitted(Breaker(0.01, 0), count(), 100) == 10
    assert admitted(Breaker(1.0, 0), count(), 5000) == 5000  # all may fail


def test_what_leaves_the_window_makes_room() -> None:
    breaker, offsets = Breaker(0.002, 0), count()
    assert admitted(breaker, offsets, 2) == 2  # events 1 and 2
    breaker.succeeded(WINDOW - 2)
    assert breaker.admits(next(offsets))  # event 1001: the window has lost event 1
    assert breaker.admits(next(offsets))  # event 1002: and event 2
    assert not breaker.admits(next(offsets))
    assert breaker.reason == f"2 dead letters in the last {WINDOW} events (dlq_max_ratio)"


def test_while_it_is_open_nothing_is_admitted_and_the_reason_stands() -> None:
    breaker, offsets = Breaker(0, 1), count()
    assert admitted(breaker, offsets, 3) == 1
    why = breaker.reason
    breaker.succeeded(5)
    assert not breaker.admits(next(offsets))
    assert (breaker.open, breaker.reason) == (True, why)


def test_closed_it_counts_anew() -> None:
    breaker, offsets = Breaker(0.002, 2), count()
    for _ in range(3):
        assert admitted(breaker, offsets, 10) == 2
        breaker.close()
        assert not breaker.open


def test_what_was_admitted_and_comes_again_counts_once() -> None:
    breaker = Breaker(0, 2)
    assert all(breaker.admits(7) for _ in range(5))
    assert breaker.admits(8)
    assert not breaker.admits(9)
