"""Stand-ins for preflight, monitor and embedded servers; and a supervisor that uses them.

    python -m tests.integration.fake_children supervisor [--embedded] [flags of settings: name=value …]

`EVENTPROC_TEST_PLAN` as in fake_worker; there `preflight` holds the verdict (or the word `sleep`), and
`monitor` the word `taken` for a port that is taken.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from eventproc.spawn import MonitorSpec, PreflightSpec, die_with_parent, parent_of

if TYPE_CHECKING:
    from eventproc.settings import Settings
    from eventproc.supervisor.preparation import Server


def plan(name: str) -> str:
    path = Path(os.environ["EVENTPROC_TEST_PLAN"]) / name
    return path.read_text() if path.exists() else ""


def preflight() -> int:
    spec = PreflightSpec.read(sys.stdin.buffer)
    die_with_parent(parent_of(spec.supervisor))
    text = plan("preflight")
    if text == "sleep":
        signal.pause()
    print(text or json.dumps({"ok": True, "partitions": 3}))
    return 0


def monitor() -> int:
    spec = MonitorSpec.read(sys.stdin.buffer)
    die_with_parent(parent_of(spec.supervisor))
    if plan("monitor") == "taken":
        print("monitor: monitor_port=9464: the port is taken", file=sys.stderr)
        return 3
    # waited for, not handled: one that comes just before `pause` would be handled after it, so never
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    print(json.dumps({"port": 4711}), flush=True)
    signal.sigwait({signal.SIGTERM})
    return 0


class FakeServer:
    """A process that does nothing."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(["sleep", "600"], start_new_session=True)

    @property
    def pid(self) -> int:
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.poll()

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()


def embed(settings: Settings) -> tuple[dict[str, Server], Settings]:
    servers: dict[str, Server] = {"broker": FakeServer(), "redis": FakeServer()}
    return servers, settings.model_copy(update={"kafka_bootstrap_servers": f"pid:{servers['redis'].pid}"})


def supervise(arguments: list[str]) -> NoReturn:
    from eventproc import logs
    from eventproc.cli.run import fail
    from eventproc.errors import EventprocError
    from eventproc.forked import Module
    from eventproc.settings_load import load_settings
    from eventproc.supervisor.supervisor import Programs, Supervisor

    programs = Programs(
        Module("tests.integration.fake_worker"),
        monitor,
        preflight,
        embed,
        imports=("tests.integration.fake_worker",),
    )
    try:
        settings = load_settings(dict(a.split("=", 1) for a in arguments if "=" in a))
        logs.configure(settings.log_level, settings.log_format)
        supervisor = Supervisor(settings, "--embedded" in arguments, "--takeover" in arguments, programs)
        sys.exit(asyncio.run(supervisor.run()))
    except EventprocError as error:
        fail(error)


if __name__ == "__main__":
    if sys.argv[1] == "supervisor":
        supervise(sys.argv[2:])
    sys.exit({"preflight": preflight, "monitor": monitor}[sys.argv[1]]())
