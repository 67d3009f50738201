"""The rules of CONTRACT section 4 one by one, through real workers, on both brokers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path

import pytest

from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import ACT, GAP_TIMEOUT_MS, Deployment, event, headers_of
from tests.redis_server import RedisServer

pytestmark = pytest.mark.timeout(120)

RETRY_BACKOFF_MS = 400
MAX_SEQ_JUMP = 1000
_names = count(1)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Deployment]]:
    """One deployment for each broker, for all tests; each test has users of its own."""
    found: dict[str, Deployment] = {}
    yield found
    for it in found.values():
        it.close()
        it.server.close()


@pytest.fixture
def it(
    broker: BrokerUnderTest, running: dict[str, Deployment], tmp_path_factory: pytest.TempPathFactory
) -> Deployment:
    if broker.kind not in running:
        running[broker.kind] = Deployment(
            broker,
            RedisServer().start(),
            tmp_path_factory.mktemp(broker.kind),
            partitions=2,
            handler=ACT,
            retry_backoff_ms=RETRY_BACKOFF_MS,
            max_seq_jump=MAX_SEQ_JUMP,
            misrouted="dlq",
        ).start()
    return running[broker.kind]


def fresh_user(it: Deployment, partition: int = 0) -> str:
    """A user of that partition whom no other test has."""
    return it.user(f"u{next(_names)}-", partition)


def assert_letter(it: Deployment, id: str, reason: str, attempts: int, at: tuple[int, int]) -> dict[str, str]:
    """The dead letter of `id`, in Redis and in the topic; `at` is partition and offset."""
    it.until(lambda: it.floors()[at[0]] > at[1], f"floor of {at[0]} above {at[1]}")  # then Kafka has it
    found = it.hash(f"dlq:{id}")
    assert (found["eventId"], found["reason"], found["attempts"]) == (id, reason, str(attempts))
    assert (found["topic"], found["partition"], found["offset"]) == (it.topic, str(at[0]), str(at[1]))
    assert it.elements("dlq:list").count(id) == 1
    origin = f"{it.topic}/{at[0]}/{at[1]}".encode()
    headers = [dict(headers_of(letter)) for letter in it.dead_letters()]
    (own,) = [found for found in headers if found["eventproc-origin"] == origin]
    assert own["eventproc-reason"] == reason.encode()
    assert own["eventproc-attempts"] == b"%d" % attempts
    return found


# --- what an operator sees ----------------------------------------------------------------------------


def test_failing_events_show_in_status_and_log(it: Deployment) -> None:
    user = fresh_user(it)
    before = it.worker()["dead_letters"]
    at = it.send(*(event(user, seq, do=("reject", f"no {seq}")) for seq in range(1, 31)))[-1]
    it.final(f"{user}-30")
    it.until(lambda: it.worker()["dead_letters"] == before + 30, "30 dead letters in status")
    last = f"{user}-30 of user {user} (rejected): no 30"
    it.until(lambda: it.worker()["last_dead_letter"] == last, "the last dead letter in status")
    it.until(lambda: it.worker()["dead_letters_per_s"] > 0, "the rate in status")
    lines = [
        line for line in it.log().splitlines() if " dead_letter partition=0 reason=rejected " in line
    ]  # one a minute
    assert 1 <= len(lines) <= 3, lines
    for word in ("id=", "user=", "offset=", "error=", "remedy="):
        assert word in lines[-1]
    assert it.floors()[0] <= at + 1


# --- retries ------------------------------------------------------------------------------------------


def test_a_retry_holds_up_its_user_only(it: Deployment) -> None:
    failing, other = fresh_user(it), fresh_user(it)
    it.send(
        event(failing, 1, do=("fail", 2)),
        event(failing, 2),
        *(event(other, seq) for seq in range(1, 6)),
    )
    it.final(f"{failing}-2", f"{other}-5")

    assert it.order(failing) == [1, 2]
    assert it.hash(f"event:{failing}-1")["attempts"] == "3"
    runs = {(id, attempt): (begin, end) for id, attempt, begin, end in it.times()}
    first, second, third = (runs[f"{failing}-1", attempt] for attempt in (1, 2, 3))
    assert second[0] - first[1] >= RETRY_BACKOFF_MS
    assert third[0] - second[1] >= 2 * RETRY_BACKOFF_MS
    assert runs[f"{failing}-2", 1][0] >= third[1]
    assert runs[f"{other}-5", 1][1] <= third[0]


def test_used_up_attempts_fail_the_event_and_let_the_next_one_run(it: Deployment) -> None:
    user = fresh_user(it)
    offsets = it.send(event(user, 1, do=("fail", 9)), event(user, 2))
    it.final(f"{user}-2")

    found = it.hash(f"event:{user}-1")
    assert (found["status"], found["attempts"]) == ("failed", "3")
    assert found["error"].startswith(f"RuntimeError: attempt 3 of {user}-1 fails (handlers_for_tests.py:")
    assert (found["partition"], found["offset"]) == ("0", str(offsets[0]))
    assert it.order(user) == [2]
    assert it.redis.get(f"next:{user}") is None
    assert it.gaps(user) == []
    assert_letter(it, f"{user}-1", "handler", 3, (0, offsets[0]))

    it.send(event(user, 3, do=("reject", "no")))
    it.final(f"{user}-3")
    assert it.redis.get(f"next:{user}") == "4"  # the list alone would say 3


def test_reject_is_not_retried(it: Deployment) -> None:
    user = fresh_user(it)
    (offset,) = it.send(event(user, 1, do=("reject", "card expired")))
    it.final(f"{user}-1")
    assert it.hash(f"event:{user}-1")["attempts"] == "1"
    assert [id for id, *_ in it.times() if id == f"{user}-1"] == [f"{user}-1"]
    assert assert_letter(it, f"{user}-1", "rejected", 1, (0, offset))["error"] == "card expired"


def test_a_handler_that_exits_fails_its_event_only(it: Deployment) -> None:
    user, pids = fresh_user(it), it.worker_pids()
    (offset, _) = it.send(event(user, 1, do=("exit", 7)), event(user, 2))
    it.final(f"{user}-1", f"{user}-2")
    assert assert_letter(it, f"{user}-1", "handler", 3, (0, offset))["error"].startswith("SystemExit: 7")
    assert it.order(user) == [2]
    assert it.worker_pids() == pids


# --- sequence -----------------------------------------------------------------------------------------


def test_a_gap_closes_on_a_silent_partition_but_not_early(it: Deployment) -> None:
    user = fresh_user(it, 1)
    before_ms = time.monotonic_ns() // 1_000_000
    it.send(event(user, 1), event(user, 3))
    it.final(f"{user}-3")
    (begin_ms,) = [begin for id, _, begin, _ in it.times() if id == f"{user}-3"]
    assert begin_ms - before_ms >= GAP_TIMEOUT_MS
    assert it.gaps(user) == ["2-2:timeout"]
    assert it.order(user) == [1, 3]


def test_an_event_that_comes_after_its_gap_was_given_up_is_late(it: Deployment) -> None:
    user = fresh_user(it)
    it.send(event(user, 1), event(user, 4))
    it.final(f"{user}-4")
    (offset,) = it.send(event(user, 2))
    it.final(f"{user}-2")
    found = it.hash(f"event:{user}-2")
    assert (found["status"], found["attempts"]) == ("skipped", "0")
    assert it.order(user) == [1, 4]
    assert it.gaps(user) == ["2-3:timeout"]
    assert_letter(it, f"{user}-2", "late", 0, (0, offset))


def test_a_second_id_for_a_seq_is_stale_at_once(it: Deployment) -> None:
    user = fresh_user(it)
    offsets = it.send(event(user, 2), event(user, 2, f"{user}-2b"))  # the first one is parked
    it.final(f"{user}-2", f"{user}-2b")
    own, second = it.hash(f"event:{user}-2"), it.hash(f"event:{user}-2b")
    assert int(second["processedAt"]) < int(own["processedAt"])
    assert (second["status"], second["attempts"]) == ("skipped", "0")
    assert_letter(it, f"{user}-2b", "stale", 0, (0, offsets[1]))

    (offset,) = it.send(event(user, 2, f"{user}-2c"))  # by now it is processed
    it.final(f"{user}-2c")
    assert_letter(it, f"{user}-2c", "stale", 0, (0, offset))
    assert it.order(user) == [2]


def test_a_jump_is_dead_lettered_and_leaves_the_order_alone(it: Deployment) -> None:
    user = fresh_user(it)
    far = 2 + MAX_SEQ_JUMP + 1
    offsets = it.send(event(user, 1), event(user, far), event(user, 2))
    it.final(f"{user}-{far}", f"{user}-2")
    assert (it.order(user), it.gaps(user)) == ([1, 2], [])
    assert it.status_of(f"{user}-{far}") == "failed"
    assert_letter(it, f"{user}-{far}", "seq_jump", 0, (0, offsets[1]))
    assert it.redis.get(f"next:{user}") is None


# --- ids ----------------------------------------------------------------------------------------------


def test_an_id_of_another_user_is_a_conflict_and_its_seq_counts_as_failed(it: Deployment) -> None:
    first, second = fresh_user(it), fresh_user(it)
    id = f"{first}-1"
    it.send(event(first, 1))
    it.final(id)
    before = it.hash(f"event:{id}")
    offset, _ = it.send(event(second, 1, id), event(second, 2))
    it.final(f"{second}-2")
    assert it.order(second) == [2]
    assert it.gaps(second) == []
    assert it.hash(f"event:{id}") == before
    assert_letter(it, f"{it.topic}-0-{offset}", "id_conflict", 0, (0, offset))


def test_copies_of_an_event_change_nothing_wherever_it_stands(it: Deployment) -> None:
    user, duplicates = fresh_user(it), it.metric("events_total", outcome="duplicate")
    retrying, parked, waiting = event(user, 1, do=("fail", 1)), event(user, 3), event(user, 2)
    it.send(retrying, parked, waiting, retrying, parked, waiting)
    it.final(f"{user}-3")
    before = it.hash(f"event:{user}-3")
    end = it.send(retrying, parked, waiting)[-1] + 1
    it.until(lambda: it.floors()[0] >= end, "the copies are passed")
    assert it.order(user) == [1, 2, 3]
    assert it.hash(f"event:{user}-3") == before
    assert sorted(id for id, *_ in it.times() if id.startswith(f"{user}-")) == [
        f"{user}-1",
        f"{user}-1",  # its second attempt
        f"{user}-2",
        f"{user}-3",
    ]
    it.until(lambda: it.metric("events_total", outcome="duplicate") == duplicates + 6, "six duplicates")


def test_an_event_without_seq_runs_once_outside_the_order(it: Deployment) -> None:
    user = fresh_user(it)
    loose = event(user, id=f"{user}-x")
    it.send(event(user, 2), loose, loose)  # seq 1 is missing, and does not hold it up
    it.final(f"{user}-x", f"{user}-2")
    found = it.hash(f"event:{user}-x")
    assert found["status"] == "processed"
    assert "seq" not in found
    assert int(found["processedAt"]) < int(it.hash(f"event:{user}-2")["processedAt"])
    assert it.order(user) == [2]
    assert [id for id, *_ in it.times() if id == f"{user}-x"] == [f"{user}-x"]


# --- records ------------------------------------------------------------------------------------------


def test_a_misrouted_record_is_dead_lettered_when_that_is_asked_for(it: Deployment) -> None:
    user = fresh_user(it, 1)
    (offset,) = it.send(event(user, 1), partition=0)
    it.final(f"{user}-1")
    assert it.status_of(f"{user}-1") == "failed"
    assert it.order(user) == []
    letter = assert_letter(it, f"{user}-1", "misrouted", 0, (0, offset))
    assert f"userId '{user}' belongs to partition 1 of 2" in letter["error"]


def test_a_tombstone_and_an_invalid_record_are_passed_over(it: Deployment) -> None:
    user = fresh_user(it)
    tombstones = it.metric("events_total", outcome="tombstone")
    no_event, none = it.send(b'{"id": "x"', None, partition=0, key=user.encode())
    it.send(event(user, 1))
    it.final(f"{user}-1")
    letter = assert_letter(it, f"{it.topic}-0-{no_event}", "invalid", 0, (0, no_event))
    assert letter["raw"] == '{"id": "x"'
    it.until(lambda: it.floors()[0] > none, "the tombstone is passed")
    it.until(lambda: it.metric("events_total", outcome="tombstone") == tombstones + 1, "it is counted")


def test_in_the_end_the_audit_is_clean_and_a_drain_leaves_nothing(it: Deployment) -> None:
    user = fresh_user(it)
    it.send(event(user, 1))
    it.idle()
    report = it.audit(crashed=False, ledger=False)
    assert report.totals.runs
    assert it.locks() == []
    assert all(worker["restarts"] == 0 for worker in it.status()["workers"])


# --- other settings -----------------------------------------------------------------------------------


def test_late_policy_skip_and_a_capped_order_list_under_a_prefix(
    broker: BrokerUnderTest, tmp_path: Path
) -> None:
    with RedisServer() as server:
        it = Deployment(
            broker, server, tmp_path, late_policy="skip", order_max_len=5, key_prefix="p:", handler=ACT
        )
        try:
            it.start()
            it.send(*(event("u", seq) for seq in range(1, 9)), event("u", 10))
            it.final("u-10")
            it.send(event("u", 9), event("u", 4, "u-4b"))
            it.final("u-9", "u-4b")
            assert it.order("u") == [5, 6, 7, 8, 10]
            assert [it.hash(f"event:{id}")["status"] for id in ("u-9", "u-4b")] == ["skipped", "skipped"]
            it.idle()
            assert it.elements("dlq:list") == []
            assert it.dead_letters() == []
            assert [key for key in it.redis.scan_iter() if not key.startswith("p:")] == []
            assert it.stop() == 0

            it.start()  # what a trimmed list tells is enough to go on
            it.send(event("u", 11))
            it.final("u-11")
            assert it.order("u") == [6, 7, 8, 10, 11]
            it.idle()
            it.audit(crashed=False, ledger=False)
            assert it.stop() == 0
        finally:
            it.close()


def test_a_handler_that_outlasts_its_lock_keeps_it(broker: BrokerUnderTest, tmp_path: Path) -> None:
    with RedisServer() as server:
        it = Deployment(broker, server, tmp_path, inflight_ttl_ms=6000, lease_ms=9000, handler=ACT)
        try:
            it.start()
            (it.runs / "long").touch()
            it.send(event("u", 1, do=("while", "long")), event("u", 2))
            it.until(lambda: it.begun("u-1"), "its run")
            it.see_renewed("inflight:u-1")
            (it.runs / "long").unlink()
            it.until(lambda: not it.redis.exists("inflight:u-1"), "the end of its lock")
            assert it.status_of("u-1") == "processed"  # it went in the same step
            it.idle()
            assert [(id, attempt) for id, attempt, *_ in it.times()] == [("u-1", 1), ("u-2", 1)]
            assert it.metric("rewinds_total") == 0
            it.audit(crashed=False, ledger=False)
            assert it.stop() == 0
        finally:
            it.close()
