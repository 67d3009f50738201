"""Each planted bug is noticed by its killer, which has nothing to say against the product itself.

`make mutants` lets all killers loose on all mutants.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.mutants.mutants import KILLERS, MUTANTS, SEEDS, Mutant
from tests.mutants.planting import Outdated, loose, plant


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plant(None, tmp_path_factory.mktemp("product"))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_is_killed(mutant: Mutant, tmp_path: Path) -> None:
    verdict = loose(mutant.killer, plant(mutant, tmp_path))
    assert verdict.killed, f"{mutant.bug}, and nobody notices:\n{verdict.output[-4000:]}"


@pytest.mark.parametrize("killer", SEEDS)
def test_killer_spares_the_product(killer: str, product: Path) -> None:
    """Those that are tests of their own pass anyway, or the suite fails."""
    verdict = loose(killer, product)
    assert not verdict.killed, verdict.output[-4000:]


def test_all_ten_bugs_are_planted() -> None:
    assert {int(mutant.name.split()[0]) for mutant in MUTANTS} == set(range(1, 11))
    assert {mutant.killer for mutant in MUTANTS} == set(KILLERS)


def test_an_outdated_mutant_is_told(tmp_path: Path) -> None:
    with pytest.raises(Outdated, match="holds 0 times"):
        plant(Mutant("0 x", "", "parked", (("gaps.py", "no such text", ""),)), tmp_path)
