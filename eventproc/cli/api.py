"""The `eventproc-api` command."""

from __future__ import annotations

import os
import signal

# before the other imports take their time: Ctrl-C never shows a traceback
signal.signal(signal.SIGINT, lambda _signal, _frame: os._exit(0))

from eventproc.cli.run import run  # noqa: E402


def main() -> None:
    """Entry point. INT is the way to stop it, so it exits 0 whenever it comes."""
    run("eventproc.cli.api_commands")
