"""`eventproc demo`: the main job, end to end, on embedded servers, and the proof that it was done right."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from eventproc.cli.demo_processes import Child, ChildFailed, Signals, pause
from eventproc.cli.demo_readings import Reading, accepted_over_http, read
from eventproc.cli.demo_view import View, make_view, summary, summary_rows
from eventproc.cli.options import make_app
from eventproc.clock import Clock, SystemClock
from eventproc.errors import EventprocError
from eventproc.settings import Settings
from eventproc.settings_load import PREFIX
from eventproc.supervisor.control import ControlClient
from eventproc.supervisor.runtime import RuntimePaths
from eventproc.workload import read_ledger

app = make_app("Show the main job on embedded servers, and prove it right.")

GAP_TIMEOUT_MS = 1500
EVENTS_PER_USER = 10
API_SHARE = 0.1
_POLL_MS = 300
_START_TIMEOUT_MS = 60_000
_IDLE_TIMEOUT_MS = 120_000
_CONTROL_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What is produced; shares and counts are those of the README."""

    users: int
    rate: int
    seed: int
    duplicate_ratio: float = 0.02
    failing_ratio: float = 0.002
    missing_seqs: int = 8
    late_events: int = 12
    invalid_records: int = 25

    @property
    def events(self) -> int:
        """Events, those that stay out included."""
        return self.users * EVENTS_PER_USER

    @property
    def expected(self) -> int:
        """Records there will be, about."""
        copies = round(self.events * self.duplicate_ratio)
        return self.events - self.missing_seqs + copies + self.invalid_records

    def arguments(self) -> list[str]:
        """For `eventproc produce`."""
        return [
            f"--users={self.users}",
            f"--events-per-user={EVENTS_PER_USER}",
            f"--rate={self.rate}",
            f"--seed={self.seed}",
            "--shuffle-window=200",
            f"--duplicate-ratio={self.duplicate_ratio}",
            f"--failing-ratio={self.failing_ratio}",
            f"--missing-seqs={self.missing_seqs}",
            f"--late-events={self.late_events}",
            f"--invalid-records={self.invalid_records}",
        ]


@app.command()
def demo(
    users: Annotated[int, typer.Option(help="users, with 10 events each", min=100)] = 5000,
    rate: Annotated[
        int, typer.Option(help="events produced per second, 0: as fast as possible", min=0)
    ] = 10_000,
    seed: Annotated[int, typer.Option(help="of the workload", min=0)] = 1,
) -> None:
    """Produce events, watch 8 workers process them on embedded servers, audit every one.

    Exits 0 only if the audit finds nothing wrong. Nothing is left behind.
    """
    for name in [name for name in os.environ if name.upper().startswith(PREFIX)]:
        del os.environ[name]  # the demo is the same everywhere
    console = Console(highlight=False, markup=False, emoji=False)
    signals = Signals()
    with (
        signals.handled(),
        tempfile.TemporaryDirectory(prefix="eventproc-demo-", ignore_cleanup_errors=True) as folder,
    ):
        clean = _Demo(Path(folder), Plan(users, rate, seed), console, SystemClock(), signals).run()
    raise typer.Exit(0 if clean else 1)


