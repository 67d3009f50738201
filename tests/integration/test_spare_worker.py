"""A worker in reserve takes the place of one that dies, and nothing of it is left in the end."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from tests.integration.supervised import Supervised, alive, wait_for


def spares(it: Supervised) -> list[int]:
    """Children that do no work yet."""
    children = {child.pid for child in psutil.Process(it.process.pid).children()}
    return sorted(children.difference(it.pids()))


def spare(it: Supervised) -> int:
    """The one in reserve, once it is there."""
    [pid] = wait_for(lambda: spares(it), 20, "a spare worker")
    return int(pid)


@pytest.fixture
def it(tmp_path: Path) -> Iterator[Supervised]:
    supervised = Supervised(tmp_path)
    yield supervised.ready()
    supervised.close()


def test_it_takes_the_place_of_one_that_dies_and_another_one_is_started(it: Supervised) -> None:
    first = spare(it)
    os.kill(it.worker(1)["pid"], signal.SIGKILL)
    wait_for(lambda: {"state": "running", "pid": first}.items() <= it.worker(1).items(), 10, "its successor")
    assert it.starts(1)[-1][:2] == [str(first), "1"]
    second = spare(it)
    assert second != first
    it.signal(signal.SIGTERM)
    assert it.ends(10) == 0
    assert not alive(second)


def test_one_that_dies_in_reserve_is_not_used(it: Supervised) -> None:
    dead = spare(it)
    os.kill(dead, signal.SIGKILL)
    wait_for(lambda: not alive(dead), 5)
    os.kill(it.worker(0)["pid"], signal.SIGKILL)
    wait_for(lambda: {"state": "running", "restarts": 1}.items() <= it.worker(0).items(), 10)
    assert it.worker(0)["pid"] != dead
    assert spare(it) != dead


def test_it_does_not_outlive_a_killed_supervisor(it: Supervised) -> None:
    pid = spare(it)
    it.signal(signal.SIGKILL)
    it.ends()
    wait_for(lambda: not alive(pid), 2)


def test_there_is_none_when_the_setting_says_so(tmp_path: Path) -> None:
    it = Supervised(tmp_path, spare_worker=False).ready()
    try:
        os.kill(it.worker(2)["pid"], signal.SIGKILL)
        wait_for(lambda: it.worker(2)["restarts"] == 1 and it.worker(2)["state"] == "running", 10)
        with pytest.raises(AssertionError, match="a spare worker"):
            wait_for(lambda: spares(it), 7, "a spare worker")
    finally:
        it.close()
