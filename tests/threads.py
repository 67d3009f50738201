"""Waiting for threads, but not for ever: of one that hangs it is told where."""

from __future__ import annotations

import sys
import threading
import traceback


def join(thread: threading.Thread, timeout_s: float) -> None:
    """Wait for its end; AssertionError with the stacks of all threads when that does not come."""
    thread.join(timeout_s)
    assert not thread.is_alive(), f"{thread.name} has not ended within {timeout_s:g} s\n{stacks()}"


def stacks() -> str:
    """Where each thread of this process is."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"{names.get(ident, ident)}:\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
