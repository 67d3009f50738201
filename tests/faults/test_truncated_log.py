"""Kafka deletes records, before they were processed or after (CONTRACT 6, `on_offset_out_of_range`)."""

from __future__ import annotations

import psutil  # type: ignore[import-untyped]
import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient

from eventproc.workload import Workload
from tests.faults.conftest import Deploy
from tests.integration.conftest import BrokerUnderTest
from tests.integration.deployment import PACED, Deployment, event

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
