"""Which offsets are settled: nothing of their records can be lost any more (CONTRACT 4.7, section 6)."""

from __future__ import annotations

from collections.abc import Callable

from eventproc._reorder import ReorderBuffer
from eventproc.effects import Entry, Produce
from eventproc.lanes import Lanes

PRODUCE_RETRY_MS = 200


class Settler:
    """Keeps the floor, and the dead letters whose acknowledgement it waits for.

    `warn(event, **fields)` takes what an operator should read.
    """

    def __init__(self, buffer: ReorderBuffer, lanes: Lanes, warn: Callable[..., None]) -> None:
        self._buffer = buffer
        self._lanes = lanes
        self._warn = warn
        self._settled: list[int] = []  # not told to the buffer yet
        self._held: set[int] = set()  # settled too early: the call that did it was refused in part
        self._to_produce: list[Entry] = []
        self._producing: dict[int, Entry] = {}  # by offset, until Kafka has acknowledged
        self.end = 0  # of the partition, as far as it is known

    def _tell(self) -> None:
        if self._settled:
            self._buffer.settle(self._settled)
            self._settled = []

    def is_settled(self, offset: int) -> bool:
        """Whether an offset below the position is settled, or was no record."""
        self._tell()
        return offset not in self._held and self._buffer.is_settled(offset)

    def floor(self) -> int:
        """Lowest offset that is not settled, else the next to read."""
        self._tell()
        floor = self._buffer.floor()
        return min(floor, min(self._held)) if self._held else floor

    def unfinalized(self) -> int:
        """Number of records at or above the floor that are not settled, with those that are not read yet."""
        return self._buffer.unfinalized() + len(self._held) + max(0, self.end - self._buffer.position)

    def busy(self) -> bool:
        """Whether a dead letter is to be sent or acknowledged."""
        return bool(self._to_produce or self._producing)

    def settle(self, offset: int) -> None:
        """The record is final."""
        if self._held and offset in self._held:
            self._held.discard(offset)
        else:
            self._settled.append(offset)

    def settle_all(self, offsets: list[int]) -> None:
        """These are."""
        if self._held:
            for offset in offsets:
                self.settle(offset)
        else:
            self._settled += offsets

    def hold(self, entry: Entry) -> None:
        """The entry is not final after all; one with a reason was not settled yet."""
        if not entry.reason:
            self._held.add(entry.offset)

    def dead_letter(self, entry: Entry) -> None:
        """Send the entry's record to the DLQ topic, and settle it once Kafka has acknowledged."""
        self._to_produce.append(entry)

    def produce(self) -> list[Produce]:
        """What to send now."""
        requests = [Produce(entry) for entry in self._to_produce]
        for entry in self._to_produce:
            self._producing[entry.offset] = entry
        self._to_produce = []
        return requests

    def delivered(self, entry: Entry, error: str | None, now_ms: int) -> None:
        """Kafka has the dead letter, or `error` tells why it has not: then it is sent again."""
        if self._producing.get(entry.offset) is not entry:
            return
        if error is None:
            del self._producing[entry.offset]
            self.settle(entry.offset)
        else:
            self._warn("dead_letter_not_acknowledged", offset=entry.offset, error=error)
            self._lanes.later(now_ms + PRODUCE_RETRY_MS, lambda: self._to_produce.append(entry))
