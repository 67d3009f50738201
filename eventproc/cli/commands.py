"""`eventproc`: produce, verify, dlq, offsets, settings."""

from __future__ import annotations

from typing import Annotated

import typer

from eventproc import __version__
from eventproc.cli import demo, dlq, offsets, produce, verify
from eventproc.cli.options import make_app
from eventproc.settings_load import settings_markdown, settings_table

app = make_app("Produce events, look at what became of them, and prove it right.")
for part in (demo, produce, verify):
    app.add_typer(part.app)
app.add_typer(dlq.app, name="dlq")
app.add_typer(offsets.app, name="offsets")


def _show_version(asked: bool) -> None:
    if asked:
        print(f"eventproc {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", help="show the version", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Produce events, look at what became of them, and prove it right."""


@app.command()
def settings(
    markdown: Annotated[bool, typer.Option("--markdown", help="as the table of the README")] = False,
) -> None:
    """Show every setting: name, type, default, meaning."""
    if markdown:
        print(settings_markdown())
        return
    for name, kind, default, meaning in settings_table():
        print(f"{name} ({kind}){f' = {default}' if default else ''}\n    {meaning}")
