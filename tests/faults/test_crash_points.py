"""A worker that dies at each named point of its way: nothing is lost, doubled or out of order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from functools import partial
from itertools import count
from typing import Any, get_args

import psutil  # type: ignore[import-untyped]
import pytest

from eventproc.crashpoints import POINTS, Point
from eventproc.workload import Workload
from tests.faults.conftest import Deploy
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import PACED_ASYNC, Deployment, event
from tests.integration.supervised import wait_for

pytestmark = pytest.mark.timeout(120)

#: At which pass a worker dies: in the midst of the work where there are many passes.
PASSES = {
    "claim": 1,
    "load": 2,
    "commit": 2,
    "release": 1,
    "produce": 4,
    "acquire": 5,
    "run": 5,
    "finalize": 5,
}
PARTITIONS = 2


def workload_for(it: Deployment, late_events: int = 2) -> Workload:
    """About 500 events a partition, not all at once, so that there are many batches."""
    return Workload(
        topic=it.topic,
        users=50 * it.partitions,
        shuffle_window=50,
        duplicate_ratio=0.05,
        failing_ratio=0.04,
        missing_seqs=2,
        late_events=late_events,
        invalid_records=4,
        stale=3,
        conflicts=3,
        unsequenced_ratio=0.02,
        tombstones=2,
        rate=2000,
    )


def crash_at(point: str, action: str = "kill", partition: int = 0) -> str:
    return f"{point}:{PASSES[point.partition('_')[2]]}:{action}:{partition}"


def at_release(point: str) -> bool:
    return point.endswith("_release")


def stopped_worker(it: Deployment, partition: int) -> Callable[[], int]:
    """Tells the worker's pid once it has been stopped (SIGSTOP)."""
    pid = it.worker_pids()[partition]

    def look() -> int:
        return pid if psutil.Process(pid).status() == psutil.STATUS_STOPPED else 0

    return look


def press(it: Deployment, fallen: Callable[[], Any], partition: int = 0) -> None:
    """The workload may have come in fewer batches than it takes: send on until it is enough."""
    for number in count():
        if fallen():
            return
        user = it.user(f"straggler{number}-", partition)
        it.send(event(user, 1, fail=True))
        wait_for(partial(_done_or, fallen, it, f"{user}-1"), 40, "the straggler's end, or the fall")


def _done_or(fallen: Callable[[], Any], it: Deployment, id: str) -> bool:
    return bool(fallen() or it.status_of(id))


def run_through(it: Deployment, points: Sequence[str]) -> None:
    """Let the worker of each partition die at a point of its own under load; all must come right."""
    it.start(crash_at=",".join(crash_at(point, partition=number) for number, point in enumerate(points)))
    it.produce(workload_for(it))
    for number, point in enumerate(points):
        press(it, lambda: it.worker(number)["restarts"], number)  # noqa: B023 (called at once)
        it.until(lambda: it.worker(number)["restarts"] == 1, f"the death at {point}")  # noqa: B023
    it.idle()
    assert [worker["restarts"] for worker in it.status()["workers"]] == [1] * len(points)
    assert it.log().count("was killed by SIGKILL") >= len(points)
    check(it, late_events=2)


def check(it: Deployment, late_events: int) -> None:
    """Everything is as if nothing had happened, but that some events ran again."""
    totals = it.audit(crashed=True).totals
    assert totals.processed > 425 * it.partitions
    assert totals.failed > 7 * it.partitions
    assert totals.conflicts == 3
    assert totals.skipped == late_events + 3
    assert it.locks() == []
    assert it.stop() == 0
    assert it.committed() == it.floors() == it.ends_of()


def test_every_point_has_a_pass() -> None:
    assert {point.partition("_")[2] for point in POINTS} == set(PASSES)
    assert get_args(Point) == POINTS


@pytest.mark.parametrize("locking", ["event", "partition"])
def test_death_at_each(locking: str, embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    points = [point for point in POINTS if not at_release(point)]
    run_through(deploy(embedded_broker, partitions=len(points), locking=locking), points)


def test_death_on_a_real_kafka(kafka_broker: BrokerUnderTest, deploy: Deploy) -> None:
    points = ["after_run", "after_finalize", "after_produce", "before_commit"]
    run_through(deploy(kafka_broker, partitions=len(points)), points)


def test_death_with_an_async_handler(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    """Many events run at that moment, and settle out of order."""
    points = ["before_run", "after_run", "before_finalize", "after_finalize"]
    it = deploy(embedded_broker, partitions=len(points), handler=PACED_ASYNC)
    it.pace(3)
    run_through(it, points)


@pytest.mark.parametrize("point", [point for point in POINTS if at_release(point)])
def test_death_in_the_drain_at(point: str, embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    """The worker is stopped there, so as to see it there, and then killed."""
    # so slow that much is left at the signal, however long producing takes on a loaded machine
    it = deploy(embedded_broker, partitions=PARTITIONS, processing_delay_ms=20)
    it.start(crash_at=crash_at(point, "stop"))
    look = stopped_worker(it, 0)
    it.produce(workload_for(it, late_events=0))
    it.signal(signal.SIGTERM)
    pid = wait_for(look, 20, f"the stop at {point}")
    if point == "before_release":
        assert it.locks() != []  # what was granted and not run
    psutil.Process(pid).kill()
    assert it.ends() == 0
    assert it.floors()[0] < it.ends_of()[0]  # there was work left

    it.start()
    it.idle()
    check(it, late_events=0)


@pytest.mark.parametrize("point", ["after_acquire", "before_finalize"])
def test_a_worker_that_hangs_is_killed_and_the_others_go_on(
    point: str, embedded_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(embedded_broker, partitions=PARTITIONS, heartbeat_timeout_ms=3000)
    it.start(crash_at=crash_at(point, "stop"))
    look = stopped_worker(it, 0)
    it.produce(workload_for(it, late_events=0))
    press(it, look)
    other = it.user("alive", 1)
    it.send(event(other, 1))
    it.final(f"{other}-1")
    assert it.worker(0)["restarts"] == 0  # it still hangs
    it.until(lambda: it.worker(0)["restarts"] == 1, "its end")
    assert "no progress for" in it.log()
    assert it.worker(1)["restarts"] == 0
    it.idle()
    totals = it.audit(crashed=True, ledger=False).totals
    assert totals.failed > 15
    assert it.stop() == 0


def test_a_misspelt_point_ends_the_start(embedded_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(embedded_broker).start(crash_at="before_lunch", ready=False)
    assert it.ends() == 3
    assert "EVENTPROC_CRASH_AT=before_lunch" in it.log()
