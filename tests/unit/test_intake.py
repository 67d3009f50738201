"""From records to entries: columns, letters, misrouted users (CONTRACT 2, 4.8)."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from eventproc._reorder import partition_of
from eventproc.effects import Entry
from eventproc.intake import Batch, Intake
from eventproc.settings import Settings
from tests.unit.pipeline_driver import LogRecord, event


def take(*bodies: bytes | None, partitions: int = 1, first: int = 10, **settings: Any) -> Batch:
    """What comes of records from offset `first` on."""
    intake = Intake(Settings(**settings), 0, partitions)
    records = [LogRecord(first + n, body, b"key", 77) for n, body in enumerate(bodies)]
    return intake.take(list(records), 500)


def entries(batch: Batch) -> list[Entry]:
    return [entry for entry in batch.entries if isinstance(entry, Entry)]


def user_at_home(partition: int, partitions: int) -> str:
    return next(f"u{n}" for n in range(1000) if partition_of(f"u{n}", partitions) == partition)


def test_the_columns_describe_the_entries_in_offset_order() -> None:
    bodies = [event("u", 3), event("v", 0, id="free"), b"bad"]
    batch = take(*bodies)
    assert batch.users == ["u", "v", ""]
    assert batch.seqs == [3, 0, 0]
    assert batch.offsets == [10, 11, 12]
    assert batch.sizes == [len(body) + 3 for body in bodies]
    assert [entry.id for entry in entries(batch)] == ["u-3", "free", "events-0-12"]
    assert batch.end == 13
    assert (batch.tombstones, batch.misrouted) == (0, [])


def test_an_entry_knows_all_of_its_record() -> None:
    [entry] = entries(take(event("u", 3, amount=5)))
    assert (entry.offset, entry.user, entry.seq, entry.type) == (10, "u", 3, "t")
    assert entry.document is not None
    assert entry.document["payload"] == {"amount": 5, "seq": 3}
    assert entry.record.offset() == 10
    assert (entry.arrived_ms, entry.size) == (500, len(event("u", 3, amount=5)) + 3)
    assert (entry.status, entry.reason, entry.letter, entry.attempts) == ("", "", False, 0)


def test_records_of_different_classes_are_read_each_by_its_own_methods() -> None:
    class Louder(LogRecord):
        def key(self) -> bytes:
            return b"a longer key"

    body = event("u", 0)
    batch = Intake(Settings(), 0, 1).take(
        [LogRecord(1, body, b"key", 5), Louder(2, body, b"key", 6), LogRecord(4, body, b"key", 7)], 500
    )
    assert batch.sizes == [len(body) + 3, len(body) + 12, len(body) + 3]
    assert batch.offsets == [1, 2, 4]
    assert [entry.timestamp for entry in entries(batch)] == [5, 6, 7]


def test_a_sequenced_entry_is_ordered_behind_its_user_an_unsequenced_one_behind_itself() -> None:
    first, second = entries(take(event("u", 3), event("u", 0, id="free")))
    assert (first.lane, second.lane) == ("u", 11)


@pytest.mark.parametrize(
    ("timestamp", "expected"),
    [(1234, 1234), (0, 0), (None, 77), ("x", 77), (1.5, 77), (True, 77)],
)
def test_the_timestamp_is_the_events_own_or_the_records(timestamp: object, expected: int) -> None:
    document = orjson.loads(event("u", 1)) | {"timestamp": timestamp}
    [entry] = entries(take(orjson.dumps(document)))
    assert entry.timestamp == expected


def test_a_record_without_a_key_has_the_size_of_its_value() -> None:
    body = event("u", 1)
    batch = Intake(Settings(), 0, 1).take([LogRecord(0, body, None)], 0)
    assert batch.sizes == [len(body)]


def test_a_tombstone_is_counted_and_has_no_entry() -> None:
    batch = take(None, event("u", 1), None)
    assert batch.tombstones == 2
    assert batch.offsets == [11]
    assert batch.end == 13


def test_of_no_records_comes_nothing() -> None:
    batch = take()
    assert (batch.entries, batch.end) == ([], -1)


@pytest.mark.parametrize(
    "body", [b"", b"bad", b"[]", event("", 1), event("u", 1, id="list"), event("ip:1", 1)]
)
def test_an_invalid_record_becomes_a_letter_that_names_no_user(body: bytes) -> None:
    batch = take(body)
    [entry] = entries(batch)
    assert (entry.letter, entry.reason, entry.id) == (True, "invalid", "events-0-10")
    assert (entry.user, entry.seq, entry.lane) == ("", 0, 10)
    assert (batch.users, batch.seqs) == ([""], [0])
    assert entry.error
    assert entry.timestamp == 77


def test_a_record_above_the_size_limit_of_key_and_value_is_invalid() -> None:
    body = event("u", 1)
    assert not entries(take(body, max_event_bytes=len(body) + 3))[0].letter
    [entry] = entries(take(body, max_event_bytes=len(body) + 2))
    assert entry.letter
    assert "max_event_bytes" in entry.error


def test_a_user_of_this_partition_is_not_misrouted() -> None:
    assert take(event(user_at_home(0, 8), 1), partitions=8).misrouted == []


def test_a_misrouted_record_is_told_and_keeps_its_place() -> None:
    user = user_at_home(5, 8)
    batch = take(event(user, 4), partitions=8)
    assert batch.misrouted == batch.entries
    assert (batch.users, batch.seqs) == ([user], [4])
    assert not entries(batch)[0].look


def test_a_misrouted_record_is_taken_out_of_its_users_sequence_if_it_is_to_be_dead_lettered() -> None:
    user = user_at_home(5, 8)
    batch = take(event(user, 4), event(user_at_home(0, 8), 1), partitions=8, misrouted="dlq")
    [entry, other] = entries(batch)
    assert batch.misrouted == [entry]
    assert batch.seqs == [0, 1]
    assert (entry.reason, entry.look, entry.seq, entry.letter) == ("misrouted", True, 4, False)
    assert entry.error == f"userId {user!r} belongs to partition 5 of 8, the record lies in 0"
    assert other.reason == ""


def test_an_invalid_record_is_not_misrouted() -> None:
    batch = take(b"bad", partitions=8, misrouted="dlq")
    assert batch.misrouted == []


def test_with_an_unknown_number_of_partitions_none_is_misrouted() -> None:
    assert take(event(user_at_home(5, 8), 1), partitions=0).misrouted == []


def test_position_ids_name_topic_partition_and_offset() -> None:
    assert Intake(Settings(kafka_topic="orders"), 3, 8).position_id(42) == "orders-3-42"
