"""A workload that goes through the API in part: what its ledger says is in the topic."""

from __future__ import annotations

from pathlib import Path
from zlib import crc32

from eventproc.workload import Workload, produce, read_ledger
from eventproc.workload.posting import ApiShare
from tests.integration.ingest.api_server import ApiServer


def test_the_ledger_tells_where_every_record_is_whichever_way_it_went(
    shared_api: ApiServer, tmp_path: Path
) -> None:
    topic = shared_api.settings.kafka_topic
    workload = Workload(
        users=60,
        events_per_user=5,
        duplicate_ratio=0.2,
        invalid_records=20,
        tombstones=3,
        run="p",
        topic=topic,
    )
    before = shared_api.metric("events_total", outcome="accepted")
    url = f"http://127.0.0.1:{shared_api.port}"
    made = produce(shared_api.settings, workload, tmp_path / "ledger", api=ApiShare(url, 0.5))
    assert made.sent == made.acknowledged
    assert (made.unacknowledged, made.failed) == (0, {})
    posted = shared_api.metric("events_total", outcome="accepted") - before
    assert 0.2 * workload.events < posted < 0.8 * workload.events

    found = {(record.partition(), record.offset()): record for record in shared_api.records()}
    lines = list(read_ledger(tmp_path / "ledger").lines())
    assert len(lines) == made.sent
    assert len({(line.partition, line.offset) for line in lines}) == made.sent
    for line in lines:
        assert crc32(found[line.partition, line.offset].value() or b"") == line.crc


def test_what_the_api_does_not_take_is_not_acknowledged(
    shared_api: ApiServer, tmp_path: Path, unused_port: int
) -> None:
    workload = Workload(users=10, events_per_user=2, run="q", topic=shared_api.settings.kafka_topic)
    url = f"http://127.0.0.1:{unused_port}"
    made = produce(shared_api.settings, workload, tmp_path / "ledger", api=ApiShare(url, 1))
    assert (made.acknowledged, made.unacknowledged) == (0, 20)
    assert sum(made.failed.values()) == 20
    assert all("the API did not answer" in reason for reason in made.failed)
    assert {line.offset for line in read_ledger(tmp_path / "ledger").lines()} == {-1}
