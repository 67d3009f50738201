"""`eventproc`: produce, verify, dlq, offsets, settings."""

from __future__ import annotations

from typing import Annotated

import typer

from eventproc.cli import demo, dlq, offsets, produce, verify
from eventproc.cli.options import add_version, make_app
from eventproc.settings_load import settings_markdown, settings_table

app = make_app("Produce events, look at what became of them, and prove it right.")
for part in (demo, produce, verify):
    app.add_typer(part.app)
app.add_typer(dlq.app, name="dlq")
app.add_typer(offsets.app, name="offsets")
add_version(app, "eventproc")


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
