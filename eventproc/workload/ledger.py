"""The ledger: JSON lines that tell what was produced, where Kafka put it, and what is expected of it.

    first line     {"ledger": 1, "topic", "partitions", "start": {partition: offset}, "workload": {...}, ...}
    per record     {"kind", "id", "user", "seq", "type", "fail", "partition", "offset", "sent_ms",
                    "acked_ms", "crc"}
    last line      {"closing": true, "records", "acknowledged", "unacknowledged", "end": {partition: offset}}

Lines come in the order of the acknowledgements. A record that was not acknowledged has offset -1 (it may
be in the topic or not). `sent_ms` is the scheduled send time where there is a rate, `crc` the CRC-32 of the
value. A ledger without its last line belongs to a producer that was killed: it is read all the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self
from zlib import crc32

import orjson

from eventproc.errors import UsageError
from eventproc.workload.generate import Record

VERSION = 1


class Line(NamedTuple):
    """One record of a ledger, or one read from the topic. `offset` is -1 when it was not acknowledged."""

    kind: str
    id: str
    user: str
    seq: int
    type: str
    fail: bool
    partition: int
    offset: int
    sent_ms: int
    acked_ms: int
    crc: int


@dataclass(slots=True)
class Ledger:
    """First and last line; `closing` is empty until `lines()` has been read to the end."""

    path: Path
    header: dict[str, Any]
    closing: dict[str, Any] = field(default_factory=dict)

    @property
    def topic(self) -> str:
        return str(self.header["topic"])

    @property
    def start(self) -> dict[int, int]:
        """Partition -> its end offset before the first record."""
        return {int(partition): int(offset) for partition, offset in self.header["start"].items()}

    @property
    def end(self) -> dict[int, int]:
        """Partition -> its end offset after the last record; empty without a last line."""
        return {int(partition): int(offset) for partition, offset in self.closing.get("end", {}).items()}

    def lines(self) -> Iterator[Line]:
        """Every record, streamed. A torn last line is left out; anything else unreadable is a UsageError."""
        with self.path.open("rb") as file:
            file.readline()
            for number, text in enumerate(file, 2):
                try:
                    entry = orjson.loads(text)
                    if "closing" in entry:
                        self.closing = entry
                        return
                    line = Line(
                        entry["kind"],
                        entry["id"],
                        entry["user"],
                        entry["seq"],
                        entry["type"],
                        entry["fail"],
                        entry["partition"],
                        entry["offset"],
                        entry["sent_ms"],
                        entry["acked_ms"],
                        entry["crc"],
                    )
                except (ValueError, KeyError, TypeError) as error:
                    if not text.endswith(b"\n"):
                        return
                    raise UsageError(
                        f"ledger {self.path}, line {number}: not a ledger line ({error})"
                    ) from None
                yield line


def read_ledger(path: Path) -> Ledger:
    """The ledger in that file; UsageError when it is none."""
    try:
        with path.open("rb") as file:
            header = orjson.loads(file.readline())
    except OSError as error:
        raise UsageError(f"ledger {path}: {error.strerror}") from None
    except ValueError:
        header = None
    if type(header) is not dict or header.get("ledger") != VERSION:
        raise UsageError(
            f"ledger {path}: not a ledger of version {VERSION}; `eventproc produce --ledger` writes one"
        )
    return Ledger(path, header)


class LedgerWriter:
    """Writes a ledger. Call `record` once for each record, when its fate is known, then `close`."""

    def __init__(self, path: Path, *, topic: str, start: dict[int, int], workload: dict[str, Any]) -> None:
        try:
            self._file = path.open("wb", buffering=1 << 20)
        except OSError as error:
            raise UsageError(f"ledger {path}: {error.strerror}") from None
        self.acknowledged = 0
        self.unacknowledged = 0
        header = {
            "ledger": VERSION,
            "topic": topic,
            "partitions": len(start),
            "start": {str(partition): offset for partition, offset in start.items()},
            "workload": workload,
            "expected": "payload.fail events fail, all other valid ones are processed; late ones are skipped",
        }
        self._write(header)
        self._file.flush()  # `verify --live` may read it from now on

    def record(self, record: Record, partition: int, offset: int, sent_ms: int, acked_ms: int) -> None:
        """`offset` -1: not acknowledged."""
        if offset >= 0:
            self.acknowledged += 1
        else:
            self.unacknowledged += 1
        self._write(
            {
                "kind": record.kind,
                "id": record.id,
                "user": record.user,
                "seq": record.seq,
                "type": record.type,
                "fail": record.fail,
                "partition": partition,
                "offset": offset,
                "sent_ms": sent_ms,
                "acked_ms": acked_ms,
                "crc": crc32(record.value or b""),
            }
        )

    def finish(self, end: dict[int, int], *, interrupted: bool = False) -> None:
        """Write the last line; `end`: partition -> its end offset now."""
        self._write(
            {
                "closing": True,
                "records": self.acknowledged + self.unacknowledged,
                "acknowledged": self.acknowledged,
                "unacknowledged": self.unacknowledged,
                "end": {str(partition): offset for partition, offset in end.items()},
                "interrupted": interrupted,
            }
        )

    def close(self) -> None:
        self._file.close()

    def _write(self, entry: dict[str, Any]) -> None:
        self._file.write(orjson.dumps(entry, option=orjson.OPT_APPEND_NEWLINE))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()
