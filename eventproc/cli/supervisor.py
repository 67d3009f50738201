"""The `eventproc-supervisor` command."""

from __future__ import annotations

import os
import signal
import sys

#: INT is the way to stop the supervisor; the other commands have not done their work then.
_INTERRUPTED = 0 if "start" in sys.argv[1:2] else 130
# before the other imports take their time: Ctrl-C never shows a traceback
signal.signal(signal.SIGINT, lambda _signal, _frame: os._exit(_INTERRUPTED))

from eventproc.cli.run import run  # noqa: E402


def main() -> None:
    """Entry point."""
    run("eventproc.cli.supervisor_commands")
