"""`eventproc verify`: audits Redis and Kafka; exit 1 on any violation."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import orjson
import typer
from rich.console import Console

from eventproc.audit import audit, wait_until_idle
from eventproc.cli.options import make_app, with_settings
from eventproc.settings import Settings

app = make_app("Audit Redis and Kafka against what was produced.")


@app.command()
@with_settings()
def verify(
    settings: Settings,
    ledger: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="ledger of the producer; default: read the topic itself"),
    ] = None,
    runs: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="the handler's record of runs: a file or a folder of *.runs"),
    ] = None,
    wait_s: Annotated[float, typer.Option(help="wait that long for everything to be done first")] = 0.0,
    live: Annotated[
        bool, typer.Option("--live", help="workers are busy: judge below the floors only")
    ] = False,
    no_crashes: Annotated[
        bool, typer.Option("--no-crashes", help="no worker died: a repeated run is a violation")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="print JSON")] = False,
) -> None:
    """Audit Redis and Kafka against what was produced; exit 1 on any violation."""
    if wait_s and not wait_until_idle(settings, int(wait_s * 1000)):
        print(f"not everything was done within {wait_s:g} s", file=sys.stderr)
    progress = Console(stderr=True)
    show = progress.is_terminal and not as_json

    def on_progress(what: str, count: int) -> None:
        if show:
            progress.file.write(f"\r{what}{f': {count:,}' if count else ' ...'}{' ' * 30}")
            progress.file.flush()

    report = audit(
        settings, ledger=ledger, runs=runs, idle=not live, crashed=not no_crashes, on_progress=on_progress
    )
    if show:
        progress.file.write("\r" + " " * 60 + "\r")
    if as_json:
        print(orjson.dumps(report.as_json(), option=orjson.OPT_INDENT_2).decode())
    else:
        Console(highlight=False, markup=False, emoji=False).print(report.table())
        print("\n".join(report.lines()))
    if not report.clean:
        raise typer.Exit(1)
