"""Planted defects: the simulation has to notice each."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.effects import Claimed, Ended, Entry, Finalized, Request
from eventproc.gaps import GapKeeper
from eventproc.lanes import Lanes
from eventproc.pipeline import Pipeline
from eventproc.settler import Settler
from eventproc.suspects import CRASH_DEATHS, Suspects
from tests.simulation.world import Violation, simulate


def _violated(only: tuple[str, ...], seeds: int = 150, told: str = "") -> bool:
    """Whether any seed fails; `told` is in what the judge says."""
    for seed in range(seeds):
        try:
            simulate(seed, only=only)
        except Violation as violation:
            if told in str(violation):
                return True
        except (ValueError, KeyError):
            if not told:
                return True
    return False


def test_notices_a_floor_past_parked_events(monkeypatch: pytest.MonkeyPatch) -> None:
    def floor(self: Settler) -> int:
        if self._settled:
            self._buffer.settle(self._settled)
            self._settled = []
        return self._buffer.position

    monkeypatch.setattr(Settler, "floor", floor)
    assert _violated(("crash",))


def test_notices_a_gap_closed_without_asking_for_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def close_read(self: GapKeeper) -> list[Any]:
        users = [user for user, _ in self._due]
        self._due = []
        return self.close(users, "timeout")

    monkeypatch.setattr(GapKeeper, "close_read", close_read)
    monkeypatch.setattr(GapKeeper, "expire", _report)
    assert _violated(("stall",))


def _report(keeper: GapKeeper, now_ms: int) -> bool:
    keeper._due += [(user, 0) for user in keeper._buffer.due(now_ms)]
    return False


def test_notices_a_retry_that_is_overtaken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Lanes, "enter", lambda self, entry: self._line.append(entry))
    monkeypatch.setattr(Lanes, "block", lambda self, entry: None)
    monkeypatch.setattr(Lanes, "put_back", lambda self, entries: self._line.extend(entries))
    assert _violated(("stall",))


def test_notices_a_lost_write_that_is_taken_for_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Pipeline.on_finalized

    def on_finalized(self: Pipeline, request: Any, reply: Finalized, now_ms: int, wall_ms: int) -> None:
        if reply.status == "rewound":
            reply = Finalized("ok", request.floor)
        original(self, request, reply, now_ms, wall_ms)

    monkeypatch.setattr(Pipeline, "on_finalized", on_finalized)
    assert _violated(("rewind",))


def test_notices_a_dead_letter_that_is_settled_before_its_acknowledgement(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dead_letter(self: Settler, entry: Entry) -> None:
        self.settle(entry.offset)

    monkeypatch.setattr(Settler, "dead_letter", dead_letter)
    assert _violated(("crash",))


def test_notices_gap_timers_that_run_through_a_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log holds is read before a gap closes, so a stall alone makes no false gap: the end does."""
    monkeypatch.setattr(GapKeeper, "on_end_offset", lambda self, end: _pass(self))
    assert _violated(("stall",))


def _pass(keeper: GapKeeper) -> None:
    if keeper._probing is not None:
        keeper._barriers.append((0, keeper._probing))
        keeper._probing = None


def test_notices_a_handler_that_runs_for_a_final_id(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Pipeline.on_acquired

    def on_acquired(self: Pipeline, request: Any, reply: Any, now_ms: int) -> None:
        looks = [entry.look for entry in request.entries]
        reply.verdicts = [v if look else 0 for v, look in zip(reply.verdicts, looks, strict=False)]
        original(self, request, reply, now_ms)

    monkeypatch.setattr(Pipeline, "on_acquired", on_acquired)
    assert _violated(("crash",))


def test_notices_two_async_handlers_of_one_user_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Lanes.take

    def take(self: Lanes, most: int) -> list[Entry]:
        taken = original(self, most)
        if self._one_each:
            for entry in taken:
                self.drop(entry)
        return taken

    monkeypatch.setattr(Lanes, "take", take)
    monkeypatch.setattr(Lanes, "count", lambda self, heads: 0)  # they stand in no lane any more
    assert _violated(("stall",), told="run together")


def test_notices_a_batch_that_begins_beside_another(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Pipeline._begin_tasks

    def begin(self: Pipeline, now_ms: int, requests: list[Request]) -> None:
        self._batches = False
        original(self, now_ms, requests)

    monkeypatch.setattr(Pipeline, "_begin_tasks", begin)
    assert _violated(("stall",), told="a batch begins beside another")


def test_notices_a_claim_that_does_not_wait_for_async_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Pipeline._reset

    def reset(self: Pipeline, position: int, now_ms: int = 0) -> None:
        original(self, position, now_ms)
        self._strays.clear()

    monkeypatch.setattr(Pipeline, "_reset", reset)
    assert _violated(("flush", "rewind"), told="claims while handlers run")


def test_notices_results_from_before_a_rewind_that_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    on_ended, on_claimed = Pipeline.on_ended, Pipeline.on_claimed
    kept: list[Entry] = []

    def end(self: Pipeline, ended: list[Ended], now_ms: int) -> None:
        kept.extend(it.entry for it in ended if it.entry in self._strays and it.error is None)
        on_ended(self, ended, now_ms)

    def claimed(self: Pipeline, reply: Claimed, now_ms: int) -> list[Request]:
        requests = on_claimed(self, reply, now_ms)
        for entry in kept:
            entry.attempts, entry.status = entry.attempts + 1, "processed"
            self._done.append(entry)
        kept.clear()
        return requests

    monkeypatch.setattr(Pipeline, "on_ended", end)
    monkeypatch.setattr(Pipeline, "on_claimed", claimed)
    assert _violated(("flush", "rewind"), told="from before a rewind is taken")


def test_notices_suspects_that_do_not_run_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Suspects, "single_out", lambda self, entries, lanes, condemn: entries)
    assert _violated(("crash_in_run",), told="do not run alone")


def test_notices_an_innocent_event_that_is_taken_for_a_killer(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Suspects._convict

    def convict(self: Suspects, entry: Entry) -> bool:
        self._known[entry.offset].deaths = CRASH_DEATHS
        return original(self, entry)

    monkeypatch.setattr(Suspects, "_convict", convict)
    assert _violated(("crash_in_run",), told="as crash after deaths beside")


def test_notices_a_killer_that_is_never_convicted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eventproc.suspects.CRASH_DEATHS", CRASH_DEATHS + 1)
    assert _violated(("stall",), told="has killed")
