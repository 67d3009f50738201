"""`eventproc-supervisor`: start, status, stop, restart, resume."""

from __future__ import annotations

import asyncio
import json
import sys
from random import Random
from typing import Annotated, Any

import typer

from eventproc import logs
from eventproc.cli.options import DEPLOYMENT, add_version, make_app, with_settings
from eventproc.cli.output import print_table
from eventproc.errors import EventprocError
from eventproc.settings import Settings
from eventproc.supervisor.control import ControlClient
from eventproc.supervisor.runtime import RuntimePaths
from eventproc.supervisor.supervisor import Supervisor

app = make_app("Run the workers of one deployment on this host, and look after them.")
add_version(app, "eventproc-supervisor")

_ANSWER_TIMEOUT_S = 10.0
_END_SLACK_S = 20.0
_COLUMNS = ("part", "pid", "state", "up", "restarts", "events/s", "lag", "parked", "gap s")


@app.command()
@with_settings()
def start(
    settings: Settings,
    embedded: Annotated[
        bool, typer.Option("--embedded", help="start a Kafka broker and a Redis server with it, and end them")
    ] = False,
    takeover: Annotated[
        bool, typer.Option("--takeover", help="take the partitions even from a live owner on another host")
    ] = False,
    api: Annotated[bool, typer.Option("--api", help="serve the HTTP ingest API, too")] = False,
) -> None:
    """Start the workers and the monitor, in the foreground; TERM or INT drains and ends."""
    logs.configure(settings.log_level, settings.log_format)
    supervisor = Supervisor(settings, embedded=embedded, takeover=takeover, random=Random(), api=api)
    raise typer.Exit(asyncio.run(supervisor.run()))


@app.command()
@with_settings(DEPLOYMENT, accept_all=True)
def status(
    settings: Settings,
    as_json: Annotated[bool, typer.Option("--json", help="as JSON")] = False,
) -> None:
    """Show the running supervisor and its workers."""
    with _connect(settings) as client:
        found: dict[str, Any] = next(client.ask(_ANSWER_TIMEOUT_S, command="status"))["status"]
    if as_json:
        print(json.dumps(found, indent=2 if sys.stdout.isatty() else None))
    else:
        _print_table(found)


@app.command()
@with_settings((*DEPLOYMENT, "shutdown_timeout_s"), accept_all=True)
def stop(settings: Settings) -> None:
    """Drain the workers and end the supervisor; returns when it has ended."""
    with _connect(settings) as client:
        pid = next(client.ask(_ANSWER_TIMEOUT_S, command="stop"))["pid"]
        timeout_s = 2 * settings.shutdown_timeout_s + _END_SLACK_S  # an API drains first, then the workers do
        if not client.wait_closed(timeout_s):
            raise EventprocError(f"supervisor (pid {pid}) has not ended within {timeout_s:g} s")
    print(f"stopped (pid {pid})")


@app.command()
@with_settings((*DEPLOYMENT, "shutdown_timeout_s", "heartbeat_timeout_ms"), accept_all=True)
def restart(
    settings: Settings,
    partition: Annotated[int | None, typer.Option(help="only this partition's worker", min=0)] = None,
) -> None:
    """Drain and start again: all workers, one after the other, or one."""
    timeout_s = settings.shutdown_timeout_s + settings.heartbeat_timeout_ms / 1000 + _END_SLACK_S
    with _connect(settings) as client:
        for reply in client.ask(timeout_s, command="restart", partition=partition):
            if "partition" in reply:
                print(f"partition {reply['partition']}: {reply['state']} (pid {reply['pid']})", flush=True)


@app.command()
@with_settings(DEPLOYMENT, accept_all=True)
def resume(
    settings: Settings,
    partition: Annotated[int | None, typer.Option(help="only this partition", min=0)] = None,
) -> None:
    """Let partitions go on that were stopped before one dead letter too many."""
    with _connect(settings) as client:
        for reply in client.ask(_ANSWER_TIMEOUT_S, command="resume", partition=partition):
            if "partition" in reply:
                what = "goes on" if reply["resumed"] else "was not stopped"
                print(f"partition {reply['partition']}: {what}", flush=True)


def _connect(settings: Settings) -> ControlClient:
    return ControlClient(RuntimePaths.of(settings).socket)


def _print_table(found: dict[str, Any]) -> None:
    own = found["supervisor"]
    monitor = own["monitor"] or {}
    print(
        f"supervisor {own['state']}, pid {own['pid']}, up {_duration(own['uptime_s'])},"
        f" version {own['version']}{', embedded' if own['embedded'] else ''}"
    )
    print(f"topic {own['topic']}, group {own['group']}, monitor {monitor.get('url') or 'not up'}")
    if own["api"]:
        print(f"ingest API {own['api']['url'] or 'not up'}")
    if redis := own.get("redis"):  # a supervisor of an older version does not tell
        print(_redis_line(redis))
    print_table(
        _COLUMNS,
        [
            (
                worker["partition"],
                worker["pid"] or "-",
                worker["state"],
                _duration(worker["uptime_s"]),
                worker["restarts"],
                f"{worker['events_per_s']:.0f}",
                worker["lag"],
                worker["parked"],
                f"{worker['oldest_gap_s']:.1f}",
            )
            for worker in found["workers"]
        ],
    )
    for worker in found["workers"]:
        if worker["last_error"]:
            print(f"partition {worker['partition']}: {worker['last_error']}")
    for worker in found["workers"]:
        if worker["last_dead_letter"]:
            print(
                f"partition {worker['partition']}: {worker['dead_letters']} dead letters,"
                f" {worker['dead_letters_per_s']:g}/s; the last: {worker['last_dead_letter']}"
            )


def _redis_line(redis: dict[str, Any]) -> str:
    """Memory, and where it goes; nothing is said of what is not known."""
    limit = redis["maxmemory_bytes"]
    words = [
        f"Redis uses {_size(redis['used_bytes'])}" + (f" of {_size(limit)}" if limit else ", no maxmemory")
    ]
    if redis["bytes_per_event"] is not None:
        words.append(f"{redis['bytes_per_event']} bytes per event")
    if redis["hours_until_maxmemory"] is not None:
        words.append(f"full in {_duration(3600 * redis['hours_until_maxmemory'])} at the current rate")
    return ", ".join(words)


def _size(size_bytes: int) -> str:
    mib = size_bytes / 2**20
    return f"{mib:.1f} MiB" if mib < 1024 else f"{mib / 1024:.1f} GiB"


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} m {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} m"
