"""The supervisor with real processes: start, restart, hang, drain, death, control."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from eventproc.errors import EventprocError, UsageError
from eventproc.supervisor.control import ControlClient
from tests.integration.supervised import ROOT, Supervised, alive, wait_for

Start = Callable[..., Supervised]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[Supervised] = []

    def make(*arguments: str, **settings: object) -> Supervised:
        started.append(Supervised(tmp_path, *arguments, **settings))
        return started[-1]

    yield make
    for supervised in started:
        supervised.close()


def plan(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "plan").mkdir(exist_ok=True)
    (tmp_path / "plan" / name).write_text(text)


# --- start -----------------------------------------------------------------------------------------


def test_is_ready_once_every_partition_is_owned(start: Start, tmp_path: Path) -> None:
    plan(tmp_path, "1", "standby other-host:7:1")
    it = start()
    it.logged("other-host:7:1")
    assert it.status()["supervisor"]["state"] == "starting"
    assert " ready " not in it.log()
    it.tell(1, "")
    it.ready()
    found = it.status()
    assert found["supervisor"]["state"] == "running"
    assert found["supervisor"]["pid"] == it.process.pid
    assert found["supervisor"]["monitor"]["url"] == "http://127.0.0.1:4711"
    assert [w["partition"] for w in found["workers"]] == [0, 1, 2]
    assert set(found["workers"][0]) == {
        *("partition", "pid", "state", "uptime_s", "restarts", "events_per_s", "lag", "parked"),
        *("oldest_gap_s", "dead_letters", "dead_letters_per_s", "last_dead_letter", "last_error"),
    }


def test_runs_only_the_partitions_it_was_given(start: Start) -> None:
    it = start(partitions="0,2").ready()
    assert [w["partition"] for w in it.status()["workers"]] == [0, 2]


def test_a_partition_that_does_not_exist_is_a_configuration_error(start: Start) -> None:
    it = start(partitions="2-3")
    assert it.ends() == 3
    assert "error: partitions='2-3': topic events has 3 partitions, 0 to 2" in it.log()


@pytest.mark.parametrize("code", [1, 3, 4, 5])
def test_what_the_preflight_finds_is_the_exit_code_and_the_message(
    start: Start, tmp_path: Path, code: int
) -> None:
    plan(tmp_path, "preflight", json.dumps({"ok": False, "exit_code": code, "message": "Kafka is not there"}))
    it = start()
    assert it.ends() == code
    assert it.log().count("error: Kafka is not there") == 1
    assert "Traceback" not in it.log()
    assert not it.paths.socket.exists()


def test_a_preflight_that_breaks_is_told_in_one_line(start: Start, tmp_path: Path) -> None:
    plan(tmp_path, "preflight", "no JSON")
    it = start()
    assert it.ends() == 1
    assert "error: preflight exited with code 0" in it.log()


def test_interrupt_during_the_start_ends_within_a_second(start: Start, tmp_path: Path) -> None:
    plan(tmp_path, "preflight", "sleep")
    it = start()
    it.logged("starting")
    wait_for(it.paths.socket.exists)
    it.signal(signal.SIGINT)
    assert it.ends(3) == 0
    assert "Traceback" not in it.log()


@pytest.mark.parametrize("code", [3, 4])
def test_a_boot_failure_is_not_tried_again(start: Start, tmp_path: Path, code: int) -> None:
    plan(tmp_path, "1", f"boot-fail {code} offset 7 is not in the log")
    it = start()
    assert it.ends() == code
    assert it.log().count("error: offset 7 is not in the log") == 1
    assert len(it.starts(1)) == 1


def test_a_taken_monitor_port_is_told_before_anything_starts(start: Start, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        it = start("--embedded", monitor_port=port)
        assert it.ends() == 3
    assert it.log().count(f"error: monitor_port={port}: the port is taken on 127.0.0.1") == 1
    assert not it.starts(0)
    assert "embedded broker" not in it.log()


def test_a_monitor_port_that_is_taken_meanwhile_ends_the_start(start: Start, tmp_path: Path) -> None:
    plan(tmp_path, "monitor", "taken")
    it = start()
    assert it.ends() == 3
    assert it.log().count("error: monitor_port=9464: the port is taken") == 1


def test_a_second_one_is_refused_and_names_the_first(start: Start) -> None:
    first = start().ready()
    second = start()
    assert second.ends() == 1
    assert f"is already running on this host: pid {first.process.pid}" in second.log()
    assert first.status()["supervisor"]["state"] == "running"


def test_another_group_is_another_deployment(start: Start) -> None:
    start().ready()
    other = start(kafka_group_id="others")
    wait_for(lambda: other.log().count(" ready ") == 2)
    assert other.status()["supervisor"]["group"] == "others"


def test_the_socket_of_a_dead_one_is_used_again(start: Start) -> None:
    it = start().ready()
    it.process.kill()
    it.process.wait()
    assert it.paths.socket.exists()
    it.again()
    wait_for(lambda: it.log().count(" ready ") == 2)
    assert it.status()["supervisor"]["pid"] == it.process.pid


def test_the_control_socket_is_the_users_own(start: Start) -> None:
    it = start().ready()
    assert stat.S_IMODE(it.paths.socket.stat().st_mode) == 0o600


def test_a_long_runtime_dir_gets_a_short_socket(start: Start, tmp_path: Path) -> None:
    it = start()
    it.close()
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    long = Supervised(folder)
    try:
        long.ready()
        assert len(str(long.paths.socket)) <= 100
        assert long.status()["workers"]
    finally:
        long.close()
        long.paths.socket.unlink(missing_ok=True)
        long.paths.lock.unlink(missing_ok=True)


def test_takeover_is_for_the_first_start_only(start: Start, tmp_path: Path) -> None:
    it = start("--takeover").ready()
    os.kill(it.worker(0)["pid"], signal.SIGKILL)
    wait_for(lambda: len(it.starts(0)) == 2)
    assert [words[1:] for words in it.starts(0)] == [["0", "True"], ["1", "False"]]


# --- embedded servers -------------------------------------------------------------------------------


def test_embedded_servers_end_with_it(start: Start) -> None:
    it = start("--embedded").ready()
    pid = int(it.status()["supervisor"]["kafka_bootstrap_servers"].removeprefix("pid:"))
    assert alive(pid)
    assert "nothing outlives this process" in it.log()
    it.signal(signal.SIGTERM)
    assert it.ends() == 0
    assert not alive(pid)


def test_the_death_of_an_embedded_server_ends_all_with_5(start: Start) -> None:
    it = start("--embedded").ready()
    children = it.pids()
    it.tell(0, "stubborn")
    os.kill(int(it.status()["supervisor"]["kafka_bootstrap_servers"].removeprefix("pid:")), signal.SIGKILL)
    assert it.ends(10) == 5
    assert "error: the embedded redis has ended" in it.log()
    assert not any(map(alive, children))


# --- deaths -----------------------------------------------------------------------------------------


def test_the_first_restart_is_at_once_and_the_others_are_left_alone(start: Start) -> None:
    it = start(restart_backoff_ms=60_000, restart_backoff_max_ms=60_000).ready()
    before = it.status()["workers"]
    os.kill(before[1]["pid"], signal.SIGKILL)
    after = wait_for(lambda: (w := it.worker(1))["state"] == "running" and w["restarts"] == 1 and w)
    assert after["pid"] != before[1]["pid"]
    assert "SIGKILL" in after["last_error"]
    assert [w["pid"] for w in it.status()["workers"][::2]] == [w["pid"] for w in before[::2]]


def test_a_crash_loop_backs_off_and_uses_its_budget_up(start: Start) -> None:
    it = start(restart_backoff_ms=40, restart_backoff_max_ms=2000, restart_budget=3).ready()
    others = [w["pid"] for w in it.status()["workers"][1:]]
    it.tell(0, "crash 9")
    it.logged("restart budget used up")
    crashed = wait_for(lambda: (w := it.worker(0))["state"] == "crashed" and w)
    assert "exited with code 9; 4 deaths in a row, starts again every 2000 ms" in crashed["last_error"]
    assert it.status()["supervisor"]["state"] == "degraded"
    assert [w["pid"] for w in it.status()["workers"][1:]] == others
    pauses = [
        int(word.removeprefix("pause_ms="))
        for line in it.log().splitlines()
        if "worker died" in line
        for word in line.split()
        if word.startswith("pause_ms=")
    ]
    assert pauses[0] == 0
    assert 20 <= pauses[1] <= 40
    assert 40 <= pauses[2] <= 80
    assert pauses[3] == 2000
    it.tell(0, "")
    wait_for(lambda: it.worker(0)["state"] == "running")


def test_a_worker_without_progress_is_killed_and_shows_its_stack(start: Start) -> None:
    it = start(heartbeat_timeout_ms=3000).ready()
    pid = it.worker(0)["pid"]
    it.tell(0, "silent")
    wait_for(lambda: it.worker(0)["pid"] != pid, 20)
    it.tell(0, "")
    assert not alive(pid)
    it.logged("no progress for")
    it.logged("Fatal Python error: Aborted")
    it.logged("fake_worker.py")
    assert "heartbeat_timeout_ms=3000" in it.worker(0)["last_error"]


def test_a_stopped_worker_is_killed(start: Start) -> None:
    it = start(heartbeat_timeout_ms=3000).ready()
    pid = it.worker(0)["pid"]
    os.kill(pid, signal.SIGSTOP)
    wait_for(lambda: not alive(pid), 20)
    wait_for(lambda: it.worker(0)["state"] == "running")


def test_a_handler_may_run_longer_than_a_heartbeat_but_not_for_ever(start: Start) -> None:
    it = start(heartbeat_timeout_ms=3000, handler_timeout_ms=5000).ready()
    it.tell(2, "handler")
    it.logged("handler has run for", 20)
    it.tell(2, "")
    assert "no progress" not in it.log()
    reason = wait_for(lambda: (w := it.worker(2))["restarts"] == 1 and w)["last_error"]
    assert "(offset 17): handler_timeout_ms=5000" in reason


def test_what_ran_at_a_death_is_told_to_the_next_start_and_only_to_it(start: Start) -> None:
    it = start(restart_backoff_ms=50).ready()
    it.tell(1, "handler")
    pid = it.worker(1)["pid"]
    it.logged("handling")
    it.tell(1, "")
    os.kill(pid, signal.SIGSEGV)
    wait_for(lambda: len(it.starts(1)) == 2)
    told = it.deaths(1)[-1]
    assert told is not None
    assert (told["offsets"], told["cause"]) == ([17], "was killed by SIGSEGV")
    wait_for(lambda: it.worker(1)["state"] == "running")
    os.kill(it.worker(1)["pid"], signal.SIGKILL)
    wait_for(lambda: len(it.starts(1)) == 3)
    assert it.deaths(1)[-1] is None


def test_a_death_is_told_until_a_start_has_claimed(start: Start) -> None:
    it = start(restart_backoff_ms=50, handler_timeout_ms=500).ready()
    it.tell(1, "handler")
    it.logged("handling")
    it.tell(1, "boot-fail 1 out of luck")
    wait_for(lambda: len(it.starts(1)) >= 3)
    first, *later = it.deaths(1)[1:]
    assert first is not None
    assert first["offsets"] == [17]
    assert first["cause"].startswith("handler has run for")
    assert later == [first] * len(later)


def test_a_worker_killed_because_its_drain_took_too_long_died_of_that(start: Start) -> None:
    it = start(shutdown_timeout_s=1).ready()
    it.tell(1, "handler stubborn")
    it.logged("handling")
    it.tell(1, "")
    with ControlClient(it.paths.socket) as client:
        list(client.ask(30, command="restart", partition=1))
    assert "drain took too long" in it.log()
    assert it.deaths(1) == [None, None]


def _has_crashed_again(it: Supervised, starts: int) -> bool:
    return len(it.starts(1)) > starts and it.worker(1)["state"] == "crashed"


def test_configuration_trouble_after_it_ran_is_no_boot_failure(start: Start) -> None:
    it = start(restart_backoff_ms=50).ready()
    wait_for(lambda: it.worker(1)["uptime_s"] > 0.5)  # by then it has been seen to run
    it.tell(1, "boot-fail 3 eviction policy is allkeys-lru")
    for _ in range(3):  # the same words each time
        starts = len(it.starts(1))
        wait_for(partial(_has_crashed_again, it, starts))
        assert it.process.poll() is None
        assert "eviction policy" in it.worker(1)["last_error"]


def test_a_fenced_worker_is_started_again_without_using_the_budget(start: Start) -> None:
    it = start(restart_backoff_ms=50, restart_budget=1).ready()
    it.tell(0, "boot-fail 6 fenced")
    wait_for(lambda: len(it.starts(0)) >= 5)
    assert "budget" not in it.log()


def test_the_monitor_is_started_again(start: Start) -> None:
    it = start().ready()
    pid = it.status()["supervisor"]["monitor"]["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: it.status()["supervisor"]["monitor"]["pid"] not in (pid, None))
    assert it.status()["supervisor"]["monitor"]["restarts"] == 1
    assert it.worker(0)["restarts"] == 0


# --- the end ----------------------------------------------------------------------------------------


@pytest.fixture
def _hangs_up() -> Iterator[None]:
    """What is started hears SIGHUP, though the tests run under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.usefixtures("_hangs_up")
