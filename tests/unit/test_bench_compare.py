"""`make bench-compare`: what two stored runs differ in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.compare import main


def store(path: Path, commit: str, **benchmarks: dict[str, Any]) -> str:
    """A run as pytest-benchmark writes it, as far as it is read."""
    found = [
        {"name": f"test_{name}", "extra_info": {"environment": {"commit": commit, "cpus": 2}, **figures}}
        for name, figures in benchmarks.items()
    ]
    path.write_text(json.dumps({"benchmarks": found}), encoding="utf-8")
    return str(path)


def test_each_figure_that_differs_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = store(
        tmp_path / "old", "aaa", drain={"redis_us": 20.0, "events": 9, "audit": "clean"}, gone={"us": 1}
    )
    new = store(
        tmp_path / "new", "bbb", drain={"redis_us": 15.0, "events": 9, "audit": "clean"}, added={"us": 1}
    )
    assert main([old, new]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split() for line in told] == [
        ["commit:", "aaa", "->", "bbb"],
        ["benchmark", "figure", "old", "new", "ratio"],
        ["drain", "redis_us", "20.0", "15.0", "0.75"],
        ["in", "the", "old", "run", "only:", "gone"],
        ["in", "the", "new", "run", "only:", "added"],
    ]


def test_nothing_is_divided_by_zero(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old = store(tmp_path / "old", "aaa", latency={"lag": 0})
    new = store(tmp_path / "new", "aaa", latency={"lag": 7})
    assert main([old, new]) == 0
    assert capsys.readouterr().out.splitlines()[1].split() == ["latency", "lag", "0", "7", "-"]


@pytest.mark.parametrize("text", ["", "[]", '{"benchmarks": [{}]}'])
def test_what_is_no_run_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str) -> None:
    new = store(tmp_path / "new", "aaa")
    old = tmp_path / "old"
    old.write_text(text, encoding="utf-8")
    assert main([str(old), new]) == 2
    assert capsys.readouterr().err == f"{old} is no run of benchmarks\n"


def test_a_run_that_is_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "missing"
    assert main([str(missing), store(tmp_path / "new", "aaa")]) == 2
    assert f"{missing} cannot be read" in capsys.readouterr().err
    assert main([]) == 2
