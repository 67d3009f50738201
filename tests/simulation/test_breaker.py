"""Simulated histories in which the breaker opens again and again, and an operator closes it now and then."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from tests.simulation.worker import SimulatedWorker
from tests.simulation.world import FAULTS, World

SEEDS = 400
#: What a drain meets while the breaker holds something; half of the histories have nothing else.
MET_BY_A_DRAIN = ("drain", "foreign_key", "crash_in_run", "locked_elsewhere")


class Guarded(SimulatedWorker):
    """A worker with an operator, who is quicker once nothing more is written."""

    def turn(self) -> None:
        world = self.world
        if self.pipeline.stopped and (not world.to_write or world.random.random() < 0.05):
            self.pipeline.close_breaker()
            world.counts["resumed"] += 1
        super().turn()


@pytest.mark.timeout(300)
def test_a_breaker_loses_doubles_and_reorders_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.simulation.world.SimulatedWorker", Guarded)
    counts: Counter[str] = Counter()
    for seed in range(SEEDS):
        chosen: dict[str, Any] = {"dlq_max_consecutive": seed % 3, "dlq_max_ratio": 0.002 * (1 - seed % 2)}
        chosen["max_attempts"] = 1 + seed // 6 % 2
        world = World(seed, overrides=chosen, only=FAULTS if seed % 4 < 2 else MET_BY_A_DRAIN)
        world.run()
        counts.update(world.counts)
    assert counts["resumed"] > SEEDS // 2
    for reason in ("handler", "rejected", "late", "stale", "id_conflict", "seq_jump", "invalid"):
        assert counts[f"dead_letters{{{reason}}}"] > 0, (reason, counts)
