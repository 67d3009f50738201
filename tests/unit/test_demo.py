"""The demo's parts: its readings, how they look, its children, its signals."""

from __future__ import annotations

import contextlib
import io
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from eventproc.cli import demo_processes, demo_view
from eventproc.cli.demo_processes import Child, ChildFailed, Interrupted, Signals, pause
from eventproc.cli.demo_readings import Partition, Reading, parse
from eventproc.cli.demo_view import LineView, describe, render, summary_rows
from eventproc.clock import SystemClock
from eventproc.metrics import Board
from eventproc.monitor.collector import BoardCollector

CLOCK = SystemClock()


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(2)
    yield board
    board.close()


def exposition(board: Board) -> str:
    registry = CollectorRegistry()
    registry.register(BoardCollector(board, [0, 5], CLOCK))
    return generate_latest(registry).decode()


# --- readings


def test_reading_is_what_the_monitor_exposes(board: Board) -> None:
    page = board.page(1)
    page.state = "running"
    page.inc("records_consumed", 30)
    page.inc("events", 20, "processed")
    page.inc("events", 2, "failed")
    page.inc("events", 1, "invalid")
    page.inc("events", 9, "misrouted")  # counted beside their outcome
    page.inc("gaps_closed", 1, "timeout")
    page.inc("gaps_closed", 2, "overflow")
    for name in ("lag", "parked", "unfinalized", "committed"):
        page.set(name, len(name))
    page.observe("latency_ms", [1, 2, 3])
    reading = parse(exposition(board), 77)
    assert reading.at_ms == 77
    assert sorted(reading.partitions) == [0, 5]
    assert reading.partitions[0].settled == 0
    here = reading.partitions[5]
    assert (here.state, here.consumed, here.settled, here.gaps) == ("running", 30, 23, 3)
    assert (here.lag, here.parked, here.unfinalized, here.committed) == (3, 6, 11, 9)
    assert reading.settled == 23
    assert reading.total.outcomes["failed"] == 2


def test_idle_only_when_all_is_committed() -> None:
    done = Reading(0, {0: Partition(committed=10), 1: Partition(committed=7)})
    assert done.idle_at({0: 10, 1: 7})
    assert not done.idle_at({0: 10, 1: 8})
    assert not done.idle_at({0: 10, 1: 7, 2: 0})
    for name in ("lag", "parked", "unfinalized"):
        partition = Partition(committed=10)
        setattr(partition, name, 1)
        assert not Reading(0, {0: partition}).idle_at({0: 10})


# --- what it looks like

BUSY = Reading(
    0,
    {
        number: Partition(
            {"processed": 999_999, "failed": 99_999},
            lag=999_999,
            parked=99_999,
            gaps=9999,
            state=state,
            events_per_s=99_999.4,
        )
        for number, state in enumerate(["running", "starting", "draining"] + ["running"] * 5)
    },
)


def printed(what: object, width: int = 80) -> list[str]:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    console.print(what)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_table_fits_80_columns() -> None:
    lines = printed(render(BUSY, 12_345_678))
    assert len(lines) == 11  # head, eight partitions, their sum, the bar
    assert all(len(line) <= 80 for line in lines)
    assert "…" not in "".join(lines)
    assert "1 starting" in lines[2]
    assert "8,799,984/12,345,678 records" in lines[-1]


def test_line_fits_80_columns() -> None:
    assert len(describe(BUSY, 12_345_678)) <= 90
    assert describe(Reading(0, {0: Partition({"processed": 5, "failed": 1})}), 20) == (
        "6/20 done, 0/s, lag 0, parked 0, failed 1"
    )


def test_lines_come_once_a_second() -> None:
    out = io.StringIO()
    with LineView(Console(file=out, width=80)) as view:
        for at_ms in range(5000, 8000, 200):
            view.show(Reading(at_ms, {}), 1)
        assert out.getvalue().count("\n") == 3
        view.show(Reading(at_ms, {}), 1, last=True)
    assert out.getvalue().count("\n") == 4
    assert "\x1b" not in out.getvalue()


def test_live_view_only_where_it_can_be_redrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert isinstance(demo_view.make_view(Console(force_terminal=True)), demo_view.LiveView)
    assert isinstance(demo_view.make_view(Console(file=io.StringIO())), demo_view.LineView)
    monkeypatch.setenv("TERM", "dumb")
    assert isinstance(demo_view.make_view(Console(force_terminal=True)), demo_view.LineView)


def test_summary_names_what_the_demo_promises() -> None:
    totals = dict.fromkeys(("processed", "failed", "skipped", "duplicates", "invalid", "gaps"), 1000)
    rows = summary_rows({"totals": totals, "events_per_s": 1234.5, "latency_ms": {"p50": 3, "p99": 1500}})
    assert list(rows.items()) == [
        *((name, "1,000") for name in totals),
        ("events/s", "1,234"),
        ("latency p50", "3 ms"),
        ("latency p99", "1,500 ms"),
    ]


# --- children and signals


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


def wait_for(child: Child) -> None:
    while True:
        pause(CLOCK, Signals(), 20, child)


def test_child_that_fails_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = "import sys; print('error: no such thing', file=sys.stderr); sys.exit(3)"
    monkeypatch.setattr(demo_processes, "_ENTRY", failing)
    with Child("broken", "main", [], tmp_path) as child:
        with pytest.raises(ChildFailed, match=r"^broken: no such thing$") as failed:
            wait_for(child)
        assert failed.value.exit_code == 3


def test_child_that_ends_without_a_word_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_processes, "_ENTRY", "")
    with Child("quiet", "main", [], tmp_path) as child:
        with pytest.raises(ChildFailed, match="quiet ended unexpectedly, exit code 0") as failed:
            wait_for(child)
        assert failed.value.exit_code == 1


def test_child_is_ended_when_the_demo_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_processes, "_ENTRY", "import signal; signal.pause()")
    child = Child("idle", "main", [], tmp_path)
    pid = child._process.pid
    with contextlib.suppress(ZeroDivisionError), child:
        assert not gone(pid)
        raise ZeroDivisionError
    assert gone(pid)


def test_child_that_ignores_term_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deaf = "from signal import *; signal(SIGTERM, SIG_IGN); print(1, flush=True); pause()"
    monkeypatch.setattr(demo_processes, "_ENTRY", deaf)
    monkeypatch.setattr(demo_processes, "_STOP_TIMEOUT_S", 0.2)
    with Child("deaf", "main", [], tmp_path) as child:
        while not child.output():
            pause(CLOCK, Signals(), 20, child)
        assert child.stop() == -signal.SIGKILL


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_is_raised_where_it_is_looked_for(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    signals = Signals()
    with signals.handled():
        signals.check()
        os.kill(os.getpid(), number)
        with pytest.raises(Interrupted, match=number.name) as interrupted:
            signals.check()
    assert interrupted.value.exit_code == 128 + number
    assert signal.getsignal(number) is before
