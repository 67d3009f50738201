"""What the pipeline asks of Kafka and Redis, and what it is told: plain data, no I/O.

The pipeline answers with requests; the store and the broker carry them out; replies go back in. An
`Entry` is one Kafka record on its way through. All offsets are Kafka offsets of the partition, all seqs
are ints with 0 for "unsequenced".
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from itertools import accumulate
from typing import Any, Literal, Protocol

from eventproc._entry import Entry as Entry
from eventproc._entry import UserEffects as UserEffects

Headers = list[tuple[str, bytes | None]]


class Record(Protocol):
    """The part of `confluent_kafka.Message` that eventproc reads."""

    def offset(self) -> int | None: ...
    def key(self) -> bytes | None: ...
    def value(self) -> bytes | None: ...
    def timestamp(self) -> tuple[int, int]: ...
    def headers(self) -> Any: ...


Status = Literal["", "processed", "failed", "skipped"]

#: Why a record is dead-lettered (CONTRACT section 4). "handler": attempts used up; "rejected": Reject.
Reason = Literal[
    "", "handler", "rejected", "late", "stale", "id_conflict", "seq_jump", "invalid", "misrouted", "crash"
]

GapReason = Literal["timeout", "overflow", "reset"]


@dataclass(slots=True)
class Gap:
    """Seqs `first` to `last` of a user, given up."""

    user: str
    first: int
    last: int
    reason: GapReason


# --- requests to the store ------------------------------------------------------------------------


@dataclass(slots=True)
class Death:
    """A worker died while handlers ran, on the records at `offsets`; `id` tells one death from another."""

    id: str
    offsets: list[int]
    cause: str


@dataclass(slots=True)
class Suspect:
    """A record that ran when a worker died. `deaths` counts those at which it ran alone."""

    deaths: int
    cause: str  # of the latest


@dataclass(slots=True)
class Claim:
    """Take the partition, or learn who has it.

    `may_take` is the owner string that may be superseded although its lease runs ("" = none): a dead
    predecessor. `force` takes it anyway. `offset` and `baseline` (-1 = none) are stored only when Redis
    holds no position. `death` is to be recorded with the claim, once however often it is told. The epoch
    will be above `above`, the last one that this owner had, even if Redis has lost it.
    """

    owner: str
    lease_ms: int
    may_take: str = ""
    force: bool = False
    offset: int = -1
    baseline: int = -1
    death: Death | None = None
    above: int = 0


@dataclass(slots=True)
class Claimed:
    """`held`: another owner's lease runs; `owner` and `age_ms` name it. Else epoch, rev, position, and the
    suspects by offset."""

    status: Literal["ok", "held"]
    epoch: int = 0
    rev: int = 0
    offset: int = -1
    baseline: int = -1
    owner: str = ""
    age_ms: int = 0
    suspects: dict[int, Suspect] = field(default_factory=dict)


@dataclass
class LoadUsers:
    """Read the sequence state of users seen for the first time."""

    users: list[str]


@dataclass(slots=True)
class UserState:
    """`last` seq of the order list (0 = none), `next` key (0 = none), `foreign` names a WRONGTYPE key.

    `dense`: the order list holds every seq from 1 to `last`.
    """

    last: int = 0
    next: int = 0
    dense: bool = False
    foreign: str = ""


class Verdict(IntEnum):
    """What Redis knows of an id (reply of acquire_events, one per entry)."""

    GRANTED = 0  # not final; the lock is ours
    FINAL = 1  # final; `Final` tells under which user, seq, status and position
    LOCKED = 2  # another live owner runs it
    LATE = 3  # looked up: not final, and the ledger shows its seq as skipped
    STALE = 4  # looked up: not final, and its seq is not in the ledger
    FOREIGN = 5  # a key of the wrong type is in the way
    PROCESSED = 6  # looked up: processed already, under this user and seq


@dataclass(slots=True)
class Final:
    """What an id is final as; all empty when only `dedup:<id>` is left to tell.

    `partition` to `reason` are kept for failed and skipped ones only; `reason` is empty for what went
    into no DLQ.
    """

    status: Status = ""
    user: str = ""
    seq: int = 0
    partition: int = -1
    offset: int = -1
    attempts: int = 0
    error: str = ""
    reason: Reason = ""


@dataclass
class Acquire:
    """Look up and lock these entries' ids. Fenced, without revision."""

    epoch: int
    owner: str
    entries: list[Entry]


