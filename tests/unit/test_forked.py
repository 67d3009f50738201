"""A forked child has of its parent what is imported, and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.integration.supervised import alive, wait_for

ROOT = Path(__file__).parents[2]

# A parent with one thread, as fork wants it: the child runs `body`, and the parent meanwhile `rest`.
PARENT = """
import asyncio, atexit, os, signal, sys, threading, time
from pathlib import Path
from eventproc.forked import Module, fork

def descriptors():
    return [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()]

def body():
{body}

def main():
    secret = os.open("/proc/version", os.O_RDONLY)
    os.set_inheritable(secret, True)
    kept = os.open("/dev/zero", os.O_RDONLY)
    atexit.register(lambda: print("the parent's exit hook", flush=True))
    signal.signal(signal.SIGTERM, lambda *_: print("the parent's handler", flush=True))
    print("before", end=" ")
    read, write = os.pipe()
    os.write(write, b"an order\\n")
    os.close(write)
    globals().update(kept=kept)
    pid = fork(body, "worker 7", [read, 1, 2], [kept])
{rest}
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

code = main()
print("code", code, flush=True)
os._exit(0)
"""


def play(body: str, rest: str = "") -> str:
    """What both say."""
    code = PARENT.format(body=textwrap.indent(body, "    "), rest=textwrap.indent(rest, "    "))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_its_answer_is_the_exit_code() -> None:
    assert "code 5" in play("return 5")
    assert "code 0" in play("return None")
    assert "code 3" in play("sys.exit(3)")


def test_an_error_is_told_as_the_interpreter_does() -> None:
    said = play("raise KeyError('what')")
    assert "KeyError: 'what'" in said
    assert "code 1" in said


def test_standard_input_is_what_it_was_given_and_nothing_is_said_twice() -> None:
    said = play("print('read', sys.stdin.readline().strip())")
    assert "read an order" in said
    assert said.count("before") == 1


def test_it_has_only_the_descriptors_it_was_given() -> None:
    said = play("print(os.read(kept, 1), descriptors())")
    assert r"b'\x00'" in said
    assert said.count("/dev/zero") == 1
    assert "/proc/version" not in said
    assert said.count("',") == 4  # and that of the folder that is being listed


def test_the_program_may_become_another_one() -> None:
    said = play("os.execv(sys.executable, [sys.executable, '-c', f'import os; print(os.read({kept}, 3))'])")
    assert r"b'\x00\x00\x00'" in said
    assert "code 0" in said


def test_signals_are_as_in_a_new_process() -> None:
    body = "print('up', flush=True); time.sleep(60)"
    said = play(body, "time.sleep(0.5)\nos.kill(pid, signal.SIGTERM)")
    assert f"code {-signal.SIGTERM}" in said
    assert "the parent's handler" not in said


def test_exit_hooks_are_its_own() -> None:
    said = play("atexit.register(lambda: print('its own exit hook'))")
    assert "its own exit hook" in said
    assert "the parent's exit hook" not in said


def test_it_ends_once_its_threads_have() -> None:
    body = "threading.Thread(target=lambda: (time.sleep(0.3), print('the thread too'))).start()"
    assert "the thread too" in play(body)


def test_it_has_a_session_and_a_title_of_its_own() -> None:
    body = (
        "own = Path('/proc/self/cmdline').read_text().rstrip('\\0')\nprint(os.getsid(0) == os.getpid(), own)"
    )
    assert "True eventproc: worker 7" in play(body)


def test_one_of_a_running_loop_may_run_a_loop() -> None:
    code = """
    import asyncio, os
    from eventproc.forked import fork

    async def child():
        await asyncio.sleep(0.01)
        print("another loop", flush=True)

    async def main():
        asyncio.get_running_loop().add_signal_handler(15, lambda: print("never"))
        pid = fork(lambda: asyncio.run(child()), "child", [0, 1, 2])
        print("code", os.waitpid(pid, 0)[1])

    asyncio.run(main())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    assert done.stdout.split("\n")[:2] == ["another loop", "code 0"], done.stderr


@pytest.mark.parametrize("seconds", [0.0, 0.3])
def test_it_dies_with_its_killed_parent(seconds: float) -> None:
    code = PARENT.format(
        body="    print('pid', os.getpid(), flush=True)\n    time.sleep(60)", rest="    time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline().split()[-1])
        time.sleep(seconds)
        os.kill(parent.pid, signal.SIGKILL)
        wait_for(lambda: not alive(pid), 2)
