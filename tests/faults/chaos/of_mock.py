"""Faults that only mock brokers make: nodes, leaders, refusals (the embedded broker's C API)."""

from __future__ import annotations

from collections.abc import Generator
from random import Random

from confluent_kafka import KafkaError

from tests.faults.chaos.fault import fault
from tests.faults.chaos.ground import Ground
from tests.faults.chaos.mock_broker import NODES, FaultyBroker
from tests.faults.chaos.proxy import FETCH, OFFSET_COMMIT, PRODUCE

Hits = Generator[None, None, int]
_REFUSALS = 5
#: None that ends a producer for good: it may be the load's that meets it.
_PRODUCE_ERRORS = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.NOT_ENOUGH_REPLICAS,
    KafkaError.NOT_ENOUGH_REPLICAS_AFTER_APPEND,
)
_COMMIT_ERRORS = (
    KafkaError.COORDINATOR_NOT_AVAILABLE,
    KafkaError.NOT_COORDINATOR,
    KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    KafkaError.REQUEST_TIMED_OUT,
    KafkaError.UNKNOWN_MEMBER_ID,
)
_FETCH_ERRORS = (
    KafkaError.NOT_LEADER_FOR_PARTITION,
    KafkaError.LEADER_NOT_AVAILABLE,
    KafkaError.UNKNOWN_TOPIC_OR_PART,
    KafkaError.BROKER_NOT_AVAILABLE,
)


def broker_of(ground: Ground) -> FaultyBroker:
    """The mock brokers."""
    found = ground.servers.kafka
    assert isinstance(found, FaultyBroker)
    return found


@fault("mock", lasts_s=(0.3, 2.0))
def mock_node_down(ground: Ground, rng: Random) -> Hits:
    """One of three nodes is away, and with it its partitions."""
    busy, node = ground.busy(), rng.randint(1, NODES)
    broker_of(ground).order(f"down {node}")
    yield
    broker_of(ground).order(f"up {node}")
    return int(busy)


@fault("mock", lasts_s=(0.1, 0.5))
def mock_leaders_moved(ground: Ground, rng: Random) -> Hits:
    """Each partition gets another leader, twice."""
    busy = ground.busy()
    for _ in range(2):
        for topic in (ground.topic, f"{ground.topic}.dlq"):
            for partition in range(ground.partitions):
                broker_of(ground).order(f"lead {topic} {partition} {rng.randint(1, NODES)}")
    yield
    return int(busy)


@fault("mock", lasts_s=(0.5, 2.0))
def mock_slow(ground: Ground, rng: Random) -> Hits:
    """Every request takes long."""
    busy = ground.busy()
    broker_of(ground).order(f"rtt {rng.randint(50, 300)}")
    yield
    broker_of(ground).order("rtt 0")
    return int(busy)


@fault("mock", lasts_s=(1.0, 2.0))
def mock_dead_letters_refused(ground: Ground, rng: Random) -> Hits:
    """Produce requests are answered with an error, among them of records that were written."""
    return (yield from _refused(ground, PRODUCE, rng.choice(_PRODUCE_ERRORS)))


@fault("mock", lasts_s=(1.0, 3.0))
def mock_commits_refused(ground: Ground, rng: Random) -> Hits:
    """OffsetCommit requests are answered with an error."""
    return (yield from _refused(ground, OFFSET_COMMIT, rng.choice(_COMMIT_ERRORS)))


@fault("mock", lasts_s=(0.5, 1.5))
def mock_fetches_refused(ground: Ground, rng: Random) -> Hits:
    """Fetch requests are answered with an error."""
    return (yield from _refused(ground, FETCH, rng.choice(_FETCH_ERRORS)))


def _refused(ground: Ground, api: int, code: int) -> Hits:
    broker = broker_of(ground)
    broker.order(f"count {api}")
    broker.order(f"errors {api} {code} {_REFUSALS}")
    yield
    came = int(broker.order(f"count {api}"))
    broker.order(f"errors {api} 0 0")
    return min(came, _REFUSALS)
