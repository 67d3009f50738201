"""CONTRACT section 5: loading a handler, running it, and what is told of its failures."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from eventproc.clock import SystemClock
from eventproc.effects import Entry
from eventproc.errors import HandlerLoadError, Reject
from eventproc.event import Event
from eventproc.handlers import (
    NOT_RUN,
    Runner,
    describe_failure,
    is_async,
    is_batch,
    load_handler,
    name_of,
    simulate,
)
from eventproc.settings import Settings
from tests.unit.pipeline_driver import LogRecord, ManualClock

MODULE = """
import functools
import eventproc

def good(event): return event.id
def optional(event, more=1, *rest, **options): return event.id
def nothing(): pass
def two(event, other): pass
def keyword(*, event): pass
async def later(event): pass
def steps(event): yield
async def async_steps(event): yield
async_partial = functools.partial(later)
partial = functools.partial(two, other=1)
number = 7

@eventproc.batch
def many(events): return [None for _ in events]
@eventproc.batch
def many_and(events, more): return [None for _ in events]
@eventproc.batch
def many_steps(events): yield

class Service:
    def __call__(self, event): return event.id
    def method(self, event): return event.id
    @staticmethod
    def static(event): return event.id
    class Inner:
        @classmethod
        def handle(cls, event): return event.id

class Later:
    async def __call__(self, event): pass

class Steps:
    def __call__(self, event): yield

service, coming, stepping = Service(), Later(), Steps()
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current folder, which is not on the path yet."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [entry for entry in sys.path if entry not in ("", str(tmp_path))])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    known = set(sys.modules)
    (tmp_path / "my_handlers.py").write_text(MODULE)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def load(path: str, **settings: Any) -> Callable[[Event], Any]:
    return load_handler(Settings(handler=path, **settings), ManualClock())


def given(payload: dict[str, Any] | None = None, seq: int | None = 1, partition: int = 4) -> Event:
    payload = payload or {}
    return Event("e1", "u1", "t", payload, seq, 0, 1, partition, 9, {"payload": payload})


# --- loading ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["good", "optional", "partial", "service", "service.method", "Service.static", "Service.Inner.handle"],
)
def test_any_callable_of_one_event_in_the_current_folder_is_a_handler(folder: Path, name: str) -> None:
    handler = load(f"my_handlers:{name}")
    if name != "partial":
        assert handler(given()) == "e1"


def test_the_current_folder_is_put_on_the_path_once(folder: Path) -> None:
    load("my_handlers:good")
    load("my_handlers:good")
    assert sys.path.count(str(folder)) == 1


def test_a_handler_in_a_package_is_found(folder: Path) -> None:
    (folder / "my_package").mkdir()
    (folder / "my_package" / "__init__.py").write_text("")
    (folder / "my_package" / "inner.py").write_text("def handle(event): return event.id\n")
    assert load("my_package.inner:handle")(given()) == "e1"


def test_a_builtin_that_tells_no_signature_is_taken_at_its_word() -> None:
    assert load("builtins:print") is print


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("no_such_module:f", r"'no_such_module:f': no module named 'no_such_module' \(looked in .*path\)"),
        ("my_handlers.sub:f", r"no module named 'my_handlers.sub'"),
        ("my_handlers:gone", r"my_handlers has no 'gone'"),
        ("my_handlers:Service.gone", r"my_handlers has no 'Service.gone'"),
        ("my_handlers:number", r"is int, which cannot be called"),
        ("my_handlers:nothing", r"has the signature nothing\(\); it must take one argument, the event"),
        ("my_handlers:two", r"has the signature two\(event, other\)"),
        ("my_handlers:keyword", r"must take one argument"),
        ("my_handlers:Service.method", r"must take one argument"),
        ("my_handlers:many_and", r"many_and\(events, more\); it must take one argument, the list of events"),
        ("my_handlers:many_steps", r"is a generator function"),
        ("my_handlers:steps", r"is a generator function"),
        ("my_handlers:stepping", r"is a generator function"),
        ("my_handlers:async_steps", r"is a generator function"),
    ],
)
def test_what_is_no_handler_is_refused_with_its_name_and_the_reason(
    folder: Path, path: str, told: str
) -> None:
    with pytest.raises(HandlerLoadError, match=told) as caught:
        load(path)
    assert path in str(caught.value)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "told"),
    [
        ("raise ValueError('broken')", r"importing broken_module raised ValueError: broken"),
        ("raise SystemExit(3)", r"importing broken_module raised SystemExit: 3"),
        ("def f(:", r"importing broken_module raised SyntaxError"),
        ("import does_not_exist_either", r"no module named 'does_not_exist_either'$"),
        ("from os import nothing_like_it", r"raised ImportError"),
    ],
)
def test_a_module_that_does_not_import_is_told_as_it_is(folder: Path, source: str, told: str) -> None:
    (folder / "broken_module.py").write_text(source + "\n")
    with pytest.raises(HandlerLoadError, match=told):
        load("broken_module:f")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("later", True),
        ("coming", True),
        ("async_partial", True),
        ("good", False),
        ("service", False),
        ("service.method", False),
    ],
)
def test_an_async_handler_is_known_by_any_of_its_forms(folder: Path, name: str, expected: bool) -> None:
    assert is_async(load(f"my_handlers:{name}")) is expected