@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_and_leaves_nothing_behind(start: Start, sig: signal.Signals) -> None:
    it = start().ready()
    children = it.pids()
    it.signal(sig)
    assert it.ends() == 0
    assert not any(map(alive, children))
    assert not it.paths.socket.exists()
    assert "worker died" not in it.log()


def test_a_worker_that_does_not_drain_is_killed_in_time(start: Start, tmp_path: Path) -> None:
    plan(tmp_path, "0", "stubborn")
    it = start(shutdown_timeout_s=1).ready()
    children = it.pids()
    it.signal(signal.SIGTERM)
    assert it.ends() == 0
    assert "drain took too long" in it.log()
    assert not any(map(alive, children))


def test_a_second_signal_ends_at_once(start: Start, tmp_path: Path) -> None:
    plan(tmp_path, "0", "stubborn")
    it = start().ready()
    children = it.pids()
    it.signal(signal.SIGTERM)
    it.logged("stopping")
    it.signal(signal.SIGTERM)
    assert it.ends(10) == 1  # shutdown_timeout_s is 30
    assert not any(map(alive, children))


def test_no_child_outlives_a_killed_supervisor(start: Start) -> None:
    it = start().ready()
    children = it.pids()
    it.signal(signal.SIGKILL)
    it.ends()
    wait_for(lambda: not any(map(alive, children)), 2)


