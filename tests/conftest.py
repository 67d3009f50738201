"""Holds for every test: in CI, a test that does not run counts as failed."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Generator
from pathlib import Path

import pytest

IN_CI = os.environ.get("CI") == "true"
PACKAGE = Path(__file__).parents[1] / "eventproc"
#: So much later than pytest-timeout a test ends that this cannot end: it is in C, or in a cleanup that waits.
_GRACE_S = 60
_stderr = pytest.StashKey[int]()


def pytest_configure(config: pytest.Config) -> None:
    """What is compiled must be what is written: an older extension module would be tested in its place."""
    config.stash[_stderr] = os.dup(2)  # before pytest takes it away
    for types in PACKAGE.rglob("*.pxd"):
        source = types.with_suffix(".py")
        for built in types.parent.glob(f"{types.stem}.*.so") if source.exists() else ():
            if built.stat().st_mtime < max(types.stat().st_mtime, source.stat().st_mtime):
                raise pytest.UsageError(f"{source} has changed since it was compiled: make setup")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """A test that hangs ends its process, with the stacks of all threads: a run that hangs tells nothing."""
    marker = item.get_closest_marker("timeout")
    limit_s = float((marker.args[0] if marker else item.config.getini("timeout")) or 0)
    if limit_s:
        faulthandler.dump_traceback_later(limit_s + _GRACE_S, exit=True, file=item.config.stash[_stderr])
    try:
        return (yield)
    finally:
        faulthandler.cancel_dump_traceback_later()


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
