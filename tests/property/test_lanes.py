"""Lanes against a slow, obvious model, over long random histories."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from eventproc.effects import Entry
from eventproc.lanes import Lanes
from tests.unit.pipeline_driver import LogRecord


@dataclass
class Model:
    """Every entry that stands somewhere, with whether it may run."""

    standing: dict[Entry, bool] = field(default_factory=dict)

    def runnable(self) -> list[Entry]:
        """What may run without passing a blocked one: per lane by seq, up to the first that is blocked."""
        found = []
        for lane in {entry.lane for entry in self.standing}:
            for entry in sorted((e for e in self.standing if e.lane == lane), key=lambda e: e.seq):
                if not self.standing[entry]:
                    break
                found.append(entry)
        return found

    def counted(self) -> int:
        """All entries of lanes whose head may run."""
        lanes = {entry.lane for entry in self.runnable()}
        return sum(entry.lane in lanes for entry in self.standing)


class LanesAgainstModel(RuleBasedStateMachine):
    made = Bundle("made")

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.model = Model()
        self.used: set[tuple[str, int]] = set()
        self.taken: list[Entry] = []
        self.entries = 0
        self.gone: set[Entry] = set()

    @rule(target=made, lane=st.sampled_from("abc"), seq=st.integers(1, 40), blocked=st.booleans())
    def arrive(self, lane: str, seq: int, blocked: bool) -> object:
        if (lane, seq) in self.used:
            return multiple()
        self.used.add((lane, seq))
        self.entries += 1
        entry = Entry(self.entries, LogRecord(self.entries, b""), f"{lane}{seq}", lane, seq)
        entry.lane = lane
        (self.lanes.block if blocked else self.lanes.enter)(entry)
        self.model.standing[entry] = not blocked
        return entry

    @rule(target=made, entry=consumes(made))
    def enter(self, entry: Entry) -> Entry:
        """A lock is granted, a retry is due, or it goes back unrun."""
        self.lanes.enter(entry)
        self.model.standing[entry] = True
        return entry

    @rule(target=made, entry=consumes(made))
    def block(self, entry: Entry) -> Entry:
        """It is locked, or has failed."""
        self.lanes.block(entry)
        self.model.standing[entry] = False
        return entry

    @rule(entry=consumes(made))
    def drop(self, entry: Entry) -> None:
        self.lanes.drop(entry)
        self.model.standing.pop(entry, None)
        self.gone.add(entry)

    @rule(most=st.integers(1, 6))
    def take(self, most: int) -> None:
        runnable = self.model.runnable()
        taken = self.lanes.take(most)
        assert len(taken) == len(set(taken)) == min(most, len(runnable))
        for lane in {entry.lane for entry in taken}:
            mine = [entry for entry in taken if entry.lane == lane]
            assert mine == [entry for entry in runnable if entry.lane == lane][: len(mine)]
        for entry in taken:
            assert not entry.held
            del self.model.standing[entry]
        self.taken += taken

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        held = self.lanes.entries()
        assert len(held) == len(self.model.standing)
        assert set(held) == set(self.model.standing)
        assert all(entry.held for entry in held)
        assert self.lanes.ready() == self.model.counted()
        assert self.lanes.is_idle() == (not held)
        for lane in "abc":
            seqs = [entry.seq for entry in held if entry.lane == lane]
            assert seqs == sorted(seqs)

    def teardown(self) -> None:
        """What is still there comes out once everything may run, each once, in order."""
        for entry in list(self.model.standing):
            self.lanes.enter(entry)
        left = self.lanes.take(10_000)
        assert len(left) == len(self.model.standing)
        assert set(left) == set(self.model.standing)
        for lane in "abc":
            seqs = [entry.seq for entry in left if entry.lane == lane]
            assert seqs == sorted(seqs)
        assert self.lanes.is_idle()
        assert self.lanes.take(1) == []


TestLanes = LanesAgainstModel.TestCase
TestLanes.settings = settings(max_examples=200, stateful_step_count=60, deadline=None)


def test_lanes_take_turns_so_that_none_waits_for_ever() -> None:
    lanes = Lanes()
    for n in range(1, 101):
        for lane in "ab":
            entry = Entry(n, LogRecord(n, b""), f"{lane}{n}", lane, n)
            entry.lane = lane
            lanes.enter(entry)
    seen = "".join("".join(sorted({str(e.lane) for e in lanes.take(10)})) for _ in range(20))
    assert seen == "ab" * 10