def test_a_drain_during_a_pause_does_not_wait_for_it(start: Start, tmp_path: Path) -> None:
    it = start(restart_backoff_ms=60_000, restart_backoff_max_ms=60_000).ready()
    it.tell(0, "crash 1")
    wait_for(lambda: "pause_ms=60000" in it.log() or "pause_ms=5" in it.log() or it.worker(0)["pid"] is None)
    it.signal(signal.SIGTERM)
    assert it.ends(10) == 0


# --- control ----------------------------------------------------------------------------------------


def command(it: Supervised, *arguments: str) -> subprocess.CompletedProcess[str]:
    code = "from eventproc.cli.supervisor import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments, "--runtime-dir", str(it.folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_status_is_a_table_that_fits_80_columns(start: Start, tmp_path: Path) -> None:
    plan(tmp_path, "1", "events 50")
    plan(tmp_path, "0", "dead-letters 2")
    it = start().ready()
    wait_for(lambda: it.worker(1)["events_per_s"] > 0 and it.worker(0)["last_dead_letter"])
    it.tell(1, "")
    it.tell(2, "silent")
    found = command(it, "status")
    assert found.returncode == 0
    assert found.stderr == ""
    lines = found.stdout.splitlines()
    assert lines[0].startswith(f"supervisor running, pid {it.process.pid}, up ")
    assert lines[2].split()[:4] == ["part", "pid", "state", "up"]
    assert [line.split()[2] for line in lines[3:6]] == ["running"] * 3
    assert max(map(len, lines)) <= 80
    assert lines[6].startswith("partition 0: ")
    assert lines[6].endswith("; the last: u-7 of user u (handler): boom")
    assert "\x1b" not in found.stdout


