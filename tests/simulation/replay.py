"""`python -m tests.simulation.replay SEED [FAULT,…]`: play one simulated history again, and tell it."""

from __future__ import annotations

import sys

from tests.simulation.world import FAULTS, Violation, World


def main() -> int:
    """Run the seed; exit code 1 if it violates a rule."""
    only = tuple(sys.argv[2].split(",")) if len(sys.argv) > 2 else FAULTS
    world = World(int(sys.argv[1]), only=only)
    try:
        world.run()
    except Violation as violation:
        print(violation)
        return 1
    finally:
        print("faults:", ", ".join(world.history) or "none")
        for name, value in sorted(world.counts.items()):
            print(f"{name:32} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
