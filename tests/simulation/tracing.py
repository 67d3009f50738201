"""Which lines and branches of the machine, and which lines of the Lua scripts, simulated histories reach."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import tempfile
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import coverage

import eventproc
from eventproc.store.scripts import NAMES

PACKAGE = Path(eventproc.__file__).parent
#: The state machine, as far as it is Python; what is compiled is judged by transitions.py alone.
MODULES = (
    "asides",
    "finalizer",
    "gaps",
    "inflight_ids",
    "intake",
    "lanes",
    "ownership",
    "pipeline",
    "settler",
)

#: A file, a function in it, and the text of a line; or of two, `from -> to`, for a branch.
Missing = tuple[str, str, str]
#: What meets the rarest lines: keys of others, and what had been final before.
RARE_FAULTS = (
    "foreign_key",
    "expired",
    "locked_elsewhere",
    "reset",
    "crash",
    "crash_in_run",
    "zombie",
    "slow_run",
)


def missing(seeds: range, rare_seeds: range) -> set[Missing]:
    """What these histories do not reach; those of `rare_seeds` see only RARE_FAULTS. On all cores."""
    cores = os.cpu_count() or 1
    shares = [(seeds[core::cores], rare_seeds[core::cores]) for core in range(cores)]
    with ProcessPoolExecutor(cores, mp_context=multiprocessing.get_context("spawn")) as pool:
        return set.intersection(*pool.map(_missing, shares))


def _missing(share: tuple[range, range]) -> set[Missing]:
    files = [str(PACKAGE / f"{name}.py") for name in MODULES]
    tracer = coverage.Coverage(branch=True, include=files, data_file=None, config_file=False)
    os.environ["EVENTPROC_TEST_TRACE_LUA"] = "1"
    tracer.start()
    try:
        # what is imported later is traced from its first line on
        from tests.simulation.memory_store import lines_missed
        from tests.simulation.run import play

        part = play(share[0])
        part.add(play(share[1], only=RARE_FAULTS, events=60))
    finally:
        tracer.stop()
    assert not part.failures, part.failures
    found: set[Missing] = set()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        tracer.json_report(outfile=str(report))
        for name, told in json.loads(report.read_text())["files"].items():
            for function, its in told["functions"].items():
                found |= _of_python(Path(name), function, its["missing_lines"], its["missing_branches"])
    for name in NAMES:
        found |= _of_lua(PACKAGE / "store" / "lua" / f"{name}.lua", lines_missed(name))
    return found


def _of_python(path: Path, function: str, lines: list[int], branches: list[list[int]]) -> set[Missing]:
    text = ["", *[line.strip() for line in path.read_text().splitlines()]]
    found = {(path.name, function, text[line]) for line in lines}
    for start, end in branches:
        if start not in lines and end not in lines:
            found.add((path.name, function, f"{text[start]} -> {text[end] if end > 0 else 'the end'}"))
    return found


def _of_lua(path: Path, lines: set[int]) -> set[Missing]:
    found: set[Missing] = set()
    function = ""
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if match := re.match(r"(?:local )?function (\w+)", line):
            function = match[1]
        elif line.startswith("end"):
            function = ""
        if number in lines:
            found.add((path.name, function, line.strip()))
    return found
