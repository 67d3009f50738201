"""Handlers that do as the event says, and write down each run; for tests with real workers.

`EVENTPROC_TEST_RUNS` is a folder. They append to `<partition>.runs` what `eventproc verify --runs` reads;
`act` also to `<partition>.times` one line `<id> <attempt> <begin ms> <end ms>` (monotonic) for each run, and
to `<partition>.begun` one line `<id> <attempt>` before it, for runs that have no end.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eventproc import Event, Reject, batch

_FOLDER = "EVENTPROC_TEST_RUNS"


def act(event: Event) -> None:
    """Do what `payload.do` says: [verb, argument]. Nothing: succeed.

    `fail n`: raise in the first n attempts. `fail-while name`: raise as long as that file is there.
    `reject why`. `exit code`: SystemExit. `sleep ms`. `while name`: block as long as that file is there.
    `die how`: see DEATHS. `hog`: ask for more memory
    than there is.
    """
    begin_ms = _now_ms()
    _write(event, f"{event.partition}.begun", f"{event.id} {event.attempt}\n")
    outcome = "fail"
    try:
        _do(event, *event.payload.get("do", ("nothing", 0)))
        outcome = "ok"
    finally:
        _write(event, f"{event.partition}.times", f"{event.id} {event.attempt} {begin_ms} {_now_ms()}\n")
        _write_run(event, outcome)


def paced(event: Event) -> None:
    """Sleep as many ms as the file `pace` says now, then fail if `payload.fail` is true."""
    time.sleep(int((Path(os.environ[_FOLDER]) / "pace").read_text()) / 1000)
    failing = bool(event.payload.get("fail"))
    _write_run(event, "fail" if failing else "ok")
    if failing:
        raise RuntimeError("payload.fail is true")


async def act_async(event: Event) -> None:
    """As `act`, but sleeps and hangs let the others go on; `block ms` is the sleep that does not.

    Also `cancelled`: as if its task had been cancelled. `die starve`: the worker's loop gets a MemoryError.
    """
    begin_ms = _now_ms()
    _write(event, f"{event.partition}.begun", f"{event.id} {event.attempt}\n")
    outcome = "fail"
    try:
        match event.payload.get("do", ("nothing", 0)):
            case "sleep", int(ms):
                await asyncio.sleep(ms / 1000)
            case "block", int(ms):
                time.sleep(ms / 1000)
            case "die", "starve":  # the memory that it takes is missing elsewhere
                main = ctypes.c_ulong(threading.main_thread().ident or 0)
                ctypes.pythonapi.PyThreadState_SetAsyncExc(main, ctypes.py_object(MemoryError))
                await asyncio.get_running_loop().create_future()
            case "die", "hang":
                await asyncio.get_running_loop().create_future()
            case "cancelled", _:
                raise asyncio.CancelledError
            case verb, argument:
                _do(event, verb, argument)
        outcome = "ok"
    finally:
        _write(event, f"{event.partition}.times", f"{event.id} {event.attempt} {begin_ms} {_now_ms()}\n")
        _write_run(event, outcome)


async def paced_async(event: Event) -> None:
    """As `paced`, a cancelled run apart."""
    await asyncio.sleep(int((Path(os.environ[_FOLDER]) / "pace").read_text()) / 1000)
    failing = bool(event.payload.get("fail"))
    _write_run(event, "fail" if failing else "ok")
    if failing:
        raise RuntimeError("payload.fail is true")


@batch
def act_batch(events: list[Event]) -> Any:
    """As `act` on one after the other, and what each raises is its outcome.

    Appends the ids of each batch to `<partition>.batches`. Also `answer how`: give a wrong one for them all.
    """
    begin_ms = _now_ms()
    first = events[0]
    _write(first, f"{first.partition}.batches", " ".join(event.id for event in events) + "\n")
    for event in events:
        _write(event, f"{event.partition}.begun", f"{event.id} {event.attempt}\n")
    outcomes = [_outcome(event) for event in events]
    wrong = [event.payload["do"][1] for event in events if event.payload.get("do", [""])[0] == "answer"]
    for event, outcome in zip(events, outcomes, strict=True):
        _write(event, f"{event.partition}.times", f"{event.id} {event.attempt} {begin_ms} {_now_ms()}\n")
        _write_run(event, "fail" if wrong or outcome else "ok")
    return ANSWERS[wrong[0]](outcomes) if wrong else outcomes


@batch
async def paced_batch(events: list[Event]) -> list[BaseException | None]:
    """As `paced`, once for all of them."""
    await asyncio.sleep(int((Path(os.environ[_FOLDER]) / "pace").read_text()) / 1000)
    outcomes: list[BaseException | None] = []
    for event in events:
        failing = bool(event.payload.get("fail"))
        _write_run(event, "fail" if failing else "ok")
        outcomes.append(RuntimeError("payload.fail is true") if failing else None)
    return outcomes


def _outcome(event: Event) -> BaseException | None:
    try:
        _do(event, *event.payload.get("do", ("nothing", 0)))
    except BaseException as error:
        return error
    return None


def _fail_all(outcomes: list[Any]) -> None:
    raise ConnectionError("all of them")


#: What a batch handler may wrongly answer.
ANSWERS: dict[str, Callable[[list[Any]], Any]] = {
    "nothing": lambda outcomes: None,
    "too few": lambda outcomes: outcomes[1:],
    "words": lambda outcomes: ["fine" for _ in outcomes],
    "raise": _fail_all,
}


def _do(event: Event, verb: str, argument: object) -> None:
    match verb, argument:
        case "fail", int(times) if event.attempt <= times:
            raise RuntimeError(f"attempt {event.attempt} of {event.id} fails")
        case "fail-while", str(name) if (Path(os.environ[_FOLDER]) / name).exists():
            raise ConnectionError("the database is away")
        case "reject", str(why):
            raise Reject(why)
        case "exit", int(code):
            raise SystemExit(code)
        case "sleep", int(ms):
            time.sleep(ms / 1000)
        case "while", str(name):
            while (Path(os.environ[_FOLDER]) / name).exists():
                time.sleep(0.01)
        case "die", str(how):
            DEATHS[how]()
        case "hog", _:
            hoard = []
            while True:
                hoard.append(bytearray(2**24))


def _hang() -> None:
    while True:
        time.sleep(60)


#: Ways in which a handler ends its worker. The kernel's OOM killer sends a SIGKILL.
DEATHS: dict[str, Callable[[], object]] = {
    "exit": lambda: os._exit(7),
    "exit in good order": lambda: os._exit(0),
    "segfault": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "out of memory": lambda: os.kill(os.getpid(), signal.SIGKILL),
    "hang": _hang,
}


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


def _write_run(event: Event, outcome: str) -> None:
    line = f"{event.user_id}\t{event.seq or 0}\t{event.id}\t{event.attempt}\t{outcome}\n"
    _write(event, f"{event.partition}.runs", line)


def _write(event: Event, name: str, line: str) -> None:
    with (Path(os.environ[_FOLDER]) / name).open("a") as file:
        file.write(line)
