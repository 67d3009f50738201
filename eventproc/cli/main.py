"""The `eventproc` command."""

from __future__ import annotations

import os
import signal

# before the other imports take their time: Ctrl-C never shows a traceback
signal.signal(signal.SIGINT, lambda _signal, _frame: os._exit(130))

from eventproc.cli.run import run  # noqa: E402


def main() -> None:
    """Entry point."""
    run("eventproc.cli.commands")
