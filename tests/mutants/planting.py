"""Plants a mutant in a copy of the package, never in the tree itself, and lets a killer loose on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.mutants.mutants import KILLERS, Mutant

ROOT = Path(__file__).parents[2]
COPIED = ("eventproc", "tests", "pyproject.toml")
TIMEOUT_S = 280


class Outdated(Exception):
    """A mutant does not fit the product any more."""


def plant(mutant: Mutant | None, folder: Path) -> Path:
    """A copy of the tree in a new subfolder, with the mutant in it (None: without any). Raises Outdated."""
    copy = folder / "tree"
    copy.mkdir()
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(ROOT / name, copy / name)
    for source in (copy / "eventproc").rglob("*.py"):  # what is compiled would hide what is planted
        for built in source.parent.glob(f"{source.stem}.*.so"):
            built.unlink()
    for file, old, new in mutant.changes if mutant is not None else ():
        path = copy / "eventproc" / file
        text = path.read_text()
        if text.count(old) != 1:
            raise Outdated(f"mutant {mutant.name!r}: {file} holds {text.count(old)} times:\n{old}")  # type: ignore[union-attr]
        path.write_text(text.replace(old, new))
    return copy


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a killer said: it failed (a kill) or passed, and its output."""

    killed: bool
    output: str


def loose(killer: str, copy: Path) -> Verdict:
    """Run a killer in the copy. RuntimeError when it neither passes nor fails, but breaks."""
    environment = {**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1"}
    where = "import sys, eventproc; sys.exit(not eventproc.__file__.startswith(sys.argv[1]))"
    for command in (("-c", where, str(copy)), KILLERS[killer]):
        done = subprocess.run(
            [sys.executable, *command],
            cwd=copy,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
        )
        if done.returncode not in (0, 1) or (done.returncode and command[0] == "-c"):
            raise RuntimeError(f"killer {killer} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return Verdict(done.returncode == 1, done.stdout)
