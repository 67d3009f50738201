"""How the demo's progress and result look: redrawn in place on a terminal, lines in a pipe."""

from __future__ import annotations

from typing import Any, Protocol, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table

from eventproc.cli.demo_readings import Partition, Reading

_LINE_MS = 1000
_COLUMNS = ("partition", "events/s", "done", "lag", "parked", "failed", "gaps closed")


class View(Protocol):
    """Shows the demo's progress. Enter it before `show`."""

    def say(self, text: str) -> None:
        """Tell what begins now."""
        ...

    def show(self, reading: Reading, expected: int, last: bool = False) -> None:
        """Show a reading; `expected` is how many records there will be. The `last` one is never left out."""
        ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...


def make_view(console: Console) -> View:
    """A table on a terminal that can redraw, else lines."""
    if console.is_terminal and not console.is_dumb_terminal:
        return LiveView(console)
    return LineView(console)


class LiveView:
    """A table of the partitions over a bar, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False)

    def say(self, text: str) -> None:
        self._console.print(text)

    def show(self, reading: Reading, expected: int, last: bool = False) -> None:
        self._live.update(render(reading, expected), refresh=True)

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()


class LineView:
    """A line a second."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._last_ms: int | None = None

    def say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)

    def show(self, reading: Reading, expected: int, last: bool = False) -> None:
        if not last and self._last_ms is not None and reading.at_ms - self._last_ms < _LINE_MS:
            return
        self._last_ms = reading.at_ms
        self._console.print(describe(reading, expected), soft_wrap=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        pass


def describe(reading: Reading, expected: int) -> str:
    """A reading as one line of less than 80 characters."""
    total = reading.total
    return (
        f"{total.settled:,}/{expected:,} done, {total.events_per_s:,.0f}/s, lag {total.lag:,},"
        f" parked {total.parked:,}, failed {total.outcomes.get('failed', 0):,}"
    )


def render(reading: Reading, expected: int) -> RenderableType:
    """A reading as a table of the partitions and a bar; 80 columns are enough."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in _COLUMNS:
        table.add_column(name, justify="left" if name == "partition" else "right", no_wrap=True)
    for number, partition in sorted(reading.partitions.items()):
        name = str(number) if partition.state == "running" else f"{number} {partition.state}"
        table.add_row(*_cells(name, partition))
    table.add_section()
    table.add_row(*_cells("all", reading.total), style="bold")
    done = min(reading.settled, expected)
    bar = Table.grid(padding=(0, 1, 0, 0))
    bar.add_row(
        ProgressBar(total=max(1, expected), completed=done, width=48), f"{done:,}/{expected:,} records"
    )
    return Group(table, bar)


def _cells(name: str, partition: Partition) -> list[str]:
    return [
        name,
        f"{partition.events_per_s:,.0f}",
        f"{partition.settled:,}",
        f"{partition.lag:,}",
        f"{partition.parked:,}",
        f"{partition.outcomes.get('failed', 0):,}",
        f"{partition.gaps:,}",
    ]


def summary(rows: dict[str, str]) -> Table:
    """The result as a table of two columns."""
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def summary_rows(report: dict[str, Any]) -> dict[str, str]:
    """What the summary shows of an audit's JSON report."""
    totals = report["totals"]
    rows = {
        name: f"{totals[name]:,}"
        for name in ("processed", "failed", "skipped", "duplicates", "invalid", "gaps")
    }
    rows["events/s"] = f"{report['events_per_s']:,.0f}"
    rows["latency p50"] = f"{report['latency_ms']['p50']:,} ms"
    rows["latency p99"] = f"{report['latency_ms']['p99']:,} ms"
    return rows
