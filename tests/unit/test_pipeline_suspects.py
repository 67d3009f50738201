"""CONTRACT 4.9, the pipeline's part: suspects run alone, one by one, and are failed at the third death."""

from __future__ import annotations

from typing import Any

import pytest

from eventproc.effects import Acquire, Claim, Death, Finalize, Produce, Run
from eventproc.settings import Settings
from eventproc.store.scripts import ScriptSet
from tests.simulation.memory_store import MemoryStore, ReplyError
from tests.unit.pipeline_driver import TOPIC, Driver, ManualClock, entries_of, event

KEY = "partition:events:0"
LOCKINGS = ("event", "partition")


def died(*offsets: int, number: int = 1) -> Death:
    return Death(f"d{number}", list(offsets), "was killed by SIGSEGV")


def offsets_of_runs(driver: Driver) -> list[list[int]]:
    return [[entry.offset for entry in run.entries] for run in driver.asked(Run)]


def charged(deaths: int, *offsets: int, **options: Any) -> Driver:
    """A worker that finds these suspects with so many deaths each."""
    clock = ManualClock()
    store = MemoryStore(clock)
    store.command("HSET", KEY, *[text for at in offsets for text in (f"suspect:{at}", f"{deaths} exited")])
    return Driver(store=store, clock=clock, **options)


@pytest.mark.parametrize("locking", LOCKINGS)
def test_suspects_run_alone_and_one_by_one_and_the_others_together(locking: str) -> None:
    driver = Driver(locking=locking, death=died(1, 3)).own()
    driver.send(*(event(user, 1) for user in "abcde"))
    assert offsets_of_runs(driver) == [[0, 2, 4], [1], [3]]
    assert driver.floor_stored() == 5


def test_a_suspect_waits_until_all_that_has_run_is_written() -> None:
    driver = Driver(death=died(1)).own()
    driver.hold(Finalize)
    driver.send(event("a", 1), event("b", 1))
    assert driver.ran() == ["a-1"]
    driver.send(event("c", 1))
    assert driver.ran() == ["a-1"]  # its turn has come: nothing goes before it any more
    driver.free()
    assert driver.ran() == ["a-1", "b-1", "c-1"]


def test_nothing_else_runs_beside_it() -> None:
    driver = Driver(death=died(0)).own()
    driver.hold(Run)
    driver.send(event("a", 1), event("b", 1))
    [run] = driver.waiting(Run)
    if [entry.id for entry in run.entries] == ["b-1"]:
        driver.carry_out(run)
        driver.settle()
        [run] = driver.waiting(Run)
    assert [entry.id for entry in run.entries] == ["a-1"]
    driver.send(event("c", 1))
    assert driver.waiting(Run) == [run]
    driver.free()
    assert driver.status("c-1") == "processed"


def test_its_place_among_its_users_events_is_kept() -> None:
    driver = Driver(death=died(1), retry_backoff_ms=100).own()
    driver.send(event("u", 1, fail=1), event("u", 2), event("u", 3), event("v", 1))
    assert driver.ran() == ["u-1", "v-1"]
    driver.pass_ms(100)
    assert driver.ran() == ["u-1", "v-1", "u-1", "u-2", "u-3"]
    assert [1] in offsets_of_runs(driver)
    assert driver.order("u") == [1, 2, 3]


def test_every_attempt_of_a_suspect_is_alone() -> None:
    driver = Driver(death=died(0), retry_backoff_ms=10).own()
    driver.send(event("u", 1, fail=2), event("v", 1))
    driver.pass_ms(10)
    driver.hold(Finalize)
    driver.send(*(event("v", seq) for seq in range(2, 5)))
    driver.pass_ms(20)
    driver.free()
    driver.pass_ms(20)
    assert driver.hash("u-1")["attempts"] == "3"
    assert [run for run in offsets_of_runs(driver) if 0 in run] == [[0]] * 3


@pytest.mark.parametrize("locking", LOCKINGS)
def test_at_the_third_death_it_is_failed_without_another_run(locking: str) -> None:
    driver = charged(2, 1, death=died(1), locking=locking).own()
    driver.hold(Produce)
    driver.send(event("u", 1), event("u", 2), event("u", 3))
    assert driver.ran() == ["u-1", "u-3"]
    found = driver.hash("u-2")
    assert (found["status"], found["reason"], found["attempts"]) == ("failed", "crash", "4")
    assert "SIGSEGV" in found["error"]
    assert driver.order("u") == [1, 3]
    assert driver.floor_stored() == 1  # until Kafka has it
    driver.free()
    assert driver.produced == [1]
    assert driver.floor_stored() == 3
    assert driver.counts["dead_letters.crash"] == 1
    assert driver.locks() == []


def test_two_deaths_are_not_enough() -> None:
    driver = charged(1, 1, death=died(1)).own()
    driver.send(event("u", 1), event("u", 2))
    assert driver.status("u-2") == "processed"
    assert driver.hash("u-2")["attempts"] == "1"


