"""The supervisor's judgements: when to start again, who hangs, how fast it goes, where it is found."""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from eventproc.errors import ConfigError, EventprocError
from eventproc.metrics import Board, Page
from eventproc.settings import Settings
from eventproc.supervisor.backoff import PROGRESS_RESETS_MS, RestartPolicy
from eventproc.supervisor.child import describe_exit
from eventproc.supervisor.runtime import MAX_SOCKET_PATH_BYTES, RuntimePaths, SupervisorLock
from eventproc.supervisor.watch import Rate, Watch, final_events


@pytest.fixture
def page() -> Iterator[Page]:
    board = Board.create(1)
    yield board.page(0)
    board.close()


# --- restart ----------------------------------------------------------------------------------------


def policy(seed: int = 1) -> RestartPolicy:
    return RestartPolicy(first_ms=100, max_ms=1000, budget=6, random=Random(seed))


def test_the_first_is_at_once_then_pauses_double_up_to_the_most() -> None:
    for seed in range(50):
        it = policy(seed)
        pauses = [it.pause_ms(0) for _ in range(6)]
        assert pauses[0] == 0
        for pause, full in zip(pauses[1:], [100, 200, 400, 800, 1000], strict=True):
            assert full / 2 <= pause <= full


def test_pauses_differ() -> None:
    seconds = set()
    for seed in range(20):
        it = policy(seed)
        it.pause_ms(0)
        seconds.add(it.pause_ms(0))
    assert len(seconds) > 5


def test_beyond_the_budget_every_pause_is_the_longest() -> None:
    it = policy()
    for _ in range(6):
        it.pause_ms(0)
    assert not it.exhausted
    assert [it.pause_ms(0) for _ in range(3)] == [1000] * 3
    assert it.exhausted


def test_progress_forgives_all() -> None:
    it = policy()
    for _ in range(9):
        it.pause_ms(PROGRESS_RESETS_MS - 1)
    assert it.exhausted
    assert it.pause_ms(PROGRESS_RESETS_MS) == 0
    assert not it.exhausted


def test_a_crash_loop_of_years_does_not_overflow() -> None:
    it = RestartPolicy(first_ms=1, max_ms=1000, budget=10**9, random=Random(1))
    for _ in range(5000):
        assert it.pause_ms(0) <= 1000


# --- hanging ----------------------------------------------------------------------------------------


def looks(watch: Watch, from_ms: int, to_ms: int, step_ms: int = 250) -> str:
    """Look all the time; the first complaint."""
    for now_ms in range(from_ms, to_ms, step_ms):
        if reason := watch.look(now_ms):
            return f"{now_ms}: {reason}"
    return ""


def test_who_beats_does_not_hang(page: Page) -> None:
    watch = Watch(page, 1000, 5000, now_ms=100_000)
    for now_ms in range(100_000, 110_000, 500):
        page.beat(now_ms)
        assert watch.look(now_ms) == ""


def test_who_never_beats_hangs_from_its_start_on(page: Page) -> None:
    watch = Watch(page, 1000, 5000, now_ms=100_000)
    assert looks(watch, 100_000, 110_000).startswith("101250: no progress for 1250 ms")


def test_a_handler_is_measured_by_its_own_limit(page: Page) -> None:
    watch = Watch(page, 1000, 5000, now_ms=100_000)
    page.beat(100_000)
    page.running(100_000, 42)
    assert looks(watch, 100_000, 110_000).startswith("105250: handler has run for 5250 ms (offset 42)")


def test_a_handler_may_be_allowed_to_run_for_ever(page: Page) -> None:
    watch = Watch(page, 1000, 0, now_ms=100_000)
    page.running(100_000)
    assert looks(watch, 100_000, 900_000) == ""


def test_the_end_of_a_long_handler_is_progress(page: Page) -> None:
    watch = Watch(page, 1000, 5000, now_ms=100_000)
    page.beat(100_000)
    page.running(100_000)
    assert looks(watch, 100_000, 104_000) == ""
    page.running(0)  # and its beat is still to come
    assert watch.look(104_000) == ""
    assert looks(watch, 104_000, 110_000).startswith("105000")


