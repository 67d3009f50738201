"""`python -m tests.simulation.replay SEED [FAULT,…]`: play one simulated history again, and tell it."""

from __future__ import annotations

import sys

from tests.simulation.world import FAULTS, Violation, World


def main() -> int:
    """Run the seed; exit code 1 if it violates a rule."""
    only = sys.argv[2].split(",") if len(sys.argv) > 2 else list(FAULTS)
    world = World(int(sys.argv[1]), only=only)
    try:
        world.run()
    except Violation as violation:
        print(violation)
        return 1
    finally:
        print("events:", world.events, " settings:", world.chosen)
        print("history:", ", ".join(world.history) or "none")
        for name, value in sorted(world.counts.items()):
            print(f"{name:48} {value}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
