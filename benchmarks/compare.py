"""`python -m benchmarks.compare OLD.json NEW.json`: two stored runs, figure by figure.

pytest-benchmark's own compare knows nothing but times on the clock; here the figures in `extra_info` count.
Exit code 0 whatever they say, 2 for files that cannot be compared.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

#: name of a benchmark -> its figures
Run = dict[str, dict[str, Any]]
_COLUMNS = "{:<50} {:<24} {:>13} {:>13} {:>7}"


def read(path: Path) -> tuple[Run, dict[str, Any]]:
    """The figures of a run, and the environment that it had. Raises ValueError for anything else."""
    try:
        found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["benchmarks"]
        run = {one["name"].removeprefix("test_"): dict(one["extra_info"]) for one in found}
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, TypeError, KeyError):
        raise ValueError(f"{path} is no run of benchmarks") from None
    environment: dict[str, Any] = {}
    for figures in run.values():
        environment |= figures.pop("environment", {})
    return run, environment


def rows(old: Run, new: Run) -> Iterator[tuple[str, str, float, float]]:
    """Benchmark, figure, old and new value, of the numbers that differ."""
    for name, figures in new.items():
        for figure, value in figures.items():
            before: Any = old.get(name, {}).get(figure)
            if _is_number(value) and _is_number(before) and value != before:
                yield name, figure, before, value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def lines(old: Run, new: Run) -> Iterator[str]:
    """The table, and what is in one of the runs only."""
    yield _COLUMNS.format("benchmark", "figure", "old", "new", "ratio")
    last = ""
    for name, figure, before, after in rows(old, new):
        ratio = f"{after / before:.2f}" if before else "-"
        yield _COLUMNS.format("" if name == last else name, figure, f"{before:,}", f"{after:,}", ratio)
        last = name
    for told, run, other in (("old", old, new), ("new", new, old)):
        if only := [name for name in run if name not in other]:
            yield f"in the {told} run only: {', '.join(only)}"


def main(arguments: list[str]) -> int:
    """Print the comparison; the exit code."""
    if len(arguments) != 2:
        print(__doc__, file=sys.stderr)
        return 2
    try:
        (old, was), (new, now) = (read(Path(argument)) for argument in arguments)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for key in sorted(was.keys() | now.keys()):
        if was.get(key) != now.get(key):
            print(f"{key}: {was.get(key)} -> {now.get(key)}")
    print(*lines(old, new), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
