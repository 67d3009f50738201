"""How every command is left: errors as one line and an exit code."""

from __future__ import annotations

import logging
import os
import sys
from importlib import import_module
from typing import NoReturn

from eventproc.errors import EventprocError


def run(module: str) -> NoReturn:
    """Import `module`, run its typer `app`, exit."""
    # librdkafka's complaints: what matters of them is in the error that is raised
    logging.getLogger("eventproc").addHandler(logging.NullHandler())
    try:
        try:
            import_module(module).app()
        except SystemExit:
            sys.stdout.flush()  # here, where it is known what to do when the reader has gone
            raise
    except EventprocError as error:
        fail(error)
    except BrokenPipeError:
        # the reader has gone (`| head`); what is buffered must not be tried again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    sys.exit(0)


def fail(error: EventprocError) -> NoReturn:
    """Say what is wrong, a line for each problem, and exit with the error's code."""
    for line in str(error).splitlines() or [type(error).__name__]:
        print(f"error: {line}", file=sys.stderr)
    sys.exit(error.exit_code)