def test_a_batch_handler_is_loaded_with_its_mark(folder: Path) -> None:
    assert is_batch(load("my_handlers:many"))
    assert not is_batch(load("my_handlers:good"))


# --- the built-in one ---------------------------------------------------------------------------------


def test_the_built_in_handler_fails_when_the_payload_says_so() -> None:
    handler = load("eventproc.handlers:simulate")
    assert handler(given()) is None
    assert handler(given({"fail": False})) is None
    with pytest.raises(Exception, match=r"payload.fail is true \(attempt 1\)"):
        handler(given({"fail": True}))


def test_the_built_in_handler_sleeps_up_to_the_delay() -> None:
    clock = ManualClock()
    handler = simulate(clock, 100)
    slept = []
    for _ in range(200):
        before = clock.now_ms
        handler(given())
        slept.append(clock.now_ms - before)
    assert 0 <= min(slept) < 30
    assert 70 < max(slept) <= 100


def test_the_built_in_handler_records_its_runs_by_partition(tmp_path: Path) -> None:
    handler = simulate(ManualClock(), 0, str(tmp_path))
    try:
        handler(given())
        handler(given(seq=None, partition=5))
        with pytest.raises(Exception, match="fail"):
            handler(given({"fail": True}))
        assert (tmp_path / "4.runs").read_text() == "u1\t1\te1\t1\tok\nu1\t1\te1\t1\tfail\n"
        assert (tmp_path / "5.runs").read_text() == "u1\t0\te1\t1\tok\n"
    finally:
        for file in handler._files.values():
            file.close()


# --- running ------------------------------------------------------------------------------------------


class Marks:
    """What the runner publishes."""

    def __init__(self) -> None:
        self.made: list[tuple[int, int]] = []

    def __call__(self, since_ms: int, offset: int) -> None:
        self.made.append((since_ms, offset))


def entry(offset: int, lane: str | int, seq: int = 0, attempts: int = 0) -> Entry:
    payload = {"n": offset}
    made = Entry(offset, LogRecord(offset, b""), f"e{offset}", "u", seq, "t", {"payload": payload, "x": 1})
    made.lane = lane
    made.attempts = attempts
    made.timestamp = 77
    return made


def run(handler: Callable[[Event], Any], *entries: Entry) -> tuple[list[Any], Marks]:
    marks = Marks()
    outcomes = Runner(handler, 3, ManualClock(), marks).run(list(entries))
    return outcomes, marks


def test_a_handler_is_given_the_whole_event() -> None:
    seen: list[Event] = []
    outcomes, _ = run(seen.append, entry(5, "u", 9, attempts=1))
    assert outcomes == [None]
    [event] = seen
    assert (event.id, event.user_id, event.type, event.payload) == ("e5", "u", "t", {"n": 5})
    assert (event.seq, event.timestamp, event.attempt) == (9, 77, 2)
    assert (event.partition, event.offset, event.headers, event.extra) == (3, 5, [], {"x": 1})


def test_an_unsequenced_event_has_no_seq() -> None:
    seen: list[Event] = []
    run(seen.append, entry(5, 5))
    assert seen[0].seq is None


def test_what_a_handler_returns_does_not_matter() -> None:
    assert run(lambda event: ValueError("returned, not raised"), entry(1, "u", 1))[0] == [None]


def test_after_a_failure_the_rest_of_its_lane_is_not_run() -> None:
    ran: list[str] = []

    def handler(event: Event) -> None:
        ran.append(event.id)
        if event.id == "e2":
            raise ValueError

    entries = [entry(1, "u", 1), entry(2, "u", 2), entry(3, "v", 1), entry(4, "u", 3), entry(5, 5)]
    outcomes, _ = run(handler, *entries)
    assert ran == ["e1", "e2", "e3", "e5"]
    assert [type(outcome).__name__ for outcome in outcomes] == [
        "NoneType",
        "ValueError",
        "NoneType",
        "NotRun",
        "NoneType",
    ]
    assert outcomes[3] is NOT_RUN


