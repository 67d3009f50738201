"""The metrics table, the board in shared memory and the quantiles."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventproc import metrics
from eventproc.errors import ConfigError
from eventproc.metrics import METRICS, Board, Distribution
from eventproc.settings import MAX_CONCURRENCY


@pytest.fixture
def board() -> Iterator[Board]:
    board = Board.create(3)
    yield board
    board.close()


def run_child(board: Board, code: str, *args: str) -> subprocess.CompletedProcess[str]:
    """Run `code` in a process of its own that has opened the board as `board`."""
    prelude = (
        f"import sys\nfrom eventproc.metrics import Board\nboard = Board.open({board.fd}, {board.slots})\n"
    )
    return subprocess.run(
        [sys.executable, "-c", prelude + textwrap.dedent(code), *args],
        pass_fds=(board.fd,),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


# --- the table


@pytest.mark.parametrize(
    ("kind", "names"),
    [("counter", metrics.Counter), ("gauge", metrics.Gauge), ("histogram", metrics.Histogram)],
)
def test_every_name_is_declared_once(kind: str, names: object) -> None:
    assert [m.name for m in METRICS if m.kind == kind] == list(get_args(names))


def test_exposed_names_are_unique_and_in_base_units() -> None:
    exposed = [m.exposed for m in METRICS]
    assert len(set(exposed)) == len(exposed)
    for metric in METRICS:
        assert metric.exposed.startswith("eventproc_")
        assert not metric.exposed.endswith(("_ms", "_total"))
        assert (metric.scale == 0.001) == metric.name.endswith("_ms")
        assert list(metric.buckets) == sorted(set(metric.buckets))
        assert bool(metric.buckets) == (metric.kind == "histogram")


# --- pages


def test_no_two_words_overlap(board: Board) -> None:
    page = board.page(1)
    want = {}
    value = 1
    for metric in METRICS:
        for label in metric.values:
            if metric.kind == "counter":
                page.inc(metric.name, value, label)  # type: ignore[arg-type]
            elif metric.kind == "gauge":
                page.set(metric.name, value)  # type: ignore[arg-type]
            else:
                page.observe(metric.name, [b + 0.001 for b in (0, *metric.buckets)])  # type: ignore[arg-type]
                continue
            want[metric.name, label] = value
            value += 1
    page.last_error, page.state = "e" * 240, "crashed"
    page.enter("paused", "r" * 240)
    page.beat(5)
    page.running(6, 7)
    page.task(0, 4, 5)
    page.task(MAX_CONCURRENCY - 1, 8, 9)
    assert {key: page.get(*key) for key in want} == want  # type: ignore[arg-type]
    for metric in METRICS:
        if metric.kind == "histogram":
            counts = page.distribution(metric.name).counts  # type: ignore[arg-type]
            assert counts == (1,) * (len(metric.buckets) + 1)
    assert (page.last_error, page.state, page.state_reason) == ("e" * 240, "paused", "r" * 240)
    assert (page.progress, page.last_beat_ms, page.running_since_ms, page.running_offset) == (1, 5, 4, 5)
    assert page.runs == [(4, 5), (6, 7), (8, 9)]
    for other in (board.page(0), board.page(2), board.deployment):
        assert all(other.get(*key) == 0 for key in want)  # type: ignore[arg-type]
        assert other.last_error == ""


def test_fresh_page_is_starting_and_runs_nothing(board: Board) -> None:
    page = board.page(0)
    assert page.state == "starting"
    assert (page.running_since_ms, page.running_offset) == (0, -1)
    assert (page.last_error, page.state_reason, page.progress) == ("", "", 0)


def test_a_task_that_has_ended_leaves_its_slot(board: Board) -> None:
    page = board.page(0)
    page.task(1, 20, 0)
    page.task(0, 30, 12)
    assert page.runs == [(20, 0), (30, 12)]
    page.task(1, 0)
    assert (page.running_since_ms, page.running_offset) == (30, 12)
    page.forget_runs()
    assert page.runs == []


def test_a_handler_that_ends_while_it_is_looked_at_has_begun_some_time(board: Board) -> None:
    page = board.page(0)
    page.running(5, 7)
    words = page._words

    class EndsMeanwhile:
        def __getitem__(self, index: Any) -> Any:
            value = words[index]
            page.running(0)
            return value

    page._words = EndsMeanwhile()  # type: ignore[assignment]
    assert page.runs in ([], [(5, 7)], [(5, -1)])
    page._words = words


def test_total_sums_the_labels(board: Board) -> None:
    page = board.page(0)
    page.inc("events", 2, "processed")
    page.inc("events", 3, "failed")
    assert page.total("events") == 5
    with pytest.raises(KeyError):
        page.inc("events", 1, "unheard-of")
    with pytest.raises(KeyError):
        page.inc("events", 1)


def test_reset_gauges_keeps_counters_and_last_error(board: Board) -> None:
    page = board.page(0)
    page.inc("retries", 4)
    page.set("lag", 9)
    page.observe("latency_ms", [1, 2])
    page.last_error = "boom"
    page.running(77, 5)
    page.task(3, 78, 6)
    page.reset_gauges()
    assert (page.get("lag"), page.get("retries"), page.last_error) == (0, 4, "boom")
    assert page.distribution("latency_ms").count == 2
    assert (page.running_since_ms, page.running_offset) == (0, -1)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("", ""),
        ("plain", "plain"),
        ("x" * 300, "x" * 240),
        ("é" * 200, "é" * 120),
        ("x" + "é" * 200, "x" + "é" * 119),
    ],
)
def test_last_error_is_cut_between_characters(board: Board, text: str, kept: str) -> None:
    board.page(0).last_error = text
    assert board.page(0).last_error == kept


def test_last_error_takes_any_string(board: Board) -> None:
    board.page(0).last_error = "lone \ud800 surrogate\0"
    assert board.page(0).last_error == "lone ? surrogate\0"


def test_state_clears_its_reason(board: Board) -> None:
    page = board.page(0)
    page.enter("standby", "owned by other:12")
    assert (page.state, page.state_reason) == ("standby", "owned by other:12")
    page.state = "running"
    assert (page.state, page.state_reason) == ("running", "")


# --- across processes


def test_child_writes_what_the_parent_reads(board: Board) -> None:
    page = board.page(1)
    page.inc("events", 10, "processed")
    child = run_child(
        board,
        """
        page = board.page(1)
        page.inc("events", 5, "processed")
        page.set("lag", -3)
        page.observe("latency_ms", [1, 40, 1e9])
        page.beat(123)
        page.running(456, 789)
        page.enter("paused", "Redis is away")
        page.last_error = "ValueError: ü"
        board.close()
        """,
    )
    assert child.returncode == 0, child.stderr
    assert page.get("events", "processed") == 15  # the counter went on where it stood
    assert page.get("lag") == -3
    assert page.distribution("latency_ms").count == 3
    assert (page.progress, page.last_beat_ms) == (1, 123)
    assert (page.running_since_ms, page.running_offset) == (456, 789)
    assert (page.state, page.state_reason, page.last_error) == ("paused", "Redis is away", "ValueError: ü")
    assert board.page(0).total("events") == 0


def test_text_is_never_read_torn(board: Board) -> None:
    code = """
    page = board.page(0)
    print("go", flush=True)
    while page.get("pid") == 0:
        for letter, n in (("a", 240), ("b", 17), ("c", 133)):
            page.last_error = letter * n
    """
    prelude = f"from eventproc.metrics import Board\nboard = Board.open({board.fd}, {board.slots})\n"
    child = subprocess.Popen(
        [sys.executable, "-c", prelude + textwrap.dedent(code)],
        pass_fds=(board.fd,),
        stdout=subprocess.PIPE,
    )
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        seen = {board.page(0).last_error for _ in range(20_000)}
        board.page(0).set("pid", 1)
        assert child.wait(10) == 0
    # "" is what a reader gets that was overtaken a hundred times
    assert seen - {""} <= {"a" * 240, "b" * 17, "c" * 133}
    assert len(seen - {""}) > 1


def test_half_written_text_reads_as_empty(board: Board) -> None:
    page = board.page(0)
    page.last_error = "first"
    page._words[metrics._LAST_ERROR + 1] = 0
    assert page.last_error == ""
    page.last_error = "second"
    assert page.last_error == "second"


def test_open_refuses_another_number_of_slots(board: Board) -> None:
    with pytest.raises(ConfigError, match="not one of 4 slots"):
        Board.open(board.fd, 4)


def test_open_refuses_another_layout(board: Board) -> None:
    child = run_child(board, "print(board.slots)")
    assert child.stdout == "3\n", child.stderr
    board._words[0] += 1
    with pytest.raises(ConfigError, match="another version"):
        Board.open(board.fd, board.slots)


def test_close_gives_the_descriptor_back() -> None:
    before = len(os.listdir("/proc/self/fd"))
    board = Board.create(8)
    assert len(os.listdir("/proc/self/fd")) > before
    board.close()
    assert len(os.listdir("/proc/self/fd")) == before


# --- histograms


@given(st.lists(st.lists(st.one_of(st.integers(0, 100_000), st.floats(0, 100_000)), max_size=50), max_size=5))
def test_observe_agrees_with_a_naive_model(batches: list[list[float]]) -> None:
    board = Board.create(1)
    try:
        page = board.page(0)
        for batch in batches:
            page.observe("latency_ms", batch)
        got = page.distribution("latency_ms")
    finally:
        board.close()
    values = [value for batch in batches for value in batch]
    lower = float("-inf")
    for bound, count in zip((*got.bounds, float("inf")), got.counts, strict=True):
        assert count == sum(lower < value <= bound for value in values)
        lower = bound
    assert got.count == len(values)
    assert got.sum == pytest.approx(sum(values), abs=0.001 * len(batches) + 1e-6 * sum(values))


@given(st.lists(st.floats(0, 60_000), min_size=1, max_size=200), st.sampled_from([0.0, 0.5, 0.9, 0.99, 1.0]))
def test_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    board = Board.create(1)
    try:
        board.page(0).observe("latency_ms", values)
        spread = board.page(0).distribution("latency_ms")
    finally:
        board.close()
    estimate = spread.quantile(q)
    ordered = sorted(values)
    # the smallest value with at least q of all values at or below it
    true = next(v for i, v in enumerate(ordered) if i + 1 >= q * len(ordered))
    upper = next(bound for bound in spread.bounds if true <= bound)
    lower = max((bound for bound in spread.bounds if bound < upper), default=0.0)
    assert lower <= estimate <= upper


def test_quantile_is_linear_within_a_bucket() -> None:
    spread = Distribution((10, 20), (0, 100, 0), 0)
    assert spread.quantile(0.5) == 15
    assert spread.quantile(1) == 20
    assert Distribution((10, 20), (50, 50, 0), 0).quantile(0.75) == 15


def test_quantile_of_nothing_and_above_all_bounds() -> None:
    assert Distribution((10, 20), (0, 0, 0), 0).quantile(0.99) == 0
    assert Distribution((10, 20), (0, 0, 5), 0).quantile(0.5) == 20


def test_distributions_add_and_subtract() -> None:
    a, b = Distribution((1,), (1, 2), 10), Distribution((1,), (3, 4), 20)
    assert a + b == Distribution((1,), (4, 6), 30)
    assert (a + b) - a == b
