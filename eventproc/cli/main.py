"""The `eventproc` command."""

from __future__ import annotations

from eventproc.cli.run import run


def main() -> None:
    """Entry point."""
    run("eventproc.cli.commands")