def test_status_as_json_is_what_the_socket_says(start: Start) -> None:
    it = start().ready()
    found = command(it, "status", "--json")
    assert found.returncode == 0
    assert set(json.loads(found.stdout)) == {"supervisor", "workers"}
    assert [w["pid"] for w in json.loads(found.stdout)["workers"]] == [
        w["pid"] for w in it.status()["workers"]
    ]


def test_stop_returns_when_it_has_ended(start: Start) -> None:
    it = start().ready()
    found = command(it, "stop")
    assert (found.returncode, found.stdout) == (0, f"stopped (pid {it.process.pid})\n")
    assert it.ends() == 0


def test_restart_of_one_partition_drains_it_and_leaves_the_others(start: Start) -> None:
    it = start().ready()
    before = it.pids()
    found = command(it, "restart", "--partition", "1")
    assert found.returncode == 0, found.stderr
    after = it.pids()
    assert found.stdout == f"partition 1: running (pid {after[1]})\n"
    assert after[1] != before[1]
    assert (after[0], after[2]) == (before[0], before[2])
    assert it.worker(1)["restarts"] == 1
    assert "worker died" not in it.log()


def test_restart_of_all_goes_one_by_one(start: Start) -> None:
    it = start().ready()
    before = it.pids()
    found = command(it, "restart")
    assert found.returncode == 0, found.stderr
    assert [line.split(":")[0] for line in found.stdout.splitlines()] == [f"partition {p}" for p in range(3)]
    assert not {*before[:3]} & {*it.pids()}


