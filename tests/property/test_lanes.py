"""Lanes against a slow, obvious model, over long random histories."""

from __future__ import annotations

from dataclasses import dataclass, field

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

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


class LanesAgainstModel(RuleBasedStateMachine):
    """Used as a pipeline uses them: one batch runs at a time, and what comes of it goes back or is done."""

    def __init__(self) -> None:
        super().__init__()
        self.lanes = Lanes()
        self.model = Model()
        self.last = dict.fromkeys("abc", 0)
        self.running: list[Entry] = []
        self.done: list[Entry] = []

    @rule(lane=st.sampled_from("abc"), blocked=st.booleans())
    def arrive(self, lane: str, blocked: bool) -> None:
        self.last[lane] += 1
        seq = self.last[lane]
        entry = Entry(seq, LogRecord(seq, b""), f"{lane}{seq}", lane, seq)
        entry.lane = lane
        (self.lanes.block if blocked else self.lanes.enter)(entry)
        self.model.standing[entry] = not blocked

    def one(self, data: st.DataObject, go: bool) -> Entry:
        """Some entry that stands, blocked or not."""
        return data.draw(st.sampled_from([e for e, may in self.model.standing.items() if may == go]))

    @precondition(lambda self: not all(self.model.standing.values()))
    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        """A lock is granted, or a retry is due."""
        entry = self.one(data, go=False)
        self.lanes.enter(entry)
        self.model.standing[entry] = True

    @precondition(lambda self: any(self.model.standing.values()))
    @rule(data=st.data())
    def block(self, data: st.DataObject) -> None:
        entry = self.one(data, go=True)
        self.lanes.block(entry)
        self.model.standing[entry] = False

    @precondition(lambda self: not all(self.model.standing.values()))
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        entry = self.one(data, go=False)
        self.lanes.drop(entry)
        del self.model.standing[entry]

    @precondition(lambda self: not self.running)
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
        self.running = taken

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def ran(self, data: st.DataObject) -> None:
        """Some fail: they wait, and what of their lane stands behind them was not run."""
        broken: set[str | int] = set()
        unrun: list[Entry] = []
        for entry in self.running:
            if entry.lane in broken:
                unrun.append(entry)
                self.model.standing[entry] = True
            elif data.draw(st.integers(0, 3)) == 0:
                broken.add(entry.lane)
                self.lanes.block(entry)
                self.model.standing[entry] = False
            else:
                self.done.append(entry)
        self.lanes.put_back(unrun)
        self.running = []

    @precondition(lambda self: self.running)
    @rule()
    def not_run_at_all(self) -> None:
        """All of the batch goes back, whatever has come since."""
        self.lanes.put_back(self.running)
        self.model.standing |= dict.fromkeys(self.running, True)
        self.running = []

    @invariant()
    def holds_what_the_model_holds(self) -> None:
        held = self.lanes.entries()
        assert len(held) == len(self.model.standing)
        assert set(held) == set(self.model.standing)
        runnable = self.model.runnable()
        assert len(runnable) <= self.lanes.ready() <= len(held)
        assert bool(self.lanes.ready()) == bool(runnable)
        assert self.lanes.is_idle() == (not held)

    @invariant()
    def runs_each_lane_in_order_and_each_entry_once(self) -> None:
        for lane in "abc":
            seqs = [entry.seq for entry in self.done if entry.lane == lane]
            assert seqs == sorted(set(seqs))

    def teardown(self) -> None:
        """What is still there comes out once everything may run, each once, in order."""
        if self.running:
            self.not_run_at_all()
        for entry, may in self.model.standing.items():
            if not may:
                self.lanes.enter(entry)
        self.done += self.lanes.take(10_000)
        assert self.lanes.is_idle()
        assert self.lanes.take(1) == []
        self.runs_each_lane_in_order_and_each_entry_once()


TestLanes = LanesAgainstModel.TestCase
TestLanes.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