class _Demo:
    """One run of the demo; everything it makes lies in `folder`."""

    def __init__(self, folder: Path, plan: Plan, console: Console, clock: Clock, signals: Signals) -> None:
        self._folder = folder
        self._plan = plan
        self._console = console
        self._clock = clock
        self._signals = signals
        self._chosen: dict[str, Any] = {
            "runtime_dir": str(folder),
            "monitor_port": 0,
            "api_port": 0,
            "api_access_log": False,
            "gap_timeout_ms": GAP_TIMEOUT_MS,
            "simulate_runs_dir": str(folder / "runs"),
            "log_level": "warning",
        }
        self._settings = Settings(**self._chosen)
        self._ledger = folder / "ledger.jsonl"

    def run(self) -> bool:
        """Run it; whether the audit was clean."""
        (self._folder / "runs").mkdir()
        started_ms = self._clock.monotonic_ms()
        self._say(
            f"{self._plan.events:,} events for {self._plan.users:,} users, {API_SHARE:.0%} of them over HTTP"
        )
        with self._start_supervisor() as supervisor:
            monitor, api = self._until_ready(supervisor)
            with make_view(self._console) as view:
                self._process(supervisor, monitor, api, view)
            posted = accepted_over_http(api)
            report = self._audit(supervisor)
            code = supervisor.stop()
            if code != 0:
                raise ChildFailed(supervisor, code)
        self._tell(report, posted)
        if not report["clean"]:
            self._say(supervisor.words())
        self._say(f"{(self._clock.monotonic_ms() - started_ms) / 1000:.1f} s in all")
        return bool(report["clean"])

    # --- steps

    def _start_supervisor(self) -> Child:
        self._say("starting an embedded broker, an embedded Redis, 8 workers and the API")
        os.environ |= {f"{PREFIX}{name.upper()}": str(value) for name, value in self._chosen.items()}
        return Child("supervisor", "supervisor", ["start", "--embedded", "--api"], self._folder)

    def _until_ready(self, supervisor: Child) -> tuple[str, str]:
        """Wait until all partitions are owned; learn where everything is: URLs of monitor and API."""
        deadline_ms = self._clock.monotonic_ms() + _START_TIMEOUT_MS
        while True:
            pause(self._clock, self._signals, _POLL_MS // 3, supervisor)
            own = self._status()
            if own and own["state"] == "running":
                break
            if self._clock.monotonic_ms() > deadline_ms:
                raise EventprocError(
                    f"the workers did not start within {_START_TIMEOUT_MS // 1000} s\n{supervisor.words()}"
                )
        os.environ |= {
            f"{PREFIX}KAFKA_BOOTSTRAP_SERVERS": own["kafka_bootstrap_servers"],
            f"{PREFIX}REDIS_URL": own["redis_url"],
        }
        return str(own["monitor"]["url"]), str(own["api"]["url"])

    def _process(self, supervisor: Child, monitor: str, api: str, view: View) -> None:
        """Produce everything and wait until it is done, showing how it goes."""
        deadline_ms = self._clock.monotonic_ms() + _IDLE_TIMEOUT_MS
        view.say("producing")
        end: dict[int, int] = {}
        reading: Reading | None = None
        over_http = [f"--api-url={api}", f"--api-share={API_SHARE}"]
        arguments = ["produce", f"--ledger={self._ledger}", *over_http, *self._plan.arguments()]
        with Child("produce", "main", arguments, self._folder) as producer:
            while True:
                with contextlib.suppress(OSError):  # the supervisor starts a monitor that has died again
                    reading = read(monitor, self._clock.monotonic_ms(), reading)
                    view.show(reading, self._expected(end))
                if not end and producer.poll() is not None:
                    end = self._end_offsets(producer)
                if end and reading is not None and reading.idle_at(end):
                    view.show(reading, self._expected(end), last=True)
                    return
                if self._clock.monotonic_ms() > deadline_ms:
                    raise EventprocError(self._not_idle(reading))
                pause(self._clock, self._signals, _POLL_MS, supervisor)

    def _audit(self, supervisor: Child) -> dict[str, Any]:
        self._say("auditing every event against the producer's ledger")
        arguments = [
            "verify",
            f"--ledger={self._ledger}",
            f"--runs={self._folder / 'runs'}",
            "--no-crashes",
            "--json",
        ]
        with Child("verify", "main", arguments, self._folder) as verifier:
            while (code := verifier.poll()) is None:
                pause(self._clock, self._signals, _POLL_MS // 3, supervisor)
            try:
                report: dict[str, Any] = json.loads(verifier.output())
            except ValueError:
                raise ChildFailed(verifier, code) from None
        return report

    def _tell(self, report: dict[str, Any], posted: int) -> None:
        self._console.print(summary({**summary_rows(report), "over HTTP": f"{posted:,}"}))
        for kind, found in report["findings"].items():
            self._console.print(Text(f"{kind}: {found['count']:,}, for example:", style="bold red"))
            for example in found["examples"][:3]:
                self._console.print(f"  {example}")
        verdict = "the audit is clean: every event is accounted for"
        if not report["clean"]:
            verdict = "THE AUDIT HAS FOUND VIOLATIONS"
        self._console.print(Text(verdict, style="bold green" if report["clean"] else "bold red"))

    # --- what it looks at

    def _status(self) -> dict[str, Any] | None:
        """The supervisor's own part of its status; None while it does not answer yet."""
        try:
            with ControlClient(RuntimePaths.of(self._settings).socket) as client:
                answer = next(client.ask(_CONTROL_TIMEOUT_S, command="status"))
        except EventprocError:
            return None
        own: dict[str, Any] = answer["status"]["supervisor"]
        return own

    def _end_offsets(self, producer: Child) -> dict[int, int]:
        code = producer.poll()
        if code:
            raise ChildFailed(producer, code)
        ledger = read_ledger(self._ledger)
        for _ in ledger.lines():
            pass
        return ledger.end

    def _expected(self, end: dict[int, int]) -> int:
        return sum(end.values()) or self._plan.expected

    def _not_idle(self, reading: Reading | None) -> str:
        if reading is None:
            return "the monitor does not answer"
        states = "; ".join(
            f"partition {number}: {p.state}, lag {p.lag}, parked {p.parked}, unfinalized {p.unfinalized}"
            for number, p in sorted(reading.partitions.items())
            if p.lag or p.parked or p.unfinalized or p.state != "running"
        )
        return f"not done within {_IDLE_TIMEOUT_MS // 1000} s: {states or 'offsets are not committed'}"

    def _say(self, text: str) -> None:
        self._console.print(text, soft_wrap=True)
