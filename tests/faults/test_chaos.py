"""All faults mixed at random, as `make chaos` does, for EVENTPROC_CHAOS_MINUTES (default 3)."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path

import pytest

from tests.faults.chaos.runner import Plan, run
from tests.kafka_server import why_not

MINUTES = float(os.environ.get("EVENTPROC_CHAOS_MINUTES", "3"))
#: Far less than `make chaos`: beside it other tests are running.
RATE_PER_S = 1000

pytestmark = [pytest.mark.timeout(900 + MINUTES * 240), pytest.mark.xdist_group("chaos_mix")]


def test_nothing_is_lost_doubled_or_reordered_in_a_mix_of_all_faults(tmp_path: Path) -> None:
    if reason := why_not():
        pytest.skip(f"no real Kafka: {reason}")
    seed = int(os.environ.get("EVENTPROC_CHAOS_SEED", "0")) or secrets.randbelow(10**6)
    print(f"seed {seed}")
    report = run(Plan(MINUTES, seed, RATE_PER_S, tmp_path), print)
    problems = [problem for it in report.rounds for problem in it.problems]
    assert not problems, f"seed {seed}\n" + "\n".join(problems)
    assert report.missed == [], json.dumps(report.as_json()["kinds"])
    # how many there are in the time is the machine's affair: a killed Kafka may take a minute to return
    assert min(it.records for it in report.rounds) > RATE_PER_S