def test_a_restart_that_fails_is_told_and_is_the_last(start: Start) -> None:
    it = start(heartbeat_timeout_ms=1500, restart_backoff_ms=50).ready()
    before = it.pids()
    it.tell(1, "boot-fail 1 cannot be imported any more")
    found = command(it, "restart")
    assert found.returncode == 1
    assert found.stdout.startswith("partition 0: running")
    assert "error: partition 1 is not up within 1500 ms (heartbeat_timeout_ms)" in found.stderr
    assert "cannot be imported any more" in found.stderr
    assert it.pids()[2] == before[2]


def test_an_interrupted_stop_has_not_stopped_it(start: Start) -> None:
    it = start(shutdown_timeout_s=3).ready()
    it.tell(1, "stubborn")
    code = "from eventproc.cli.supervisor import main; main()"
    words = [sys.executable, "-c", code, "stop", "--runtime-dir", str(it.folder)]
    with subprocess.Popen(words, cwd=ROOT) as process:
        it.logged("stopping")
        process.send_signal(signal.SIGINT)
        assert process.wait(5) == 130


def test_restart_of_a_partition_that_is_not_there(start: Start) -> None:
    it = start().ready()
    found = command(it, "restart", "--partition", "8")
    assert found.returncode == 2
    assert found.stderr == "error: partition 8 is not one of this supervisor's: 0, 1, 2\n"


def test_resume_reaches_the_stopped_ones_and_tells_of_the_others(start: Start) -> None:
    it = start().ready()
    it.tell(1, "stopped")
    wait_for(lambda: it.worker(1)["state"] == "paused")
    assert command(it, "resume", "--partition", "0").stdout == "partition 0: was not stopped\n"
    found = command(it, "resume")
    assert (found.returncode, found.stderr) == (0, "")
    assert found.stdout.splitlines() == [
        *("partition 0: was not stopped", "partition 1: goes on", "partition 2: was not stopped")
    ]
    wait_for(lambda: it.worker(1)["state"] == "running")
    assert command(it, "resume", "--partition", "9").returncode == 2


def test_a_worker_that_does_not_resume_is_told(start: Start) -> None:
    it = start().ready()
    it.tell(1, "deaf")
    wait_for(lambda: it.worker(1)["state"] == "paused")
    found = command(it, "resume", "--partition", "1")
    assert found.returncode == 1
    assert found.stderr == "error: partition 1 has not resumed within 5000 ms\n"


@pytest.mark.parametrize("verb", ["status", "stop", "restart", "resume"])
def test_without_a_supervisor_the_socket_is_named(start: Start, verb: str) -> None:
    it = start()
    it.close()
    found = command(it, verb)
    assert found.returncode == 1
    assert found.stderr == f"error: no supervisor is running for these settings (tried {it.paths.socket})\n"


def test_nonsense_on_the_socket_is_refused(start: Start) -> None:
    it = start().ready()
    with ControlClient(it.paths.socket) as client, pytest.raises(UsageError, match="unknown command 'dance'"):
        next(client.ask(5, command="dance"))
    with ControlClient(it.paths.socket) as client:
        assert next(client.ask(5, command="stop"))["ok"]
        with pytest.raises(EventprocError, match=r"stopping|ended before"):
            next(client.ask(5, command="restart"))
    assert it.ends() == 0


_FORKS = """
import asyncio, errno, os, signal, sys, time
from random import Random
from eventproc.settings import Settings
from eventproc.supervisor import preparation
from eventproc.supervisor.supervisor import Programs, Supervisor

forks, real = 0, os.fork
def fork():
    global forks
    forks += 1
    if forks in (4, 5):
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
    if forks == 8:
        os.kill(os.getpid(), signal.SIGTERM)
    return real()
os.fork = fork

def worker():
    time.sleep(0.3)
    return 1

def serve():
    time.sleep(60)

async def preflight(*_given):
    return 2
preparation.preflight = preflight
settings = Settings(
    redis_url="redis://127.0.0.1:1", runtime_dir=sys.argv[1], monitor_port=0, restart_backoff_ms=20,
    restart_backoff_max_ms=50, shutdown_timeout_s=1,
)
programs = Programs(worker=worker, monitor=serve, api=serve, imports=())
print("ended with", asyncio.run(Supervisor(settings, programs=programs, random=Random(1)).run()), forks)
"""


def test_a_process_that_cannot_be_forked_is_tried_again(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", _FORKS, str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "ended with 0 " in ended.stdout, ended.stderr
    assert ended.stdout.count("cannot be started: Resource temporarily unavailable") == 2
