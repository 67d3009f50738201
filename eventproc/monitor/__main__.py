"""Entry of the monitor process; the supervisor starts it with a `MonitorSpec` on standard input."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from eventproc.clock import SystemClock
from eventproc.errors import EventprocError
from eventproc.listening import listen
from eventproc.metrics import Board
from eventproc.monitor.app import build_app
from eventproc.monitor.memory import MemoryWatch
from eventproc.settings import Settings
from eventproc.spawn import MonitorSpec, close_on_exec, die_with_parent, parent_of
from eventproc.store.memory import MemoryProbe


class _Server(uvicorn.Server):
    """Ends on TERM alone: an INT is for the supervisor, which wants the monitor to the last."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # `serve` has done it already, before anybody was told that the monitor is there


def serve(spec: MonitorSpec) -> None:
    """Serve until TERM; announce the port as one JSON line on standard output once it listens."""
    settings = Settings(**spec.settings)
    board = Board.open(spec.board_fd, len(spec.partitions))
    try:
        clock = SystemClock()
        watch = MemoryWatch(board, MemoryProbe(settings), clock)
        app = build_app(board, spec.partitions, settings, clock, watch)
        server = _Server(_config(app))
        signal.signal(signal.SIGTERM, server.handle_exit)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with listen(settings.monitor_host, settings.monitor_port, "monitor") as sock:
            print(json.dumps({"port": sock.getsockname()[1]}), flush=True)
            server.run(sockets=[sock])
    finally:
        board.close()


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        ws="none",
        lifespan="on",
        server_header=False,
        timeout_graceful_shutdown=2,
    )


def main() -> int:
    """Run the monitor; the exit code is that of CONTRACT section 7."""
    try:
        spec = MonitorSpec.read(sys.stdin.buffer)
        die_with_parent(parent_of(spec.supervisor))
        close_on_exec([spec.board_fd])
        serve(spec)
    except EventprocError as error:
        print(f"monitor: {error}", file=sys.stderr)
        return error.exit_code
    except ValueError as error:
        print(f"monitor: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
