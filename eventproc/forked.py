"""A child process that is a fork of this one: what is imported here, it need not import again.

Imports are nearly all that a start costs: half a second of processor time for a worker, and more on a busy
host. The child keeps nothing else: its descriptors, signals, session, standard streams and exit hooks are
those of a new process. Fork from a thread that lives as long as the child is to (Linux ends it with that
thread), in a process that has no other thread.
"""

from __future__ import annotations

import atexit
import fcntl
import gc
import importlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import NoReturn

import setproctitle

from eventproc.spawn import die_with_parent

#: What a child runs; its answer is the exit code.
Program = Callable[[], int | None]


@dataclass(frozen=True, slots=True)
class Module:
    """The program that is a module's `main`; imported by the child, unless this process has it already."""

    name: str

    def __call__(self) -> int | None:
        """Run it."""
        code: int | None = importlib.import_module(self.name).main()
        return code


def fork(program: Program, title: str, streams: Sequence[int], keep: Collection[int] = ()) -> int:
    """Run `program` in a child of this process, and return its pid.

    `streams` become its standard input, output and error; of all other descriptors it has only those in
    `keep`. `title` is what ps shows.
    """
    parent = os.getpid()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()  # else the child has what is not written yet, too
    # a signal that comes before the child has handlers of its own must not reach those of this process
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        pid = os.fork()
        if pid == 0:
            _be(program, title, streams, keep, parent, mask)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    return pid


def _be(
    program: Program,
    title: str,
    streams: Sequence[int],
    keep: Collection[int],
    parent: int,
    mask: set[int],
) -> NoReturn:
    """The child's whole life."""
    code = 1
    try:
        die_with_parent(parent)
        gc.freeze()  # what the parent had is not to be finalised here: its descriptors are closed
        os.setsid()
        _reset_signals()
        _reset_descriptors(streams, keep)
        atexit._clear()
        sys.argv = [title]
        setproctitle.setproctitle(f"eventproc: {title}")
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = program() or 0
    except SystemExit as exit:
        code = exit.code if isinstance(exit.code, int) else int(exit.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        _end(code)


def _end(code: int) -> NoReturn:
    """End as an interpreter does, short of tearing down what belongs to the parent."""
    try:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
    finally:
        os._exit(code)


def _reset_signals() -> None:
    signal.set_wakeup_fd(-1)
    for sig in signal.valid_signals():
        if callable(signal.getsignal(sig)):
            signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)


def _reset_descriptors(streams: Sequence[int], keep: Collection[int]) -> None:
    for fd, stream in enumerate([fcntl.fcntl(stream, fcntl.F_DUPFD, len(streams)) for stream in streams]):
        os.dup2(stream, fd)
    below = len(streams)
    for fd in sorted(keep):
        os.set_inheritable(fd, True)  # as the three are: the program may be another one's start
        os.closerange(below, fd)
        below = fd + 1
    os.closerange(below, os.sysconf("SC_OPEN_MAX"))
    sys.stdin = os.fdopen(0, encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stdout = os.fdopen(1, "w", encoding="utf-8", errors="surrogateescape", closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)
