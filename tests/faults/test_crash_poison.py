"""Records that kill or hang their worker, and innocent ones that run when it dies (CONTRACT 4.9)."""

from __future__ import annotations

import os
import signal

import pytest

from eventproc.suspects import CRASH_DEATHS
from eventproc.workload import Workload
from tests.faults.conftest import Deploy
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import ACT, ACT_ASYNC, ACT_BATCH, Deployment, event, headers_of
from tests.integration.handlers_for_tests import DEATHS

pytestmark = pytest.mark.timeout(120)

#: Long enough for whoever does not hang, on a busy machine.
HANG_MS = 3000
#: What is told of each death.
TOLD = {
    "exit": "exited with code 7",
    "exit in good order": "exited with code 0",
    "segfault": "was killed by SIGSEGV",
    "abort": "was killed by SIGABRT",
    "out of memory": "was killed by SIGKILL",
    "hang": f"handler_timeout_ms={HANG_MS}",
    "starve": "exited with code 1",
}
RUNS = 1 + CRASH_DEATHS  # the first one is not alone


def suspects(it: Deployment, partition: int = 0) -> dict[int, str]:
    """What Redis holds of them."""
    fields = it.hash(f"partition:{it.topic}:{partition}")
    return {int(name[8:]): value for name, value in fields.items() if name.startswith("suspect:")}


def begun(it: Deployment, id: str) -> None:
    it.until(lambda: it.begun(id), f"a run of {id}")


def assert_buried(it: Deployment, id: str, told: str, offset: int) -> None:
    """Failed as `crash`, in Redis and in the topic."""
    found = it.hash(f"event:{id}")
    assert (found["status"], found["reason"], found["attempts"]) == ("failed", "crash", str(RUNS))
    assert told in found["error"]
    letter = it.hash(f"dlq:{id}")
    assert (letter["reason"], letter["attempts"], letter["offset"]) == ("crash", str(RUNS), str(offset))
    [message] = [m for m in it.dead_letters() if dict(headers_of(m))["event-id"] == id.encode()]
    headers = dict(headers_of(message))
    assert headers["eventproc-reason"] == b"crash"
    assert told.encode() in headers["eventproc-error"]


