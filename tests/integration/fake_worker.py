"""A worker that beats, crashes, hangs and drains on command; for tests of the supervisor.

`EVENTPROC_TEST_PLAN` is a folder. The file `<partition>` in it is read all the time; its words are the
command: `boot-fail <code> <message>`, `crash <code>`, `silent` (no beat), `handler` (one that never ends;
`handler stubborn`: and ignores TERM), `standby <owner>`, `stubborn` (ignores TERM), `events <n>` and
`dead-letters <n>` (that many at each turn), `stopped` (by its breaker, until it is told to resume), `deaf`
(the same, for good). No file: it runs, idle. `starts-<partition>` gets a line for each start: pid,
start_count, takeover. `deaths-<partition>` gets one, as JSON: what the start is to record.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import sys
import time
from pathlib import Path

from eventproc.clock import SystemClock
from eventproc.metrics import Board, Page
from eventproc.spawn import WorkerSpec, close_on_exec, die_with_parent, parent_of

TURN_S = 0.02


def main() -> int:
    spec = WorkerSpec.read(sys.stdin.buffer)
    die_with_parent(parent_of(spec.supervisor))
    faulthandler.enable()
    board = Board.open(spec.board_fd, spec.slots)
    close_on_exec([spec.board_fd])
    plan = Path(os.environ["EVENTPROC_TEST_PLAN"])
    with (plan / f"deaths-{spec.partition}").open("a") as deaths:
        deaths.write(json.dumps(spec.death) + "\n")
    # Last: who waits for the line of a start finds the other one too.
    with (plan / f"starts-{spec.partition}").open("a") as starts:
        starts.write(f"{os.getpid()} {spec.start_count} {spec.takeover}\n")
    return work(board.page(spec.slot), plan / str(spec.partition))


def work(page: Page, command: Path) -> int:
    clock = SystemClock()
    told: list[int] = []  # an Event that is set by a handler in its own wait would wait for itself
    signal.signal(signal.SIGTERM, lambda sig, _frame: told.append(sig))
    page.reset_gauges()
    while True:
        words = command.read_text().split() if command.exists() else []
        if page.runs:
            words = ["handler"]  # it has no ear for anything else
        match words:
            case ["boot-fail", code, *message]:
                page.last_error = " ".join(message)
                page.state = "stopped"
                return int(code)
            case ["crash", code]:
                page.state = "running"
                return int(code)
            case ["silent"]:
                page.state = "running"
            case ["handler", *stubborn]:
                if stubborn:
                    signal.signal(signal.SIGTERM, signal.SIG_IGN)
                if not page.runs:
                    page.state = "running"
                    page.running(clock.monotonic_ms(), 17)
                    print("handling", file=sys.stderr, flush=True)
            case ["standby", owner]:
                page.enter("standby", owner)
                page.beat(clock.monotonic_ms())
            case ["stubborn"]:
                page.state = "running"
                page.beat(clock.monotonic_ms())
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
            case ["stopped" | "deaf" as how]:
                if page.state != "paused":
                    page.enter("paused", "stopped by the breaker")
                    page.set("breaker_open", 1)
                if how == "stopped" and page.resumed != page.resumes:
                    page.resumed = page.resumes
                    page.set("breaker_open", 0)
                    command.write_text("")
                page.beat(clock.monotonic_ms())
            case _:
                if words[:1] == ["events"]:
                    page.inc("events", int(words[1]), "processed")
                elif words:
                    page.inc("dead_letters", int(words[1]), "handler")
                    page.last_dead_letter = "u-7 of user u (handler): boom"
                if page.state != "running":
                    page.state = "running"
                page.beat(clock.monotonic_ms())
        time.sleep(TURN_S)
        if told:
            page.state = "stopped"
            return 0


if __name__ == "__main__":
    sys.exit(main())