def test_an_entry_that_passes_is_not_run_but_waits_for_its_turn() -> None:
    def handler(event: Event) -> None:
        raise ValueError

    passing, behind = entry(1, "u", 1), entry(3, "u", 3)
    passing.passed = behind.passed = True
    outcomes, marks = run(handler, passing, entry(2, "u", 2), behind)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] is NOT_RUN
    assert [offset for _, offset in marks.made] == [2, -1]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError, MemoryError])
def test_whatever_a_handler_raises_is_its_failure_and_not_the_workers(kind: type[BaseException]) -> None:
    def handler(event: Event) -> None:
        raise kind

    outcomes, _ = run(handler, entry(1, "u", 1), entry(2, "v", 1))
    assert [type(outcome) for outcome in outcomes] == [kind, kind]


def test_what_runs_is_published_before_it_runs_and_taken_back_after() -> None:
    marks = Marks()
    clock = ManualClock()
    seen: list[tuple[int, int]] = []

    def handler(event: Event) -> None:
        seen.append(marks.made[-1])
        clock.now_ms += 10

    Runner(handler, 3, clock, marks).run([entry(1, "u", 1), entry(2, "u", 2)])
    assert seen == [(1_000, 1), (1_010, 2)]
    assert marks.made[-1] == (0, -1)


# --- failures -----------------------------------------------------------------------------------------


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def test_a_failure_is_told_by_type_message_and_place() -> None:
    told = describe_failure(raised(ValueError("no account")))
    assert told.startswith("ValueError: no account (test_handlers.py:")
    assert describe_failure(ValueError("never raised")) == "ValueError: never raised"


def test_a_long_message_is_cut() -> None:
    assert len(describe_failure(raised(ValueError("x" * 10_000)))) == 2_000


def test_a_message_that_cannot_be_had_does_not_matter() -> None:
    class Broken(Exception):
        def __str__(self) -> str:
            raise RuntimeError

    assert describe_failure(raised(Broken())).startswith("Broken: no message (test_handlers.py:")


def test_a_message_that_utf8_cannot_carry_is_made_to_fit() -> None:
    assert describe_failure(ValueError("half \ud83d")) == "ValueError: half ?"
    assert describe_failure(Reject("half \ud83d")) == "half ?"


def test_of_a_reject_only_its_reason_is_told() -> None:
    class Own(Reject):
        def __init__(self) -> None:
            pass

    assert describe_failure(raised(Reject("no such account"))) == "no such account"
    assert describe_failure(raised(Reject())) == "rejected"
    assert describe_failure(raised(Reject(7))) == "7"  # type: ignore[arg-type]
    assert describe_failure(raised(Own())) == ""
    assert len(describe_failure(Reject("x" * 10_000))) == 2_000


def test_names_for_messages() -> None:
    assert name_of(test_names_for_messages) == "test_names_for_messages"
    assert name_of(simulate(ManualClock())) == "simulate"


class _Ticking(SystemClock):
    """Every look at the clock finds it 20 ms later."""

    def __init__(self) -> None:
        self.now_ms = 0

    def monotonic_ms(self) -> int:
        self.now_ms += 20
        return self.now_ms


def test_a_run_of_a_slow_handler_gives_the_loop_back() -> None:
    ran: list[int] = []
    runner = Runner(lambda event: ran.append(event.offset), 0, _Ticking(), lambda since_ms, offset: None)
    entries = []
    for offset in range(10):
        made = Entry(offset, cast(Any, None), f"e{offset}", f"u{offset}", 1, "t", {"payload": {}})
        made.lane = made.user
        entries.append(made)
    outcomes = runner.run(entries)
    assert 1 <= len(ran) < 10
    assert outcomes == [None] * len(ran) + [NOT_RUN] * (10 - len(ran))


def test_a_returned_coroutine_is_a_failure() -> None:
    async def work() -> None:
        raise AssertionError("never run")

    runner = Runner(lambda event: work(), 0, SystemClock(), lambda since_ms, offset: None)
    made = Entry(0, cast(Any, None), "e", "u", 1, "t", {"payload": {}})
    (outcome,) = runner.run([made])
    assert "returned an awaitable" in str(outcome)