def test_a_record_that_kills_its_worker_is_dead_lettered_and_nothing_else_suffers(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    """In each partition one that kills in another way, and one partition where nothing does."""
    it = deploy(embedded_broker, partitions=len(DEATHS) + 1, handler=ACT, handler_timeout_ms=HANG_MS)
    crowds: list[str] = []
    poisons: dict[str, tuple[str, int]] = {}
    for partition, how in enumerate(DEATHS):
        poison = it.user(f"poison{partition}-", partition)
        crowd = [it.user(f"u{partition}-{n}-", partition) for n in range(20)]
        before = [event(user, seq) for seq in (1, 2) for user in crowd]
        after = [event(user, seq) for seq in (3, 4) for user in crowd]
        killing = [event(poison, 1), event(poison, 2, do=("die", how)), event(poison, 3)]
        offsets = it.send(*before, *killing, *after)
        crowds += crowd
        poisons[how] = poison, offsets[len(before) + 1]
    other = it.user("other", len(DEATHS))
    it.send(*[event(other, seq) for seq in range(1, 30)])
    it.start()
    it.idle(100)
    for how, (poison, offset) in poisons.items():
        assert_buried(it, f"{poison}-2", TOLD[how], offset)
        assert it.begun(f"{poison}-2") == RUNS
        assert it.order(poison) == [1, 3]
    assert all(it.order(user) == [1, 2, 3, 4] for user in crowds)
    assert [worker["restarts"] for worker in it.status()["workers"]] == [RUNS] * len(DEATHS) + [0]
    assert it.metric("dead_letters_total", reason="crash") == len(DEATHS)
    assert it.locks() == []
    assert it.audit(crashed=True, ledger=False).clean
    it.restart(0)
    assert suspects(it) == {}  # the position is beyond it
    assert it.stop() == 0


def test_on_a_real_kafka_with_partition_locks(kafka_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(kafka_broker, handler=ACT, locking="partition")
    offsets = it.send(
        *[event(f"u{n}", 1) for n in range(50)],
        event("u0", 2, do=("die", "segfault")),
        event("free", do=("die", "exit"), id="free"),
        *[event(f"u{n}", 3) for n in range(50)],
    )
    it.start()
    it.until(lambda: it.status_of("free"), "the second one's end", 60)
    it.send(*[event(f"u{n}", 2) for n in range(1, 50)])
    it.idle()
    assert_buried(it, "u0-2", TOLD["segfault"], offsets[50])
    assert_buried(it, "free", TOLD["exit"], offsets[51])
    assert it.order("u0") == [1, 3]
    it.audit(crashed=True, ledger=False)
    assert it.stop() == 0


def test_one_of_many_async_handlers_kills_them_all(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    ways = ["exit", "segfault", "out of memory", "hang", "starve"]
    it = deploy(embedded_broker, partitions=len(ways), handler=ACT_ASYNC, handler_timeout_ms=HANG_MS)
    crowds: list[str] = []
    poisons: dict[str, tuple[str, int]] = {}
    for partition, how in enumerate(ways):
        poison = it.user(f"poison{partition}-", partition)
        crowd = [it.user(f"u{partition}-{n}-", partition) for n in range(30)]
        it.send(*[event(user, 1, do=("sleep", 40)) for user in crowd])
        [offset] = it.send(event(poison, 1, do=("die", how)))
        it.send(event(poison, 2), *[event(user, seq, do=("sleep", 20)) for seq in (2, 3) for user in crowd])
        crowds += crowd
        poisons[how] = poison, offset
    it.start()
    it.idle(100)
    for how, (poison, offset) in poisons.items():
        assert_buried(it, f"{poison}-1", TOLD[how], offset)
        assert it.begun(f"{poison}-1") == RUNS
        assert it.order(poison) == [2]
    assert all(it.order(user) == [1, 2, 3] for user in crowds)
    assert all(it.hash(f"event:{user}-1")["attempts"] == "1" for user in crowds)
    assert [worker["restarts"] for worker in it.status()["workers"]] == [RUNS] * len(ways)
    assert len(it.dead_letters()) == len(ways)
    assert it.locks() == []
    it.audit(crashed=True, ledger=False)
    assert it.stop() == 0


def test_one_of_many_threads_kills_them_all(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, handler=ACT, handler_threads=32)
    crowd = [f"u{n}" for n in range(30)]
    it.send(*[event(user, 1, do=("sleep", 40)) for user in crowd])
    [offset] = it.send(event("poison", 1, do=("die", "exit")))
    it.send(event("poison", 2), *[event(user, 2) for user in crowd])
    it.start()
    it.idle(100)
    assert_buried(it, "poison-1", TOLD["exit"], offset)
    assert it.begun("poison-1") == RUNS
    assert it.order("poison") == [2]
    assert all(it.order(user) == [1, 2] for user in crowd)
    assert len(it.dead_letters()) == 1
    it.audit(crashed=True, ledger=False)
    assert it.stop() == 0


@pytest.mark.parametrize("how", ["exit", "segfault", "hang"])
def test_one_of_a_batch_kills_all_of_it(how: str, embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, handler=ACT_BATCH, handler_timeout_ms=HANG_MS)
    crowd = [f"u{n}" for n in range(30)]
    it.send(event("first", 1, do=("sleep", 1000)))  # meanwhile the others are read, to be in one batch
    it.send(*[event(user, 1) for user in crowd])
    [offset] = it.send(event("poison", 1, do=("die", how)))
    it.send(event("poison", 2), *[event(user, seq) for seq in (2, 3) for user in crowd])
    it.start()
    it.idle(100)
    assert_buried(it, "poison-1", TOLD[how], offset)
    assert it.begun("poison-1") == RUNS
    assert it.order("poison") == [2]
    assert all(it.order(user) == [1, 2, 3] for user in crowd)
    beside = [f"{user}-{seq}" for user in crowd for seq in (1, 2, 3)]
    assert all(it.hash(f"event:{id}")["attempts"] == "1" for id in beside)
    assert max(map(it.begun, beside)) == 2  # in the batch, and alone
    assert it.worker()["restarts"] == RUNS
    assert len(it.dead_letters()) == 1
    assert it.locks() == []
    it.audit(crashed=True, ledger=False)
    assert it.stop() == 0


def test_memory_that_runs_out_beside_others_is_held_against_none_of_them(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker, handler=ACT_ASYNC, worker_memory_max_bytes=600 * 2**20, max_attempts=1)
    crowd = [f"u{n}" for n in range(30)]
    it.send(*[event(user, 1, do=("sleep", 500)) for user in crowd], event("hog", 1, do=("hog", 0)))
    it.start()
    it.idle()
    assert "MemoryError" in it.hash("dlq:hog-1")["error"]
    assert it.begun("hog-1") == 2  # beside others, and alone
    assert all(it.status_of(f"{user}-1") == "processed" for user in crowd)
    assert it.worker()["restarts"] == 0
    assert it.stop() == 0


def test_two_that_kill_in_a_workload_of_everything(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, partitions=2, handler=ACT)
    poison = it.user("poison", 0)
    it.send(event(poison, 1, do=("die", "exit")))
    it.start()
    workload = Workload(
        topic=it.topic,
        users=100,
        shuffle_window=50,
        duplicate_ratio=0.05,
        missing_seqs=2,
        invalid_records=4,
        stale=3,
        conflicts=3,
        unsequenced_ratio=0.02,
    )
    it.produce(workload, before_late=lambda: None)
    it.send(event(poison, 2, do=("die", "segfault")), event(poison, 3))
    it.idle()
    totals = it.audit(crashed=True, ledger=False).totals
    assert totals.failed == 2
    assert totals.conflicts == 3
    assert it.order(poison) == [3]
    assert it.stop() == 0


def test_memory_beyond_the_limit_is_the_handlers_failure(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker, handler=ACT, worker_memory_max_bytes=600 * 2**20)
    it.send(event("u", 1), event("u", 2, do=("hog", 0)), event("u", 3), event("v", 1))
    it.start()
    it.idle()
    found = it.hash("event:u-2")
    assert (found["status"], found["reason"], found["attempts"]) == ("failed", "handler", "3")
    assert "MemoryError" in found["error"]
    assert it.order("u") == [1, 3]
    assert it.worker()["restarts"] == 0
    it.audit(crashed=False, ledger=False)
    assert it.stop() == 0


def test_three_kills_from_outside_bury_nobody(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, handler=ACT)
    it.send(event("u", 1, do=("sleep", 3000)), event("v", 1))
    it.start()
    for kills in range(1, 4):
        it.until(lambda: it.begun("u-1") == kills, f"run {kills}")  # noqa: B023
        os.kill(it.worker()["pid"], signal.SIGKILL)
        it.until(lambda: it.worker()["restarts"] == kills, f"restart {kills}")  # noqa: B023
    it.idle()
    assert it.status_of("u-1") == "processed"
    assert it.begun("u-1") == 4
    assert it.dead_letters() == []
    it.audit(crashed=True, ledger=False)
    assert it.stop() == 0


def test_one_that_ran_at_a_kill_and_fails_is_tried_again_as_any_other(
    embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker, handler=ACT)
    it.send(event("u", 1, do=("sleep", 700)), event("u", 2, do=("fail", 2)), event("v", 1))
    it.start()
    begun(it, "u-1")
    os.kill(it.worker()["pid"], signal.SIGKILL)
    it.idle()
    assert it.hash("event:u-2")["attempts"] == "3"
    assert it.order("u") == [1, 2]
    assert it.worker()["restarts"] == 1
    assert it.stop() == 0


def test_a_drain_that_takes_too_long_charges_nobody(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, handler=ACT, shutdown_timeout_s=1)
    it.send(event("u", 1, do=("sleep", 4000)))
    it.start()
    begun(it, "u-1")
    it.restart(0)
    assert "drain took too long" in it.log()
    it.until(lambda: it.begun("u-1") == 2, "its second run")
    assert suspects(it) == {}
    it.idle()
    assert it.status_of("u-1") == "processed"
    assert it.stop() == 0


def test_what_was_charged_outlives_the_supervisor(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker, handler=ACT, restart_backoff_ms=20_000).start()
    [offset] = it.send(event("u", 1, do=("die", "exit")))
    # dies, is started again at once, dies alone: the death that waits for the next start goes with it
    it.until(lambda: it.begun("u-1") == 2 and it.worker()["state"] == "crashed", "the pause")
    assert suspects(it)[offset].startswith("0 ")
    it.signal(signal.SIGKILL)
    it.ends()
    it.choose(restart_backoff_ms=100)
    it.start()
    it.idle()
    assert_buried(it, "u-1", TOLD["exit"], offset)
    assert it.begun("u-1") == 2 + CRASH_DEATHS
    assert it.stop() == 0
