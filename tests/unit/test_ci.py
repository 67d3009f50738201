"""What CI counts: a test that did not run is a failure, and so is a report that is not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.count_tests import main

ROOT = Path(__file__).parents[2]

PASSES = "def test_passes(): pass\n"
SKIPS = "import pytest\ndef test_skips(): pytest.skip('no server')\n"
SKIPS_WHOLE_FILE = "import pytest\npytest.importorskip('no_such_module_at_all')\ndef test_never(): pass\n"


#: What pytest-timeout raises is held up by the cleanup.
HANGS = """
import threading, time, pytest, tests.conftest
tests.conftest._GRACE_S = 1
def test_passes(): pass
@pytest.mark.timeout(1)
def test_hangs():
    try:
        time.sleep(60)
    finally:
        threading.Event().wait()
"""


def run_pytest(folder: Path, source: str, ci: str, more: str = "") -> subprocess.CompletedProcess[str]:
    (folder / "test_it.py").write_text(source, encoding="utf-8")
    options = f"-p tests.conftest -p no:cacheprovider --rootdir {folder} -c {os.devnull} {more}"
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            *options.split(),
            "--junitxml",
            str(folder / "report.xml"),
            str(folder),
        ],
        cwd=ROOT,
        env={**os.environ, "CI": ci},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("source", [SKIPS, SKIPS_WHOLE_FILE])
def test_in_ci_a_skipped_test_fails(tmp_path: Path, source: str) -> None:
    done = run_pytest(tmp_path, source, "true")
    assert done.returncode != 0
    assert "did not run, but in CI everything must" in done.stdout
    assert main([str(tmp_path / "report.xml")]) == 1


def test_a_test_that_hangs_ends_the_run_and_is_named_with_its_stack(tmp_path: Path) -> None:
    """Also in what `make test` does: there a process that is gone is otherwise replaced, and xdist hangs."""
    [options] = [text for text in (ROOT / "Makefile").read_text().splitlines() if "-n $(JOBS)" in text]
    options = options.partition(" -n $(JOBS) ")[2].replace("$(PYTEST_ARGS)", "")
    done = run_pytest(tmp_path, HANGS, "true", f"-n 1 {options}")
    assert done.returncode != 0
    assert "crashed while running 'test_it.py::test_hangs'" in done.stdout
    assert "in test_hangs" in done.stderr
    assert main([str(tmp_path / "report.xml")]) == 1


def test_elsewhere_a_test_may_be_skipped(tmp_path: Path) -> None:
    assert run_pytest(tmp_path, PASSES + SKIPS, "").returncode == 0


def test_the_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_pytest(tmp_path, PASSES, "true").returncode == 0
    report = str(tmp_path / "report.xml")
    assert main([report, report]) == 0
    assert capsys.readouterr().out == "2 passed, 0 failed\n"


@pytest.mark.parametrize("content", ["", "not xml", "<testsuites/>", None])
def test_a_report_that_tells_nothing_is_a_failure(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    report = tmp_path / "report.xml"
    if content is not None:
        report.write_text(content, encoding="utf-8")
    assert main([str(report)]) == 1
    assert capsys.readouterr().out == "0 passed, 1 failed\n"
