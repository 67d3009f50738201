"""CONTRACT section 7: a drain awaits what runs, drops the locks of the rest, commits, and starts nothing."""

from __future__ import annotations

from eventproc.effects import Acquire, Commit, Finalize, Produce, Release, Run
from tests.unit.pipeline_driver import Driver, event, final_elsewhere


def drain(driver: Driver) -> None:
    driver.pipeline.drain()
    driver.settle()


def test_an_idle_worker_is_drained_at_once() -> None:
    driver = Driver().own()
    driver.send(event("u", 1))
    assert not driver.pipeline.drained
    drain(driver)
    assert driver.pipeline.drained
    assert driver.commits[-1] == 1


def test_what_runs_is_finished_written_and_committed_and_what_waits_is_released() -> None:
    driver = Driver(batch_max=2).own()
    driver.hold(Run)
    driver.send(*(event("u", seq) for seq in range(1, 6)))
    assert len(driver.locks()) > 2
    drain(driver)
    assert not driver.pipeline.drained
    assert driver.asked(Release) == []
    driver.free()
    assert driver.pipeline.drained
    assert driver.ran() == ["u-1", "u-2"]
    assert driver.order("u") == [1, 2]
    assert driver.locks() == []
    assert driver.floor_stored() == driver.commits[-1] == 2


def test_locks_that_are_on_the_way_are_awaited_and_released() -> None:
    driver = Driver().own()
    driver.hold(Acquire)
    driver.send(event("u", 1), event("v", 1))
    drain(driver)
    assert driver.asked(Release) == []
    driver.free()
    assert driver.runs == []
    assert driver.locks() == []
    assert driver.pipeline.drained
    assert driver.commits[-1] == 0


def test_retries_and_parked_events_are_not_awaited() -> None:
    driver = Driver(retry_backoff_ms=10_000, retry_backoff_max_ms=60_000).own()
    driver.send(event("u", 1, fail=1), event("u", 2), event("v", 2), event("w", 1))
    assert driver.locks() != []
    drain(driver)
    assert driver.pipeline.drained
    assert driver.ran() == ["u-1", "w-1"]
    assert driver.locks() == []
    assert driver.floor_stored() == driver.commits[-1] == 0
    assert driver.status("w-1") == "processed"


def test_a_handler_that_fails_while_draining_is_not_run_again_nor_dead_lettered() -> None:
    driver = Driver(retry_backoff_ms=0).own()
    driver.hold(Run)
    driver.send(event("u", 1, fail=1))
    drain(driver)
    driver.free()
    driver.pass_ms(1_000)
    assert driver.pipeline.drained
    assert driver.runs == [("u-1", 1)]
    assert driver.status("u-1") == ""
    assert driver.locks() == []


def test_dead_letters_are_awaited_and_sent_again_until_kafka_has_them() -> None:
    driver = Driver(max_attempts=1).own()
    driver.lose_produced = True
    driver.send(event("u", 1, fail=True))
    drain(driver)
    assert not driver.pipeline.drained
    driver.pass_ms(200)
    assert not driver.pipeline.drained
    driver.lose_produced = False
    driver.pass_ms(200)
    assert driver.pipeline.drained
    assert driver.produced == [0]
    assert driver.commits[-1] == driver.floor_stored() == 1


def test_it_is_not_drained_before_the_commit_of_what_redis_has() -> None:
    driver = Driver().own()
    driver.hold(Finalize)
    driver.send(event("u", 1))
    drain(driver)
    assert not driver.pipeline.drained
    driver.held = {Commit, Produce}
    driver.settle()
    assert [commit.offset for commit in driver.waiting(Commit)] == [1]
    driver.free()
    assert driver.pipeline.drained


def test_nothing_is_read_run_or_locked_after_it_was_asked() -> None:
    driver = Driver().own()
    driver.send(event("u", 2))
    driver.write(event("u", 1))
    driver.pipeline.drain()
    assert not driver.pipeline.wants_records()
    driver.read()
    driver.settle()
    assert driver.asked(Acquire) == driver.asked(Run) == []
    assert driver.pipeline.drained


def test_no_gap_is_closed_while_draining() -> None:
    driver = Driver(gap_timeout_ms=100, max_attempts=1).own()
    driver.lose_produced = True  # keeps it from being drained
    driver.send(event("v", 1, fail=True), event("u", 2))
    drain(driver)
    driver.pass_ms(1_000)
    assert driver.ledger("u") == []
    driver.lose_produced = False
    driver.pass_ms(200)
    assert driver.pipeline.drained
    assert driver.ledger("u") == []


def test_locks_are_released_once_and_only_those_taken() -> None:
    driver = Driver(locking="partition", retry_backoff_ms=1_000).own()
    driver.send(event("u", 1, fail=1), event("u", 0, id="free", fail=1))
    drain(driver)
    driver.pass_ms(10)
    [release] = driver.asked(Release)
    assert [entry.id for entry in release.entries] == ["free"]
    assert driver.locks() == []


def test_the_next_worker_goes_on_where_a_drain_ended() -> None:
    first = Driver(batch_max=1).own()
    first.hold(Run)
    bodies = [event("u", seq) for seq in range(1, 4)]
    first.send(*bodies)
    drain(first)
    first.free()
    assert first.pipeline.drained
    second = Driver(
        store=first.store, clock=first.clock, owner="host:1:a/0/2", end=3, may_take=lambda owner: True
    ).own()
    assert second.fetch_at == 1
    second.log = first.log
    second.end = first.end
    second.fetch_at = 1
    second.read()
    second.settle()
    assert second.ran() == ["u-2", "u-3"]
    assert second.order("u") == [1, 2, 3]


def test_a_drain_does_not_wait_to_learn_how_an_id_was_final() -> None:
    driver = Driver(locking="partition").own()
    driver.hold(Finalize)
    driver.send(event("u", 1))
    driver.hold(Run)
    final_elsewhere(driver, "u-1", "u", 1)
    drain(driver)
    driver.free()
    driver.pass_ms(1_000)
    assert driver.pipeline.drained