def test_a_watch_that_was_stopped_itself_forgives(page: Page) -> None:
    watch = Watch(page, 1000, 5000, now_ms=100_000)
    page.beat(100_000)
    assert watch.look(160_000) == ""
    assert looks(watch, 160_000, 170_000).startswith("161250")
    page.running(161_000)
    assert watch.look(200_000) == ""
    assert looks(watch, 200_000, 300_000).startswith("205250")


def test_progress_counts_from_the_first_running_to_the_last_beat(page: Page) -> None:
    watch = Watch(page, 1000, 5000, now_ms=100_000)
    page.beat(100_500)
    watch.look(100_500)
    assert (watch.ran, watch.progress_ms()) == (False, 0)
    page.state = "running"
    watch.look(101_000)
    page.beat(108_000)
    watch.look(108_000)
    assert (watch.ran, watch.progress_ms()) == (True, 7000)


# --- rate -------------------------------------------------------------------------------------------


def test_the_rate_is_that_of_the_last_seconds(page: Page) -> None:
    rate = Rate(lambda: final_events(page), seconds=3)
    assert rate.per_s == 0.0
    for second in range(10):
        rate.sample(1000 * second)
        page.inc("events", 100 if second < 5 else 40, "processed")
        page.inc("events", 10, "failed")
        page.inc("events", 99, "duplicate")
    assert rate.per_s == 50.0


def test_exit_codes_in_words() -> None:
    assert describe_exit(3) == "exited with code 3"
    assert describe_exit(-11) == "was killed by SIGSEGV"
    assert describe_exit(-99) == "was killed by signal 99"


# --- where it is found ------------------------------------------------------------------------------


def test_a_deployment_is_its_topic_group_address_and_prefix(tmp_path: Path) -> None:
    base = Settings(runtime_dir=str(tmp_path))
    changed = [
        base.model_copy(update={name: "x"})
        for name in ("kafka_topic", "kafka_group_id", "kafka_bootstrap_servers", "key_prefix")
    ]
    paths = {RuntimePaths.of(settings).socket for settings in [base, *changed]}
    assert len(paths) == 5
    assert RuntimePaths.of(base.model_copy(update={"gap_timeout_ms": 7})) == RuntimePaths.of(base)


def test_the_folder_is_the_one_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert RuntimePaths.of(Settings()).socket.parent == tmp_path
    assert RuntimePaths.of(Settings(runtime_dir="/run/x")).socket.parent == Path("/run/x")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert RuntimePaths.of(Settings()).socket.parent.name.startswith("eventproc-")


def test_a_long_folder_is_replaced_and_still_its_own() -> None:
    one, two = (RuntimePaths.of(Settings(runtime_dir=f"/{c * 120}")) for c in "ab")
    assert one.socket != two.socket
    assert len(str(one.socket)) <= MAX_SOCKET_PATH_BYTES
    assert one.lock.parent == one.socket.parent


def test_only_one_has_the_lock(tmp_path: Path) -> None:
    settings = Settings(runtime_dir=str(tmp_path / "new"))
    paths = RuntimePaths.of(settings)
    first = SupervisorLock(paths, settings)
    with pytest.raises(EventprocError, match=r"already running on this host: pid \d+"):
        SupervisorLock(paths, settings)
    first.release()
    assert not paths.lock.exists()
    SupervisorLock(paths, settings).release()


def test_a_lock_that_is_removed_while_it_is_being_taken_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last holder ends between our opening of its file and our locking of it."""
    settings = Settings(runtime_dir=str(tmp_path))
    paths = RuntimePaths.of(settings)
    first = SupervisorLock(paths, settings)
    flock, opened = fcntl.flock, []

    def end_first(fd: int, how: int) -> None:
        opened.append(fd)
        if len(opened) == 1:
            first.release()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", end_first)
    second = SupervisorLock(paths, settings)
    assert len(opened) == 2
    monkeypatch.undo()
    assert paths.lock.read_text() == f"{os.getpid()}\n"
    with pytest.raises(EventprocError, match="already running"):
        SupervisorLock(paths, settings)
    second.release()


def test_a_runtime_dir_that_cannot_be_used_is_named() -> None:
    with tempfile.NamedTemporaryFile() as file:  # tmp_path may be too long for a socket
        for folder in (Path(file.name), Path(file.name, "below")):
            settings = Settings(runtime_dir=str(folder))
            with pytest.raises(ConfigError, match="runtime_dir"):
                SupervisorLock(RuntimePaths.of(settings), settings)
