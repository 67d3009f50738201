"""Faults of Kafka and of the way to it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator
from random import Random

from confluent_kafka import Consumer

from eventproc.broker.admin import Admin
from tests.faults.chaos.fault import fault
from tests.faults.chaos.ground import Ground
from tests.faults.chaos.links import spoilt
from tests.faults.chaos.proxy import FETCH, OFFSET_COMMIT, PRODUCE
from tests.faults.chaos.servers import KAFKA
from tests.integration.supervised import wait_for
from tests.threads import join

Hits = Generator[None, None, int]
_JOIN_TIMEOUT_S = 20
_LEAVE_TIMEOUT_S = 60
_SEEN_TIMEOUT_S = 5

# --- the process ------------------------------------------------------------------------------------------


@fault("kafka", lasts_s=(0.1, 1.0))
def kafka_killed(ground: Ground, rng: Random) -> Hits:
    """Kafka is killed and started again."""
    busy = ground.busy()
    ground.servers.kafka.kill()
    yield
    ground.servers.kafka.start()
    return int(busy)


@fault("kafka", lasts_s=(0.1, 1.0))
def kafka_stopped(ground: Ground, rng: Random) -> Hits:
    """Kafka is shut down in order and started again."""
    busy = ground.busy()
    ground.servers.kafka.stop()
    yield
    ground.servers.kafka.start()
    return int(busy)


@fault("kafka", lasts_s=(0.3, 4.0))
def kafka_frozen(ground: Ground, rng: Random) -> Hits:
    """Kafka is stopped (SIGSTOP) and goes on."""
    busy = ground.busy()
    ground.servers.kafka.pause()
    yield
    ground.servers.kafka.resume()
    return int(busy)


@fault("kafka", lasts_s=(1.0, 3.0))
def kafka_commits_refused(ground: Ground, rng: Random) -> Hits:
    """Another program joins the group as a member: commits by others are refused."""
    settings = ground.hosts[0].settings
    intruder = Consumer(
        {
            "bootstrap.servers": settings.kafka_bootstrap_servers,
            "group.id": settings.kafka_group_id,
            "enable.auto.commit": False,
            "session.timeout.ms": 6000,
            "log_level": 0,
        }
    )
    joined, over = threading.Event(), threading.Event()

    def take_part() -> None:
        intruder.subscribe([ground.topic], on_assign=lambda *_: joined.set())
        while not over.is_set():
            intruder.poll(0.05)
        intruder.close()

    member = threading.Thread(target=take_part, name="member", daemon=True)
    member.start()
    joined.wait(_JOIN_TIMEOUT_S)
    floors, committed = _floors(ground), _committed(ground)
    yield
    with contextlib.suppress(AssertionError):
        wait_for(lambda: _floors(ground) != floors, _SEEN_TIMEOUT_S)
    moved = [now > then for now, then in zip(_floors(ground), floors, strict=True)]
    stood = [now == then for now, then in zip(_committed(ground), committed, strict=True)]
    over.set()
    join(member, _LEAVE_TIMEOUT_S)
    return sum(m and s for m, s in zip(moved, stood, strict=True)) if joined.is_set() else 0


def _floors(ground: Ground) -> list[int]:
    return list(ground.hosts[0].floors().values())


def _committed(ground: Ground) -> list[int]:
    with Admin(ground.hosts[0].settings) as admin:
        found = admin.committed(ground.topic, ground.hosts[0].settings.kafka_group_id)
    return [found[number] for number in sorted(found)]


# --- the way to it ------------------------------------------------------------------------------------------


@fault("kafka link", lasts_s=(0, 0.2))
def kafka_connections_cut(ground: Ground, rng: Random) -> Hits:
    """All connections are cut, several times."""
    busy = ground.busy()
    cut = ground.proxy.cut(KAFKA)
    yield
    return cut + ground.proxy.cut(KAFKA) if busy else 0


@fault("kafka link", lasts_s=(0.3, 3.0))
def kafka_refused(ground: Ground, rng: Random) -> Hits:
    """The connections are cut, and new ones refused."""
    return (yield from spoilt(ground, KAFKA, "refuse"))


@fault("kafka link", lasts_s=(0.3, 3.0))
def kafka_link_frozen(ground: Ground, rng: Random) -> Hits:
    """The connections stay, and nothing passes."""
    return (yield from spoilt(ground, KAFKA, "freeze"))


@fault("kafka link", lasts_s=(0.3, 3.0))
def kafka_slow(ground: Ground, rng: Random) -> Hits:
    """Each reply comes late."""
    return (yield from spoilt(ground, KAFKA, "delay", delay_ms=rng.uniform(20, 300)))


@fault("kafka link", lasts_s=(0.2, 1.0))
def kafka_fetch_cut(ground: Ground, rng: Random) -> Hits:
    """The connection is cut in the midst of fetched records."""
    return (yield from spoilt(ground, KAFKA, "cut_reply", api=FETCH))


@fault("kafka link", lasts_s=(0.5, 2.0))
def kafka_produce_answers_lost(ground: Ground, rng: Random) -> Hits:
    """A dead letter is written, the answer is lost with the connection."""
    return (yield from spoilt(ground, KAFKA, "lose_reply", api=PRODUCE))


@fault("kafka link", lasts_s=(0.5, 2.0))
def kafka_commit_answers_lost(ground: Ground, rng: Random) -> Hits:
    """An offset is committed, the answer is lost with the connection."""
    return (yield from spoilt(ground, KAFKA, "lose_reply", api=OFFSET_COMMIT))
