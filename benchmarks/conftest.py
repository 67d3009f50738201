"""What all benchmarks share: figures and bars beside the timings, and the summary at the end.

A bar that is missed fails a benchmark only with EVENTPROC_BENCH_ASSERT=1; it is always shown.
"""

from __future__ import annotations

import os
import platform
import subprocess
import textwrap
from collections.abc import Generator
from functools import cache
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from benchmarks.deployment import SMOKE
from eventproc import __version__
from eventproc.store.embedded import find_server

ASSERT_BARS = os.environ.get("EVENTPROC_BENCH_ASSERT") == "1"
_COLUMNS = 100
_NAME_COLUMNS = 30
_FIGURES = "figures"
_ROOT = Path(__file__).parents[1]


def _output(*command: str) -> str:
    """What a command prints; "" when it cannot be run."""
    try:
        done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


@cache
def environment() -> dict[str, str | int]:
    """What the figures depend on: versions, commit (with + when changed since), processor."""
    commit = _output("git", "rev-parse", "--short", "HEAD") or "unknown"
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    server = _output(find_server(), "--version").split()
    return {
        "eventproc": __version__,
        "commit": commit + ("+" if changed else ""),
        "python": platform.python_version(),
        "librdkafka": confluent_kafka.libversion()[0],
        "redis_server": next((word[2:] for word in server if word.startswith("v=")), "unknown"),
        "cpu": _cpu_model(),
        "cpus": len(os.sched_getaffinity(0)),
        "size": "smoke: says nothing about speed" if SMOKE else "full",
    }


class Figures:
    """Puts figures and bars into a benchmark's `extra_info`, from where JSON and summary take them."""

    def __init__(self, extra_info: dict[str, Any]) -> None:
        self._extra_info = extra_info
        self._missed: list[str] = []
        extra_info["environment"] = environment()

    def add(self, **values: Any) -> None:
        """Figures by name; units are in the names."""
        self._extra_info.update(values)

    def bar(
        self,
        what: str,
        value: float,
        *,
        least: float | None = None,
        below: float | None = None,
        most: float | None = None,
    ) -> None:
        """Note whether a bar is cleared: `value` is at least, below, or at most (one of them)."""
        good = (
            (least is None or value >= least)
            and (below is None or value < below)
            and (most is None or value <= most)
        )
        limits = {"at least": least, "below": below, "at most": most}
        wanted = next(f"{name} {_shown(limit)}" for name, limit in limits.items() if limit is not None)
        verdict = "pass" if good else "FAIL"
        text = f"{what}: {_shown(value)}, {wanted}: {verdict}{' (smoke)' if SMOKE else ''}"
        self._extra_info.setdefault("bars", []).append(text)
        if not good:
            self._missed.append(text)

    def judge(self) -> None:
        """To be called last: fails if a bar was missed, where bars are asserted."""
        assert not (ASSERT_BARS and self._missed), "\n".join(self._missed)


@pytest.fixture
def figures(benchmark: Any) -> Figures:
    """Of this benchmark."""
    return Figures(benchmark.extra_info)


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


# --- the summary ----------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Hand a benchmark's figures to the report, so that they are shown whatever became of it."""
    benchmark = getattr(item, "funcargs", {}).get("benchmark")
    if call.when == "call" and benchmark is not None:
        item.user_properties.append((_FIGURES, dict(benchmark.extra_info)))
    return (yield)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Every benchmark with its figures and bars."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call"
    ]
    if not reports:
        return
    terminalreporter.section("figures")
    for line in textwrap.wrap(_pairs(environment()), _COLUMNS, break_long_words=False):
        terminalreporter.write_line(line)
    for report in reports:
        figures = dict(report.user_properties).get(_FIGURES, {})
        bars = figures.pop("bars", [])
        figures.pop("environment", None)
        name = report.nodeid.rpartition("::")[2].removeprefix("test_")
        for line in _lines(name, _pairs(figures) or report.outcome):
            terminalreporter.write_line(line)
        for text in bars:
            good = ": pass" in text
            terminalreporter.write_line(f"{'':{_NAME_COLUMNS}} bar {text}", green=good, red=not good)


def _pairs(figures: dict[str, Any]) -> str:
    return "  ".join(f"{name}={_shown(value)}" for name, value in figures.items())


def _lines(name: str, text: str) -> list[str]:
    return textwrap.wrap(
        text,
        _COLUMNS,
        initial_indent=f"{name:{_NAME_COLUMNS}} ",
        subsequent_indent=" " * (_NAME_COLUMNS + 1),
        break_long_words=False,
        break_on_hyphens=False,
    )
