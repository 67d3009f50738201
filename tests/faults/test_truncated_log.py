"""Kafka deletes records, before they were processed or after, or all of a topic that is then made anew.

CONTRACT 6: a position outside the log ends the start, unless `on_offset_out_of_range` says otherwise.
"""

from __future__ import annotations

from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest
from confluent_kafka import KafkaError, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from eventproc.workload import Workload
from tests.faults.conftest import Deploy
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import PACED, Deployment, event
from tests.integration.supervised import wait_for

pytestmark = pytest.mark.timeout(120)


def truncate(it: Deployment, partition: int, offset: int) -> None:
    """Delete what lies before `offset`, as retention does."""
    admin = AdminClient({"bootstrap.servers": it.settings.kafka_bootstrap_servers})
    target = TopicPartition(it.topic, partition, offset)
    admin.delete_records([target])[target].result(20)


def backlog(it: Deployment) -> None:
    """Start on one, slowly, and wait until each partition has done a bit of it."""
    it.produce(Workload(topic=it.topic, users=50))
    it.pace(40)
    it.start()
    it.until(lambda: all(it.floors().values()), "the first floors")
    assert it.floors()[0] < it.ends_of()[0]


def test_what_was_processed_may_go(kafka_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(kafka_broker, partitions=2, handler=PACED)
    backlog(it)
    truncate(it, 0, it.floors()[0])
    psutil.Process(it.worker_pids()[0]).kill()
    it.pace(0)
    it.idle()
    assert it.audit(crashed=True).totals.processed == 500
    assert it.stop() == 0


def test_without_a_policy_the_partition_stands_still_and_says_why(
    kafka_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = deploy(kafka_broker, partitions=2, handler=PACED)
    backlog(it)
    end = it.ends_of()[0]
    truncate(it, 0, end - 1)
    psutil.Process(it.worker_pids()[0]).kill()
    it.pace(0)
    it.until(lambda: "on_offset_out_of_range" in (it.worker(0)["last_error"] or ""), "its reason")
    floor = it.floors()[0]
    assert floor < end - 1
    other = it.user("other", 1)
    it.send(event(other, 1))
    it.final(f"{other}-1")
    assert it.floors()[0] == floor
    assert it.committed()[0] <= floor


def test_with_earliest_it_goes_on_behind_the_hole(kafka_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(kafka_broker, partitions=2, handler=PACED, on_offset_out_of_range="earliest")
    backlog(it)
    end = it.ends_of()[0]
    truncate(it, 0, end)
    psutil.Process(it.worker_pids()[0]).kill()
    it.pace(0)
    user = it.user("later", 0)
    it.send(event(user, 1))
    it.final(f"{user}-1")
    it.idle()
    assert it.floors()[0] == end + 1
    assert it.stop() == 0


# --- the log's end is cut off -----------------------------------------------------------------------------

OLD_EVENTS = 20


def made_anew(it: Deployment) -> None:
    """Delete the topic under the running workers, and create it once more."""
    admin = AdminClient({"bootstrap.servers": it.settings.kafka_bootstrap_servers})
    admin.delete_topics([it.topic])[it.topic].result(20)

    def created() -> bool:
        failure: Any = admin.create_topics([NewTopic(it.topic, it.partitions, 1)])[it.topic].exception(20)
        if failure is not None:  # the old one is still being deleted
            assert failure.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS, failure
        return failure is None

    wait_for(created, 30, "the new topic")


def beyond_the_end(broker: BrokerUnderTest, deploy: Deploy, events: int) -> Deployment:
    """One that has processed more than there is in the log now."""
    it = deploy(broker, gap_timeout_ms=200).start()
    it.send(*(event("old", seq) for seq in range(1, OLD_EVENTS + 1)))
    it.idle()
    made_anew(it)
    if events:
        it.send(*(event("new", seq) for seq in range(1, events + 1)))
    it.until(lambda: "on_offset_out_of_range" in (it.worker()["last_error"] or ""), "its reason", 120)
    return it


@pytest.mark.parametrize("events", [0, 3], ids=["empty", "shorter"])
def test_a_topic_made_anew_under_a_worker_is_noticed_and_left_alone(
    events: int, kafka_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = beyond_the_end(kafka_broker, deploy, events)
    reason = (
        f"position of {it.topic}/0 is {OLD_EVENTS}, but the log holds 0 to {events}: the topic was made anew"
    )
    it.until(lambda: reason in (it.worker()["last_error"] or ""), "what is the matter")
    assert it.floors()[0] == OLD_EVENTS
    assert it.committed()[0] <= OLD_EVENTS
    assert it.order("new") == []
    assert it.readiness()[0] == 503


def test_with_earliest_a_topic_made_anew_is_read_from_its_beginning(
    kafka_broker: BrokerUnderTest, deploy: Deploy
) -> None:
    it = beyond_the_end(kafka_broker, deploy, 3)
    it.stop()
    it.choose(on_offset_out_of_range="earliest")
    it.start()
    it.final("new-3")
    it.idle()
    assert it.order("new") == [1, 2, 3]
    assert it.floors() == it.committed() == {0: 3}
    it.send(event("new", 4))
    it.final("new-4")
    assert it.stop() == 0


def test_with_earliest_a_worker_begins_anew_by_itself(kafka_broker: BrokerUnderTest, deploy: Deploy) -> None:
    it = deploy(kafka_broker, gap_timeout_ms=200, on_offset_out_of_range="earliest").start()
    it.send(*(event("old", seq) for seq in range(1, OLD_EVENTS + 1)))
    it.idle()
    made_anew(it)
    it.send(*(event("new", seq) for seq in (1, 2, 3)))
    it.final("new-3")
    it.idle()
    assert it.order("new") == [1, 2, 3]
    assert it.floors() == it.committed() == {0: 3}
    assert it.stop() == 0
