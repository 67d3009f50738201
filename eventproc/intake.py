"""From Kafka records to entries: decoding, validity, the partition a user belongs to (CONTRACT 2, 4.8)."""

from __future__ import annotations

from dataclasses import dataclass, field

from eventproc._reorder import partition_of
from eventproc.effects import Entry, Record
from eventproc.event import Invalid, Validator
from eventproc.settings import Settings


@dataclass(slots=True)
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

    def position_id(self, offset: int) -> str:
        """The id under which a record is dead-lettered that must not use its own."""
        return f"{self._position_prefix}{offset}"

    def take(self, records: list[Record], now_ms: int) -> Batch:
        """Decode records. An invalid one becomes a letter; both it and a misrouted one (if that is its
        fate) have seq 0 for the buffer, since they stand outside their user's sequence."""
        batch = Batch()
        decode, check = self._validator.decode, self._validator.check
        partition, partitions = self._partition, self._partitions
        users, seqs, offsets, sizes = batch.users, batch.seqs, batch.offsets, batch.sizes
        entries = batch.entries
        for record in records:
            offset = record.offset()
            value = record.value()
            assert offset is not None
            batch.end = offset + 1
            if value is None:
                batch.tombstones += 1
                continue
            key = record.key()
            size = len(value) + (len(key) if key is not None else 0)
            try:
                document = decode(value, size)
                seq = check(document)
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
                if partitions and partition_of(user, partitions) != partition:
                    batch.misrouted.append(entry)
                    if self._dead_letter_misrouted:
                        entry.look = True
                        entry.reason = "misrouted"
                        entry.error = (
                            f"userId {user!r} belongs to partition {partition_of(user, partitions)} "
                            f"of {partitions}, the record lies in {partition}"
                        )
                        seq = 0
            users.append(entry.user)
            seqs.append(seq)
            offsets.append(offset)
            sizes.append(size)
            entries.append(entry)
        return batch

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
