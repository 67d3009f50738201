"""The record on its way through a worker, and what is done to a whole batch of them at C speed.

The functions below take care of what nearly all entries are, and stop at the first that is anything else:
they answer its index (or the length of the list), and the caller deals with that one and goes on behind it.
"""

from collections.abc import Sequence
from typing import Any, final

from eventproc.effects import Gap, Reason, Record, Status

@final
class Entry:
    """One record on its way through a worker.

    `id` is the event's own id, or the position id `<topic>-<partition>-<offset>` where the record must
    not use its own (invalid, id_conflict). `letter` is true for such entries: only a DLQ entry is
    written for them, no `event:` hash.
    """

    offset: int
    record: Record
    id: str
    user: str
    seq: int  # 0: unsequenced
    type: str
    document: dict[str, Any] | None
    timestamp: int  # ms since the epoch; as the producer wrote it, so of any size
    size: int  # bytes of key and value
    status: Status
    attempts: int
    error: str
    reason: Reason  # non-empty: goes to the DLQ
    letter: bool
    lane: str | int  # what it is ordered behind: its user, or its own offset when unsequenced
    granted_ms: int  # monotonic; when its lock was last taken
    lock_expiry_ms: int  # by Redis's clock; its lock does not expire before, 0: not known
    look: bool  # only look the id up (below the expected seq): it is not to run
    arrived_ms: int  # monotonic; when it was consumed
    passed: bool  # final already: not run, it only moves its user on when its turn comes
    held: bool  # it stands in its lane
    go: bool  # it may run as soon as it is the head of its lane

    def __init__(
        self,
        offset: int,
        record: Record,
        id: str,
        user: str = "",
        seq: int = 0,
        type: str = "",
        document: dict[str, Any] | None = None,
        **fields: Any,
    ) -> None: ...
    def __copy__(self) -> Entry: ...

@final
class UserEffects:
    """What a finalize call writes for one user, atomically and in this order: gaps, then entries by seq.

    `has_next` tells that `next:<user>` may exist, so that it is deleted once the list tells enough. `dense`
    tells that as far as is known the order list holds every seq from 1 on.
    An entry that is `passed` (its id is final already) only moves the user on, as a failed one would
    (next = seq + 1): no event hash, no marker, no lock, no DLQ entry. With status processed its seq is
    seen to be in the order list, too.
    """

    user: str
    has_next: bool
    gaps: Sequence[Gap]
    entries: list[Entry]
    dense: bool

    def __init__(
        self,
        user: str,
        has_next: bool,
        gaps: Sequence[Gap] = (),
        entries: list[Entry] | None = None,
        dense: bool = False,
    ) -> None: ...

@final
class Event:
    """One event, as a handler sees it.

    `seq` is None for an unsequenced event, `timestamp` is ms since the epoch, `attempt` counts from 1.
    `document` is the whole decoded JSON object, unknown fields included.
    """

    id: str
    user_id: str
    type: str
    payload: dict[str, Any]
    seq: int | None
    timestamp: int
    attempt: int
    partition: int
    offset: int
    document: dict[str, Any]

    def __init__(
        self,
        id: str,
        user_id: str,
        type: str,
        payload: dict[str, Any],
        seq: int | None,
        timestamp: int,
        attempt: int,
        partition: int,
        offset: int,
        document: dict[str, Any],
        record: Record | None = None,
    ) -> None: ...
    @property
    def headers(self) -> list[tuple[str, bytes | None]]:
        """The record's headers, in order."""
    @property
    def extra(self) -> dict[str, Any]:
        """The document's fields that eventproc does not know."""

def headers_of(record: Record) -> list[tuple[str, bytes | None]]:
    """The record's headers. ValueError when the name of one is not UTF-8: confluent-kafka fails then in a way
    that Python may not notice, and hands out a broken list the next time."""

def event_of(entry: Entry, partition: int) -> Event:
    """What the handler is given of a valid entry: its next attempt."""

def is_ordinary(entry: Entry) -> bool:
    """Processed at the first attempt, in its turn: all that is written of it is the usual."""

def take_ids(entries: list[Entry], at: int, ids: dict[str, Entry], now_ms: int, held_ms: list[int]) -> int:
    """Put the ids of entries from `at` on under way; stops at a letter, one to be looked up, or an id taken.

    `held_ms` gets how long each was kept that did not arrive just now.
    """

def free_ids(entries: list[Entry], ids: dict[str, Entry]) -> None:
    """The ids of these are under way no more."""

def all_sequenced(entries: list[Entry]) -> bool:
    """Whether none of these is unsequenced."""

def grant(entries: list[Entry], verdicts: list[int], at: int, now_ms: int, expiry_ms: int) -> int:
    """Note the lock of each granted entry from `at` on; stops at another verdict."""

def oldest_grant(entries: list[Entry]) -> int:
    """When the oldest lock of these was taken; of entries that need none it is 0."""

def take_outcomes(entries: list[Entry], outcomes: Sequence[object], at: int) -> int:
    """Mark entries from `at` on as processed; stops at a failed, unrun or passed one."""

def group_by_user(
    entries: list[Entry],
    groups: dict[str, UserEffects],
    has_next: set[str],
    sparse: set[str],
    settled: list[int],
    loose: list[Entry],
    letters: list[Entry],
) -> None:
    """Sort entries into what one finalize call writes; `settled` gets the offsets that it makes final.

    `sparse` are the users whose order list is not known to be dense.
    """

def settle_groups(
    groups: list[UserEffects], has_next: set[str], users: list[str], applied: list[Entry]
) -> list[tuple[int, int]]:
    """What came of groups whose every effect was taken and is the usual.

    `users` gets each user once per entry, `applied` the entries. Answers the other groups: index, and
    index of the first entry in the call.
    """

def latencies(entries: list[Entry], now_ms: int, most: int) -> list[int]:
    """Time since each entry's timestamp, forced into 0..most: producers' timestamps may be anything."""