def test_a_death_with_others_charges_nobody() -> None:
    driver = charged(2, 0, death=died(0, 1)).own()
    driver.send(event("u", 1), event("v", 1))
    assert offsets_of_runs(driver) == [[0], [1]]
    assert driver.status("u-1") == "processed"


def test_a_buried_record_that_comes_again_is_only_produced_again() -> None:
    first = charged(3, 0).own()
    first.hold(Produce)
    first.send(event("u", 1))
    second = Driver(store=first.store, clock=first.clock, owner="host:1:a/0/2", force=True, end=1)
    second.log = first.log
    second.own()
    second.read()
    second.settle()
    assert second.runs == []
    assert second.produced == [0]
    assert second.hash("u-1")["reason"] == "crash"


def test_one_that_is_final_by_now_is_passed_over() -> None:
    driver = Driver(death=died(0)).own()
    driver.store.command("HSET", "event:u-1", "status", "processed", "userId", "u", "seq", 1, "attempts", 1)
    driver.store.command("SET", "dedup:u-1", 1)
    driver.send(event("u", 1), event("u", 2))
    assert driver.ran() == ["u-2"]
    assert driver.floor_stored() == 2


def test_suspects_are_forgotten_once_the_floor_has_passed() -> None:
    driver = Driver(death=died(0, 1)).own()
    assert driver.pipeline.suspects == [0, 1]
    driver.send(event("u", 1))
    assert driver.pipeline.suspects == [1]
    driver.send(event("u", 2))
    assert driver.pipeline.suspects == []


def test_what_redis_has_lost_is_still_known_after_the_rewind() -> None:
    driver = Driver(death=died(0)).own()
    driver.hold(Run)
    driver.send(event("u", 1), event("v", 1))
    driver.store.flush()
    driver.free()
    driver.pass_ms(2_000)
    driver.read()
    driver.settle()
    assert driver.pipeline.suspects == []
    assert driver.status("u-1") == driver.status("v-1") == "processed"
    assert all(run == [0] for run in offsets_of_runs(driver) if 0 in run)


def test_a_drain_drops_the_lock_of_a_suspect_whose_turn_has_come() -> None:
    driver = Driver(death=died(1)).own()
    driver.hold(Finalize)
    driver.send(event("a", 1), event("b", 1))
    assert driver.locks() == ["a-1", "b-1"]
    driver.pipeline.drain()
    driver.free()
    assert driver.pipeline.drained
    assert driver.locks() == []
    assert driver.floor_stored() == 1


def test_a_lock_that_has_grown_old_meanwhile_is_taken_again() -> None:
    driver = Driver(death=died(1), inflight_ttl_ms=1_000).own()
    driver.hold(Finalize)
    driver.send(event("a", 1), event("b", 1))
    driver.pass_ms(900)
    driver.free()
    assert driver.ran() == ["a-1", "b-1"]
    assert [entry.id for entry in entries_of(driver.asked(Acquire))].count("b-1") == 2


@pytest.mark.parametrize("concurrency", [0, 8])
def test_a_convicted_one_waits_for_the_lower_seqs_of_a_user_that_is_set_aside(concurrency: int) -> None:
    driver = charged(3, 4, concurrency=concurrency)
    driver.store.command("SET", "dlq:u-1", "somebody else's")
    driver.own().send(event("u", 1, reject="no"), *[event("u", seq) for seq in range(2, 6)])
    if concurrency:
        driver.finish("u-1")
    assert driver.pipeline.foreign
    driver.store.command("DEL", "dlq:u-1")
    driver.pass_ms(5000)
    for id in ("u-2", "u-3", "u-4") if concurrency else ():
        assert not driver.status("u-5")
        driver.finish(id)
        driver.pass_ms(5000)
    assert driver.ran() == ["u-1", "u-2", "u-3", "u-4"]
    assert driver.order("u") == [2, 3, 4]
    assert driver.hash("u-5")["reason"] == "crash"
    finals = [entry.id for request in driver.asked(Finalize) for entry in request.entries()]
    assert finals.index("u-5") > finals.index("u-4")


def test_the_first_death_is_not_charged_however_its_claim_is_cut_off() -> None:
    cuts = 0
    while True:
        clock = ManualClock()
        store = MemoryStore(clock)
        scripts = ScriptSet(Settings(), TOPIC, 0)
        store.perform(scripts, Claim("host:1:a/0/1", 10_000, offset=0))
        death = Death("d1", [4], "was killed by SIGSEGV")
        call = scripts.encode(Claim("host:1:a/0/2", 10_000, may_take="host:1:a/0/1", death=death))
        try:
            store.execute(call, fail_at=cuts)
        except ReplyError:
            cuts += 1
            store.execute(call)  # the channel sends the same call again
            found = store.command("HMGET", "partition:events:0", "suspect:4")[0]
            assert found == b"0 was killed by SIGSEGV", cuts
        else:
            break
    assert cuts > 5
