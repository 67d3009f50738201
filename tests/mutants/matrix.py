"""`python -m tests.mutants.matrix`: every killer against every mutant, and against the product itself."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.mutants.mutants import KILLERS, MUTANTS, Mutant
from tests.mutants.planting import loose, plant


def _row(mutant: Mutant | None) -> dict[str, bool]:
    with tempfile.TemporaryDirectory() as folder:
        copy = plant(mutant, Path(folder))
        return {killer: loose(killer, copy).killed for killer in KILLERS}


def main() -> int:
    """Print who kills whom; exit code 1 if a mutant survives its killer, or the product does not."""
    wrong = 0
    width = max(len(mutant.name) for mutant in MUTANTS)
    print(" " * width, *KILLERS)
    for mutant in (None, *MUTANTS):
        row = _row(mutant)
        name = mutant.name if mutant is not None else "the product"
        marks = [("X" if killed else ".").center(len(killer)) for killer, killed in row.items()]
        right = row[mutant.killer] if mutant is not None else not any(row.values())
        wrong += not right
        print(name.ljust(width), *marks, "" if right else " <- WRONG", flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
