"""Thousands of simulated histories, each with faults; from_source/test_judge.py proves that they can fail.

A failing seed is named in the message; `python -m tests.simulation.replay SEED` plays it again.
"""

from __future__ import annotations

import os
from collections import Counter

import pytest

from eventproc._reorder import ReorderBuffer
from tests.simulation.run import Part, play_on_all_cores
from tests.simulation.transitions import EXPECTED, unnamed
from tests.simulation.world import FAULTS, World, simulate

SEEDS = int(os.environ.get("EVENTPROC_TEST_SEEDS", "20000"))


#: For tests that look at what came of all seeds: one process plays them, on all cores, for all.
all_seeds = pytest.mark.xdist_group("all_seeds")


@pytest.fixture(scope="module")
def played() -> Part:
    """What came of all seeds, whoever asks first."""
    total = Part()
    for part in play_on_all_cores(range(SEEDS)):
        total.add(part)
    return total


@all_seeds
@pytest.mark.timeout(1800)
def test_no_history_loses_doubles_or_reorders_an_event(played: Part) -> None:
    assert not played.failures, "\n".join(told for _, told in played.failures)
    assert played.played == SEEDS


@all_seeds
@pytest.mark.timeout(1800)
def test_every_fault_strikes_often(played: Part) -> None:
    for fault in FAULTS:
        assert played.counts[f"fault:{fault}"] >= SEEDS // 20, (fault, played.counts)


@all_seeds
@pytest.mark.timeout(1800)
def test_every_transition_is_reached(played: Part) -> None:
    assert sorted(name for name in EXPECTED if not played.counts[name]) == []
    assert unnamed(played.counts) == []


@all_seeds
@pytest.mark.timeout(1800)
def test_async_handlers_run_in_a_third_of_all(played: Part) -> None:
    assert played.counts["async"] >= SEEDS // 5
    assert played.counts["batches"] >= played.counts["async"] // 6


def test_seed_replays_exactly() -> None:
    one, other = World(7), World(7)
    one.run()
    other.run()
    assert one.counts == other.counts
    assert one.history == other.history
    assert one.store.dump() == other.store.dump()
    assert one.judge.runs == other.judge.runs


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone(fault: str) -> None:
    counts: Counter[str] = Counter()
    for seed in range(20):
        counts.update(simulate(seed, only=(fault,)))
    assert counts[f"fault:{fault}"] >= 20


def test_the_buffer_is_the_compiled_one() -> None:
    assert ReorderBuffer.__module__ == "eventproc._reorder"
