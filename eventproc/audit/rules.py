"""What the judges share: settings, the partitions' positions, and what Redis tells of an event."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from eventproc.audit.staging import Row
from eventproc.handlers import BUILT_IN
from eventproc.settings import Settings

#: Clocks of producer and worker may differ by this much before a proof by time counts.
CLOCK_SLACK_MS = 100
#: Keys may go this much before their time is over, seen from here.
EXPIRY_SLACK_MS = 5_000

EVENT_FIELDS = (
    "status",
    "userId",
    "seq",
    "attempts",
    "type",
    "partition",
    "offset",
    "error",
    "processedAt",
)
LETTER_FIELDS = ("reason", "attempts", "partition", "offset", "eventId", "userId", "seq")


@dataclass(slots=True)
class Rules:
    """One audit's terms.

    `floors`, `baselines` and `lows` by partition; what lay below a low is known to nobody: Kafka has let
    go of it, and there is no ledger. `complete`: the records that are judged are all that the users ever
    had. `timed`: they carry their producer's own times. `crashed`: workers may have died, so that runs
    may be repeated. `idle`: nothing may be under way; else only what the floors had passed when the audit
    began is judged, for what is read of the rest is of different moments.
    """

    settings: Settings
    topic: str
    now_ms: int
    idle: bool = True
    crashed: bool = True
    complete: bool = True
    timed: bool = True
    with_runs: bool = False
    floors: dict[int, int] = field(default_factory=dict)
    baselines: dict[int, int] = field(default_factory=dict)
    lows: dict[int, int] = field(default_factory=dict)

    @property
    def fail_flag_tells(self) -> bool:
        """Whether the handler is the built-in one, which fails exactly when payload.fail is true."""
        return self.settings.handler == BUILT_IN

    @property
    def conflict_attempts(self) -> int:
        """How often a handler may have run on an event before it was found to be an id_conflict."""
        return self.settings.max_attempts if self.settings.locking == "partition" else 0

    def must_be_final(self, row: Row) -> bool:
        """Acknowledged, passed by the floor, and not from before Redis's memory."""
        return self.baselines.get(row.part, -1) <= row.off < self.floors.get(row.part, 0) and row.off >= 0

    def judged(self, row: Row) -> bool:
        """Whether all that is to be written of the record was there when the audit began."""
        return self.idle or 0 <= row.off < self.floors.get(row.part, 0)

    def unknown(self, part: int, off: int) -> bool:
        """Whether there may have been a record of which nobody knows any more."""
        return 0 <= off < self.lows.get(part, 0)

    def below_baseline(self, row: Row) -> bool:
        """From before Redis's memory: what became of it is not known."""
        return 0 <= row.off < self.baselines.get(row.part, -1)

    def expired(self, row: Row, ttl_s: int) -> bool:
        """Whether a key of that life, written for this record, may be gone by now."""
        return self.now_ms - row.acked_ms > ttl_s * 1000 - EXPIRY_SLACK_MS

    def position_id(self, row: Row) -> str:
        return f"{self.topic}-{row.part}-{row.off}"


class Final(NamedTuple):
    """`event:<id>`; numbers are -1 where the hash has something else, `seq` is 0 where it has none."""

    status: str
    user: str
    seq: int
    attempts: int
    type: str
    part: int
    off: int
    error: str
    processed_ms: int


class Letter(NamedTuple):
    """`dlq:<id>`; numbers as in `Final`."""

    reason: str
    attempts: int
    part: int
    off: int
    id: str
    user: str
    seq: int


Verdict = Literal["", "processed", "failed", "skipped", "apart", "elsewhere", "missing", "expired", "open"]


@dataclass(slots=True)
class Candidate:
    """One id under one user and seq: its records by offset, and what Redis holds.

    `verdict` is empty until judged. "apart": failed without a place in the order (seq_jump, misrouted).
    "elsewhere": final under another user or seq. "expired": there is nothing left to tell. "open": workers
    are busy with it.
    """

    rows: list[Row]
    final: Final | None
    marked: bool
    letter: Letter | None
    letters_at: dict[tuple[int, int], Letter] = field(default_factory=dict)
    verdict: Verdict = ""

    @property
    def first(self) -> Row:
        return self.rows[0]

    @property
    def name(self) -> str:
        row = self.first
        at = f"{row.part}/{row.off}" if row.off >= 0 else "not acknowledged"
        seq = f" seq {row.seq}" if row.seq else ""
        return f"event {row.id} (user {row.user}{seq}, {at})"

    def all_acknowledged(self) -> bool:
        return all(row.off >= 0 for row in self.rows)


def read_final(values: Sequence[str | None]) -> Final | None:
    """The hash's fields as EVENT_FIELDS names them; None when there is no such hash."""
    if not any(value is not None for value in values):
        return None
    status, user, seq, attempts, type, part, off, error, processed = values
    return Final(
        status or "",
        user or "",
        _number(seq) if seq is not None else 0,
        _number(attempts),
        type or "",
        _number(part),
        _number(off),
        error or "",
        _number(processed),
    )


def read_letter(values: Sequence[str | None]) -> Letter | None:
    """The hash's fields as LETTER_FIELDS names them; None when there is no such hash."""
    if not any(value is not None for value in values):
        return None
    reason, attempts, part, off, id, user, seq = values
    return Letter(
        reason or "",
        _number(attempts),
        _number(part),
        _number(off),
        id or "",
        user or "",
        _number(seq or "0"),
    )


def _number(text: str | None) -> int:
    return int(text) if text is not None and text.isascii() and text.isdigit() else -1
