"""`eventproc demo` as a user runs it: what it prints, how it exits, and that nothing is left behind."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from eventproc.clock import SystemClock

pytestmark = pytest.mark.timeout(180)

CLOCK = SystemClock()
COMMAND = [sys.executable, "-c", "from eventproc.cli.main import main; main()", "demo", "--users=100"]


def environment(tmp_path: Path) -> dict[str, str]:
    """One in which the demo's folder can be told from others', and its processes by it."""
    return os.environ | {"TMPDIR": str(tmp_path), "COLUMNS": "80", "LINES": "24", "TERM": "xterm"}


def left_processes(tmp_path: Path) -> list[str]:
    """Command lines of live processes that know the folder."""
    found = []
    mark = f"TMPDIR={tmp_path}\0".encode()
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit() and int(folder.name) != os.getpid():
            try:
                if mark in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    return found


def assert_nothing_left(tmp_path: Path) -> None:
    deadline_ms = CLOCK.monotonic_ms() + 10_000
    while left_processes(tmp_path) and CLOCK.monotonic_ms() < deadline_ms:
        time.sleep(0.05)
    assert left_processes(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_piped_demo_is_clean_and_leaves_nothing(tmp_path: Path) -> None:
    environ = environment(tmp_path) | {"EVENTPROC_KAFKA_TOPIC": "elsewhere"}  # must not disturb it
    done = subprocess.run(COMMAND, env=environ, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the audit is clean" in done.stdout
    progress = re.findall(r"^([\d,]+)/([\d,]+) done, [\d,]+/s, lag", done.stdout, re.MULTILINE)
    assert progress[-1][0] == progress[-1][1], progress  # all of what there turned out to be
    for name in ("processed", "failed", "skipped", "duplicates", "invalid", "gaps", "events/s", "over HTTP"):
        assert re.search(rf"^{name} +[1-9][\d,]*$", done.stdout, re.MULTILINE), name
    for name in ("latency p50", "latency p99"):
        assert re.search(rf"^{name} +[1-9][\d,]* ms$", done.stdout, re.MULTILINE), name
    assert "\x1b" not in done.stdout
    assert done.stderr == ""
    assert_nothing_left(tmp_path)


def test_on_a_terminal_it_is_redrawn_within_80_columns(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen(COMMAND, env=environment(tmp_path), stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        output = b""
        while True:
            try:
                if select.select([ours], [], [], 100)[0] and (data := os.read(ours, 65536)):
                    output += data
                    continue
            except OSError:
                pass
            break
        os.close(ours)
        assert process.wait(30) == 0, output.decode()
    text = output.decode()
    assert "\x1b[2K" in text  # lines are erased and written again
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    assert "gaps closed" in plain
    assert max(len(line.rpartition("\r")[2]) for line in plain.replace("\r\n", "\n").split("\n")) <= 80
    assert_nothing_left(tmp_path)


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "starting"),
        (signal.SIGTERM, "done,"),
        (signal.SIGINT, "auditing"),
    ],
)
def test_interrupted_demo_leaves_nothing(tmp_path: Path, number: signal.Signals, moment: str) -> None:
    with subprocess.Popen(
        COMMAND,
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stdout:
            if moment in line:
                process.send_signal(number)
                break
        process.stdout.read()
        errors = process.stderr.read()
        assert process.wait(60) == 128 + number
    assert errors == f"error: interrupted by {number.name}\n"
    assert_nothing_left(tmp_path)


def test_killed_demo_takes_its_processes_along(tmp_path: Path) -> None:
    with subprocess.Popen(
        COMMAND,
        env=environment(tmp_path) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert any("done," in line for line in process.stdout)
        process.kill()
        process.wait(10)
    deadline_ms = CLOCK.monotonic_ms() + 40_000
    while left_processes(tmp_path) and CLOCK.monotonic_ms() < deadline_ms:
        time.sleep(0.05)
    assert left_processes(tmp_path) == []
