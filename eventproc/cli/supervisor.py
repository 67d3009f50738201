"""The `eventproc-supervisor` command."""

from __future__ import annotations

from eventproc.cli.run import run


def main() -> None:
    """Entry point. INT is the way to stop it, so it exits 0 whenever it comes."""
    run("eventproc.cli.supervisor_commands", interrupted=0)
