"""Points at which a worker dies or stops on demand."""

from __future__ import annotations

import os
import signal

import pytest

from eventproc import crashpoints
from eventproc.crashpoints import POINTS, VARIABLE, from_environment
from eventproc.errors import ConfigError


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, signal.Signals]]:
    """What would have been sent, and to whom."""
    sent: list[tuple[int, signal.Signals]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


@pytest.mark.parametrize("value", [None, ""])
def test_nothing_happens_unless_the_environment_says_so(
    monkeypatch: pytest.MonkeyPatch, value: str | None
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert from_environment(0, 0) is None


def test_a_restarted_worker_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "after_run")
    assert from_environment(0, 1) is None
    assert from_environment(0, 0) is not None


@pytest.mark.parametrize("point", POINTS)
def test_at_its_point_the_process_is_killed_and_at_no_other(
    monkeypatch: pytest.MonkeyPatch, signals: list[tuple[int, signal.Signals]], point: crashpoints.Point
) -> None:
    monkeypatch.setenv(VARIABLE, point)
    crash = from_environment(0, 0)
    assert crash is not None
    for other in POINTS:
        if other != point:
            crash(other)
    assert signals == []
    crash(point)
    assert signals == [(os.getpid(), signal.SIGKILL)]
    crash(point)
    assert len(signals) == 1


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("after_run:3", signal.SIGKILL),
        ("after_run:3:kill", signal.SIGKILL),
        ("after_run:3:stop", signal.SIGSTOP),
        ("after_run:3::5", signal.SIGKILL),
        ("after_run:3:stop:5", signal.SIGSTOP),
    ],
)
def test_it_happens_at_the_pass_that_is_named_and_once(
    monkeypatch: pytest.MonkeyPatch,
    signals: list[tuple[int, signal.Signals]],
    text: str,
    number: signal.Signals,
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    crash = from_environment(5, 0)
    assert crash is not None
    crash("after_run")
    crash("after_run")
    assert signals == []
    crash("after_run")
    assert signals == [(os.getpid(), number)]
    crash("after_run")
    assert len(signals) == 1


def test_a_partition_that_is_named_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "after_run:1:kill:5")
    assert from_environment(4, 0) is None
    assert from_environment(5, 0) is not None


@pytest.mark.parametrize(
    "text",
    [
        "somewhere",
        "after_run:1:explode",
        ":1",
        "after_run:x",
        "after_run:0",
        "after_run:-1",
        "after_run:1:kill:x",
        "after_run:1:kill:0:more",
    ],
)
def test_a_text_that_makes_no_sense_is_an_error_that_tells_the_form(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(ConfigError, match=rf"{VARIABLE}={text}: .*<point>.*before_claim"):
        from_environment(0, 0)


def test_of_several_each_partition_goes_by_its_own(
    monkeypatch: pytest.MonkeyPatch, signals: list[tuple[int, signal.Signals]]
) -> None:
    monkeypatch.setenv(VARIABLE, "after_run:1:kill:0,before_load:1:stop:2")
    assert from_environment(1, 0) is None
    first, last = from_environment(0, 0), from_environment(2, 0)
    assert first is not None
    assert last is not None
    first("before_load")
    assert signals == []
    first("after_run")
    last("before_load")
    assert [number for _, number in signals] == [signal.SIGKILL, signal.SIGSTOP]
