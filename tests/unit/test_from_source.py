"""Runs tests/from_source, each file in a process of its own, in which no Python of eventproc is compiled."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import eventproc.pipeline

ROOT = Path(__file__).parents[2]
FILES = sorted(path.relative_to(ROOT) for path in (ROOT / "tests" / "from_source").glob("test_*.py"))


def test_here_the_pipeline_is_compiled() -> None:
    assert Path(eventproc.pipeline.__file__).suffix == ".so"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_from_source(file: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.source",
        "-p",
        "no:cacheprovider",
        str(file),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"


def test_there_it_is_not() -> None:
    command = "import tests.source, eventproc.pipeline as it; print(it.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip().endswith("pipeline.py")
