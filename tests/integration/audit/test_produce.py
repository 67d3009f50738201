"""Producing a workload on a broker: what the ledger tells is what lies in the topic."""

from __future__ import annotations

from pathlib import Path

import pytest

from eventproc.broker.reading import TopicReader
from eventproc.errors import DependencyError
from eventproc.workload import Workload, produce
from tests.integration.audit.planting import (
    settings_for,
)
from tests.integration.audit.world import CLOCK, World, lines_of
from tests.integration.conftest import BrokerUnderTest
from tests.redis_server import RedisServer


def test_embedded_broker_that_dropped_is_told(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server, kafka_topic=embedded_broker.topics(1))
    workload = Workload(
        users=10,
        events_per_user=40,
        payload_bytes=60_000,
        topic=settings.kafka_topic,
        run="big",
    )
    with pytest.raises(DependencyError, match=r"dropped the first \d+ records"):
        produce(settings, workload, tmp_path / "ledger")
    assert len((tmp_path / "ledger").read_text().splitlines()) == 402


def test_ledger_tells_where_each_record_is(world: World) -> None:
    lines = {(line.partition, line.offset): line for line in world.lines()}
    with TopicReader(world.settings) as reader:
        for message in reader.read(world.settings.kafka_topic, world.marks()):
            line = lines.pop((message.partition() or 0, message.offset() or 0))
            assert message.key() == line.user.encode()
            if line.kind not in ("invalid", "tombstone"):
                assert dict(message.headers() or [])["event-id"] == line.id.encode()
    assert not lines


def test_paced_producing_keeps_its_schedule(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    workload = Workload(users=20, events_per_user=5, rate=500, topic=settings.kafka_topic, run="paced")
    result = produce(settings, workload, tmp_path / "ledger")
    assert result.acknowledged == 100
    assert 190 <= result.elapsed_ms < 5000
    sent = sorted(line.sent_ms for line in lines_of(tmp_path / "ledger"))
    assert 190 <= sent[-1] - sent[0] <= 200


def test_interrupted_producing_leaves_a_ledger(
    embedded_broker: BrokerUnderTest, server: RedisServer, tmp_path: Path
) -> None:
    settings = settings_for(embedded_broker, server)
    workload = Workload(users=20, events_per_user=50, rate=2000, topic=settings.kafka_topic)
    begun = CLOCK.monotonic_ms()
    result = produce(settings, workload, tmp_path / "ledger", stop=lambda: CLOCK.monotonic_ms() - begun > 300)
    assert result.interrupted
    assert result.acknowledged == result.sent < 1000
    assert len(lines_of(tmp_path / "ledger")) == result.sent
