"""Specs, identities of processes, and children that die with their parent."""

from __future__ import annotations

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eventproc import spawn
from eventproc.spawn import MonitorSpec, PreflightSpec, ProcessIdentity, WorkerSpec, is_gone
from tests.integration.supervised import ROOT, alive, wait_for

WORKER = WorkerSpec(
    settings={"redis_url": "redis://:hunter2@host", "kafka_config": {"a": "b"}},
    partition=3,
    partitions=8,
    slot=1,
    slots=2,
    board_fd=7,
    supervisor="host:1:2",
    takeover=True,
    start_count=4,
)


def test_a_spec_comes_back_as_it_went() -> None:
    assert WORKER.dump().count(b"\n") == 1
    assert WorkerSpec.read(io.BytesIO(WORKER.dump())) == WORKER
    monitor = MonitorSpec({"a": 1}, [0, 2], 7, "host:1:2")
    assert MonitorSpec.read(io.BytesIO(monitor.dump())) == monitor
    preflight = PreflightSpec({"a": 1}, "host:1:2")
    assert PreflightSpec.read(io.BytesIO(preflight.dump())) == preflight


@pytest.mark.parametrize("text", [b"", b"\n", b"[]\n", b"{"])
def test_a_child_started_by_hand_is_told_who_starts_it(text: bytes) -> None:
    with pytest.raises(ValueError, match="is started by eventproc-supervisor"):
        WorkerSpec.read(io.BytesIO(text))


def test_an_identity_is_text_and_back() -> None:
    own = ProcessIdentity.own()
    assert own.pid == os.getpid()
    assert ProcessIdentity.parse(str(own)) == own
    assert spawn.parent_of(str(own)) == os.getpid()


def test_a_live_process_is_not_gone() -> None:
    assert not is_gone(str(ProcessIdentity.own()))
    assert not is_gone(str(ProcessIdentity.of(1)))


def test_a_dead_process_is_gone_even_before_it_is_waited_for() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = str(ProcessIdentity.of(process.pid))
        assert not is_gone(identity)
        process.kill()
        wait_for(lambda: not alive(process.pid))
        assert is_gone(identity)
        process.wait()
        assert is_gone(identity)


def test_a_pid_that_is_used_again_is_another_process() -> None:
    own = ProcessIdentity.own()
    assert is_gone(f"{own.host}:{own.pid}:{own.start}0")
    assert is_gone(f"{own.host}:{own.pid}:0-{own.start.partition('-')[2]}")  # an earlier boot


@pytest.mark.parametrize("text", ["", "x", "elsewhere-00000000:1:2", "a:b:c", "a:1:2:3"])
def test_nobody_can_tell_of_others(text: str) -> None:
    assert not is_gone(text)


def test_an_owner_names_its_supervisor() -> None:
    token = spawn.owner_token("my/host:1:2", 7, "abcd")
    assert token == "my/host:1:2/7/abcd"
    assert spawn.owner_supervisor(token) == "my/host:1:2"
    assert spawn.owner_supervisor("someone") == ""


def test_the_host_has_one_name() -> None:
    code = "from eventproc.spawn import host_name; print(host_name())"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert other.stdout.strip() == spawn.host_name()
    assert ":" not in spawn.host_name()
    assert "/" not in spawn.host_name()


CHILD = """
import os, sys, time
from eventproc import spawn
if sys.argv[1] == "thread":
    spawn._set_death_signal = lambda sig: False
spawn.die_with_parent(int(sys.argv[2]))
print(os.getpid(), flush=True)
time.sleep(60)
"""

PARENT = """
import os, subprocess, sys
child = subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2], str(os.getpid())])
child.wait()
"""


@pytest.mark.parametrize("way", ["kernel", "thread"])
def test_a_child_dies_with_its_killed_parent(way: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PARENT, CHILD, way], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
        wait_for(lambda: not alive(pid), 2)


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    child = subprocess.run(
        [sys.executable, "-c", CHILD, "kernel", "1"], capture_output=True, timeout=20, check=False, cwd=ROOT
    )
    assert child.returncode == 1
    assert child.stdout == b""


def test_inherited_descriptors_go_no_further(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "x", os.O_RDWR | os.O_CREAT)
    try:
        os.set_inheritable(fd, True)
        spawn.close_on_exec([fd])
        assert not os.get_inheritable(fd)
    finally:
        os.close(fd)


class Refuses:
    """A file that cannot be written, for the reason `code`."""

    def __init__(self, code: int) -> None:
        self._code = code

    def write_text(self, text: str) -> None:
        raise OSError(self._code, "no")


def test_a_session_gets_the_niceness_of_its_process(tmp_path: Path) -> None:
    autogroup = tmp_path / "autogroup"
    assert spawn.give_session_way(autogroup)
    assert autogroup.read_text() == str(os.nice(0))


@pytest.mark.parametrize(
    ("code", "settled"), [(errno.EAGAIN, False), (errno.ENOENT, True), (errno.EPERM, True)]
)
def test_a_session_whose_niceness_was_changed_just_now_is_tried_again(code: int, settled: bool) -> None:
    assert spawn.give_session_way(Refuses(code)) is settled  # type: ignore[arg-type]
