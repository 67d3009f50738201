"""Holds for every test: in CI, a test that does not run counts as failed."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI") == "true"
PACKAGE = Path(__file__).parents[1] / "eventproc"


def pytest_configure() -> None:
    """What is compiled must be what is written: an older extension module would be tested in its place."""
    for types in PACKAGE.rglob("*.pxd"):
        source = types.with_suffix(".py")
        for built in types.parent.glob(f"{types.stem}.*.so") if source.exists() else ():
            if built.stat().st_mtime < max(types.stat().st_mtime, source.stat().st_mtime):
                raise pytest.UsageError(f"{source} has changed since it was compiled: make setup")


def _refuse(report: pytest.TestReport | pytest.CollectReport, name: str) -> None:
    if IN_CI and report.skipped:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{name} did not run, but in CI everything must: {reason}"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    _refuse(report, item.nodeid)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse(report, collector.nodeid)
    return report
