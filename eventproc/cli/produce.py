"""`eventproc produce`: writes a described workload to the topic, and its ledger."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from eventproc.cli.options import KAFKA, make_app, with_settings
from eventproc.clock import SystemClock
from eventproc.settings import Settings
from eventproc.workload import Produced, Progress, Workload
from eventproc.workload import produce as produce_workload
from eventproc.workload.posting import ApiShare

app = make_app("Write a described workload to the topic, and its ledger.")


class _Interrupt:
    """INT and TERM end the sending, not the flushing; a second one ends the process."""

    def __init__(self) -> None:
        self.number = 0

    def __call__(self, number: int, _frame: FrameType | None) -> None:
        self.number = number
        signal.signal(number, signal.SIG_DFL)


@app.command()
@with_settings((*KAFKA, "create_topics", "topic_partitions"))
def produce(
    settings: Settings,
    ledger: Annotated[Path | None, typer.Option(metavar="FILE", help="write the ledger there")] = None,
    users: Annotated[int, typer.Option(help="users")] = 5000,
    events_per_user: Annotated[int, typer.Option(help="seqs of each user")] = 10,
    shuffle_window: Annotated[int, typer.Option(help="a record is displaced at most that far")] = 100,
    duplicate_ratio: Annotated[float, typer.Option(help="share of events that come twice")] = 0.0,
    failing_ratio: Annotated[float, typer.Option(help="share of events with payload.fail")] = 0.0,
    unsequenced_ratio: Annotated[
        float, typer.Option(help="events without seq, by share of the others")
    ] = 0.0,
    missing_seqs: Annotated[int, typer.Option(help="seqs that are never produced")] = 0,
    late_events: Annotated[int, typer.Option(help="events produced after their gap has closed")] = 0,
    late_after_ms: Annotated[int, typer.Option(help="how long after, ms; 0: gap_timeout_ms + 2000")] = 0,
    invalid_records: Annotated[int, typer.Option(help="records that are no valid event")] = 0,
    tombstones: Annotated[int, typer.Option(help="records with a null value")] = 0,
    stale: Annotated[int, typer.Option(help="second ids for a taken seq")] = 0,
    conflicts: Annotated[int, typer.Option(help="ids that come again under another seq")] = 0,
    payload_bytes: Annotated[int, typer.Option(help="filler in each payload, bytes")] = 64,
    rate: Annotated[float, typer.Option(help="events/s, by schedule; 0: as fast as possible")] = 0.0,
    seed: Annotated[int, typer.Option(help="same seed and run, same records")] = 1,
    run: Annotated[str, typer.Option(help="begins users and ids; default: from the time, so unique")] = "",
    api_url: Annotated[str, typer.Option(help="the ingest API, to which some users' events are posted")] = "",
    api_share: Annotated[float, typer.Option(help="share of the users that are, with --api-url")] = 0.1,
    quiet: Annotated[bool, typer.Option("--quiet", help="no progress, no summary")] = False,
) -> None:
    """Write a described workload to the topic, and its ledger."""
    clock = SystemClock()
    workload = Workload(
        users=users,
        events_per_user=events_per_user,
        shuffle_window=shuffle_window,
        duplicate_ratio=duplicate_ratio,
        failing_ratio=failing_ratio,
        unsequenced_ratio=unsequenced_ratio,
        missing_seqs=missing_seqs,
        late_events=late_events,
        invalid_records=invalid_records,
        tombstones=tombstones,
        stale=stale,
        conflicts=conflicts,
        payload_bytes=payload_bytes,
        rate=rate,
        seed=seed,
        run=run or f"r{clock.wall_ms():x}",
        topic=settings.kafka_topic,
        start_ms=clock.wall_ms(),
    )
    with _stoppable() as interrupt, _progress_line(quiet) as show:
        result = produce_workload(
            settings,
            workload,
            ledger,
            late_after_ms=late_after_ms,
            on_progress=show,
            stop=lambda: bool(interrupt.number),
            clock=clock,
            api=ApiShare(api_url, api_share) if api_url else None,
        )
    if not quiet:
        Console(highlight=False, markup=False, emoji=False).print(_summary(result))
    if result.unacknowledged or result.interrupted:
        reasons = ", ".join(f"{name} {count}" for name, count in sorted(result.failed.items()))
        print(
            f"error: {result.unacknowledged} of {result.sent} records were not acknowledged"
            + (f" ({reasons})" if reasons else "")
            + (": interrupted" if result.interrupted else ""),
            file=sys.stderr,
        )
        raise typer.Exit(128 + interrupt.number if result.interrupted else 1)


@contextmanager
def _stoppable() -> Iterator[_Interrupt]:
    interrupt = _Interrupt()
    before = [(number, signal.signal(number, interrupt)) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield interrupt
    finally:
        for number, handler in before:
            signal.signal(number, handler)


class _ProgressLine:
    def __init__(self, console: Console) -> None:
        self._console = console

    def __call__(self, progress: Progress) -> None:
        rate = progress.acknowledged * 1000 / max(progress.elapsed_ms, 1)
        text = (
            f"{progress.phase}: {progress.sent:,} sent, {progress.acknowledged:,} acknowledged, {rate:,.0f}/s"
        )
        self._console.file.write(f"\r{text:<70}")
        self._console.file.flush()


@contextmanager
def _progress_line(quiet: bool) -> Iterator[_ProgressLine | None]:
    """A line that is written over, on a terminal only."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield None
        return
    try:
        yield _ProgressLine(console)
    finally:
        console.file.write("\r" + " " * 72 + "\r")


def _summary(result: Produced) -> Table:
    table = Table(show_header=False, box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("what")
    table.add_column("count", justify="right")
    for kind, count in sorted(result.kinds.items(), key=lambda item: -item[1]):
        table.add_row(kind, f"{count:,}")
    table.add_row("acknowledged", f"{result.acknowledged:,}")
    if result.unacknowledged:
        table.add_row("not acknowledged", f"{result.unacknowledged:,}")
    table.add_row("records/s", f"{result.events_per_s:,.0f}")
    return table