@dataclass
class Acquired:
    """`verdicts[i]` is for `entries[i]`; `finals[i]` is there for FINAL; `foreign[i]` names a key.

    The locks expire at `expiry_ms` by Redis's clock.
    """

    status: Literal["ok", "fenced", "rewound"]
    verdicts: list[int] = field(default_factory=list)
    finals: dict[int, Final] = field(default_factory=dict)
    foreign: dict[int, str] = field(default_factory=dict)
    expiry_ms: int = 0


@dataclass
class Finalize:
    """One batch of effects, with the floor they allow.

    `groups`: sequenced entries (processed or failed) and gaps, which move the user's order. `loose`:
    unsequenced entries and those below the expected seq (skipped), seq_jump and misrouted: event hash
    but no order. `letters`: DLQ entry only. `floor` holds if everything in the call is applied.
    """

    epoch: int
    owner: str
    rev: int
    floor: int
    unfinalized: int
    groups: list[UserEffects] = field(default_factory=list)
    loose: list[Entry] = field(default_factory=list)
    letters: list[Entry] = field(default_factory=list)

    def entries(self) -> list[Entry]:
        """All entries in the order in which the script counts them."""
        return [e for g in self.groups for e in g.entries] + self.loose + self.letters

    def starts(self) -> list[tuple[int, int]]:
        """Of each group its index, and where its first entry stands in `entries`."""
        counts = [len(group.entries) for group in self.groups]
        return list(enumerate(accumulate(counts[:-1], initial=0))) if counts else []


class Refusal(IntEnum):
    """Why finalize_events did not apply an entry."""

    FINAL = 1  # the id is final already: under its own user and seq (a duplicate)
    CONFLICT = 2  # the id is final under another user or seq
    FOREIGN = 3  # a key of the wrong type is in the way


@dataclass
class Finalized:
    """`floor` is what was stored. `refused`: index in `entries()` -> why. `foreign`: group index -> key.

    `not_dense`: indices of groups of which an order list turned out to hold other seqs than it was said to.
    """

    status: Literal["ok", "fenced", "rewound"]
    floor: int = -1
    refused: dict[int, Refusal] = field(default_factory=dict)
    foreign: dict[int, str] = field(default_factory=dict)
    not_dense: set[int] = field(default_factory=set)


@dataclass(slots=True)
class Release:
    """Drop the locks of entries that will not run (drain)."""

    epoch: int
    owner: str
    entries: list[Entry]


@dataclass(slots=True)
class Renew:
    """Keep the partition and these entries' locks ours while a handler runs long.

    `rev` is that of the last finalize call before this one; -1: there will be none until this is answered.
    """

    epoch: int
    owner: str
    entries: list[Entry]
    rev: int = -1


@dataclass(slots=True)
class Renewed:
    """`lost`: indexes of entries whose lock is another owner's by now."""

    status: Literal["ok", "fenced", "rewound"]
    lost: list[int] = field(default_factory=list)


StoreRequest = Claim | LoadUsers | Acquire | Finalize | Release | Renew
StoreReply = Claimed | list[UserState] | Acquired | Finalized | Renewed | None


# --- requests to the broker and the runner ---------------------------------------------------------


@dataclass(slots=True)
class FetchOffsets:
    """Ask the broker for low and high watermark and the group's committed offset."""


@dataclass(slots=True)
class Offsets:
    """`committed` is -1 when the group has none."""

    low: int
    high: int
    committed: int


@dataclass(slots=True)
class Seek:
    """Read from `offset` on; everything fetched before is thrown away."""

    offset: int


@dataclass(slots=True)
class FetchEnd:
    """Ask for the partition's end offset, as a consumer of this isolation level may read it."""


@dataclass
class Commit:
    """Commit `offset` to the group, asynchronously."""

    offset: int


@dataclass(slots=True)
class Produce:
    """Send `entry`'s record to the DLQ topic; its offset is settled when Kafka has acknowledged."""

    entry: Entry


@dataclass
class Run:
    """Run the handler on these, in order; the rest of a lane is left unrun after a failure, and all that is
    left when it takes long. An async handler is begun on all of them, beside what runs already; each tells
    its end as it comes (`Ended`)."""

    entries: list[Entry]


@dataclass(slots=True)
class Ended:
    """An async handler has ended: by itself (`error` is None), or by raising."""

    entry: Entry
    error: BaseException | None
    took_ms: float


BrokerRequest = FetchOffsets | Seek | FetchEnd | Commit | Produce
Request = StoreRequest | BrokerRequest | Run
