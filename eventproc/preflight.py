"""Checks Kafka, Redis and the handler before anything starts, in a process of its own.

The supervisor holds no client and imports no handler; this short-lived child does it for it
(`python -m eventproc.preflight`, a `PreflightSpec` on standard input) and answers with one JSON line:
`{"ok": true, "partitions": 8}` or `{"ok": false, "exit_code": 5, "message": "…"}`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from typing import Any

from eventproc.clock import SystemClock
from eventproc.errors import EventprocError, HandlerLoadError
from eventproc.settings import Settings
from eventproc.spawn import PreflightSpec, die_with_parent, parent_of


def check(settings: Settings) -> dict[str, Any]:
    """The verdict on these settings; never raises."""
    try:
        _check_handler(settings)
        partitions = _check_kafka(settings)
        _check_redis(settings)
    except EventprocError as error:
        return {"ok": False, "exit_code": error.exit_code, "message": str(error)}
    except Exception as error:  # a verdict, whatever happens
        message = f"preflight: {type(error).__name__}: {error}"
        return {"ok": False, "exit_code": EventprocError.exit_code, "message": message}
    return {"ok": True, "partitions": partitions}


def _check_handler(settings: Settings) -> None:
    from eventproc.handlers import load_handler

    try:
        load_handler(settings, SystemClock())
    except SystemExit as error:
        raise HandlerLoadError(
            f"handler {settings.handler}: importing it ends the process (exit {error.code})"
        ) from None


def _check_kafka(settings: Settings) -> int:
    from eventproc.broker.admin import prepare_topics

    count = prepare_topics(settings)
    settings.partition_list(count)
    return count


def _check_redis(settings: Settings) -> None:
    from eventproc.store.check import check_redis

    check_redis(settings)


def main() -> int:
    """Answer on standard output; what a handler prints while it is imported goes to standard error."""
    logging.getLogger("eventproc").addHandler(logging.NullHandler())  # the verdict tells what matters
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with answer:
        try:
            spec = PreflightSpec.read(sys.stdin.buffer)
        except ValueError as error:
            print(f"preflight: {error}", file=sys.stderr)
            return 2
        die_with_parent(parent_of(spec.supervisor))
        answer.write(json.dumps(check(Settings(**spec.settings))) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
