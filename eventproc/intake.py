"""From Kafka records to entries: decoding, validity, the partition a user belongs to (CONTRACT 2, 4.8)."""

from __future__ import annotations

from dataclasses import dataclass, field

import orjson

from eventproc._intake import PlainIntake
from eventproc._reorder import partition_of
from eventproc.effects import Entry, Record
from eventproc.event import MAX_DEPTH, Invalid, Validator
from eventproc.settings import Settings


@dataclass
class Batch:
    """Entries in offset order, as the columns that the reorder buffer takes; `end` is the next offset."""

    users: list[str] = field(default_factory=list)
    seqs: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    entries: list[object] = field(default_factory=list)  # of Entry
    end: int = -1
    tombstones: int = 0
    misrouted: list[Entry] = field(default_factory=list)


class Intake:
    """Turns records of one partition into entries. `partitions` is the topic's number of partitions."""

    def __init__(self, settings: Settings, partition: int, partitions: int) -> None:
        self._partition = partition
        self._partitions = partitions
        self._position_prefix = f"{settings.kafka_topic}-{partition}-"
        self._validator = Validator(settings.kafka_topic, settings.max_event_bytes)
        self._dead_letter_misrouted = settings.misrouted == "dlq"
        self._plain = PlainIntake(
            orjson.loads,
            orjson.JSONDecodeError,
            settings.kafka_topic,
            partition,
            partitions,
            settings.max_event_bytes,
            MAX_DEPTH,
        )

    def position_id(self, offset: int) -> str:
        """The id under which a record is dead-lettered that must not use its own."""
        return f"{self._position_prefix}{offset}"

    def take(self, records: list[Record], now_ms: int) -> Batch:
        """Decode records. An invalid one becomes a letter; both it and a misrouted one (if that is its
        fate) have seq 0 for the buffer, since they stand outside their user's sequence."""
        batch = Batch()
        columns = batch.users, batch.seqs, batch.offsets, batch.sizes, batch.entries
        at = 0
        while (at := self._plain.take(records, at, now_ms, *columns)) < len(records):
            self._take_other(records[at], batch, now_ms)
            at += 1
        if records:
            last = records[-1].offset()
            assert last is not None
            batch.end = last + 1
        return batch

    def _take_other(self, record: Record, batch: Batch, now_ms: int) -> None:
        """A record that is not plain: the validator has the word."""
        offset, value, key = record.offset(), record.value(), record.key()
        assert offset is not None
        if value is None:
            batch.tombstones += 1
            return
        size = len(value) + (len(key) if key is not None else 0)
        try:
            document = self._validator.decode(value, size)
            seq = self._validator.check(document)
        except Invalid as error:
            entry = self._letter(record, offset, size, str(error), now_ms)
            seq = 0
        else:
            user = document["userId"]
            timestamp = document.get("timestamp")
            entry = Entry(offset, record, document["id"], user, seq, document["type"], document)
            entry.timestamp = timestamp if type(timestamp) is int else record.timestamp()[1]
            entry.size = size
            entry.lane = user if seq else offset
            entry.arrived_ms = now_ms
            if self._partitions and self._misrouted(entry, batch):
                seq = 0
        batch.users.append(entry.user)
        batch.seqs.append(seq)
        batch.offsets.append(offset)
        batch.sizes.append(size)
        batch.entries.append(entry)

    def _misrouted(self, entry: Entry, batch: Batch) -> bool:
        """Count an entry that lies in the wrong partition; whether it is to be dead-lettered for that."""
        belongs = partition_of(entry.user, self._partitions)
        if belongs == self._partition:
            return False
        batch.misrouted.append(entry)
        if not self._dead_letter_misrouted:
            return False
        entry.look = True
        entry.reason = "misrouted"
        entry.error = (
            f"userId {entry.user!r} belongs to partition {belongs} of {self._partitions}, the record lies "
            f"in {self._partition}"
        )
        return True

    def _letter(self, record: Record, offset: int, size: int, error: str, now_ms: int) -> Entry:
        entry = Entry(offset, record, self.position_id(offset))
        entry.letter = True
        entry.reason = "invalid"
        entry.error = error
        entry.size = size
        entry.lane = offset
        entry.arrived_ms = now_ms
        entry.timestamp = record.timestamp()[1]
        return entry
