"""A described workload as a deterministic stream of records, in constant memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from heapq import heappop, heappush
from math import gcd
from typing import Any, Literal

import orjson

from eventproc.effects import Headers
from eventproc.errors import UsageError
from eventproc.workload.invalid import INVALID_KINDS, invalid_value

#: What a record is there for. "event": it has its own id and, mostly, its own seq. "duplicate": an exact
#: copy of one. "late": its seq is left out of the main stream, so that its gap closes first. "stale": a
#: second id for a seq that another event has. "conflict": the id of the user's event before, under
#: another seq. "unsequenced": an event without seq. "tombstone": a null value.
Kind = Literal["event", "duplicate", "late", "stale", "conflict", "unsequenced", "invalid", "tombstone"]

_TYPES = ("order.created", "order.paid", "order.shipped", "profile.changed")
_FAR_COPIES = 1000  # recent records from which late duplicates are copied
_PAD_BYTES = 65_536
#: What must not be negative.
_COUNTS = (
    "shuffle_window",
    "missing_seqs",
    "late_events",
    "invalid_records",
    "stale",
    "conflicts",
    "tombstones",
    "payload_bytes",
    "rate",
)


@dataclass(slots=True)
class Record:
    """One Kafka record, and what is known about it.

    `seq` is 0 where there is none, `value` is None in a tombstone. `id` is empty where the record holds none
    that could become an event's (invalid, tombstone).
    """

    kind: Kind
    id: str
    user: str
    seq: int
    type: str
    fail: bool
    key: bytes
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """What to produce. The same workload yields the same records, byte for byte.

    Each user has seqs 1 to `events_per_user`, users in turns. `main()` is shuffled: a record is displaced
    at most `shuffle_window` positions. Counted: `missing_seqs` (never produced), `late_events` (left to
    `late()`), `invalid_records`, `stale`, `conflicts`, `tombstones`. Shares of the events, at random:
    `duplicate_ratio` (half of the copies near their original, half far behind), `failing_ratio`
    (payload.fail is true), `unsequenced_ratio` (in addition to the sequenced ones). `rate` is events per
    second, 0: as fast as possible; it also spaces the timestamps, which begin at `start_ms`. `run` makes
    users and ids unique; empty: the seed does. Raises UsageError for a workload that cannot be.
    """

    users: int = 5000
    events_per_user: int = 10
    shuffle_window: int = 100
    duplicate_ratio: float = 0.0
    failing_ratio: float = 0.0
    missing_seqs: int = 0
    late_events: int = 0
    invalid_records: int = 0
    unsequenced_ratio: float = 0.0
    stale: int = 0
    conflicts: int = 0
    tombstones: int = 0
    payload_bytes: int = 64
    rate: float = 0.0
    seed: int = 1
    run: str = ""
    topic: str = "events"
    start_ms: int = 0

    def __post_init__(self) -> None:
        for name in ("users", "events_per_user"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}, must be at least 1")
        for name in _COUNTS:
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}, must not be negative")
        for name in ("duplicate_ratio", "failing_ratio", "unsequenced_ratio"):
            if not 0 <= getattr(self, name) <= 1:
                raise UsageError(f"{name} is {getattr(self, name)}, must be between 0 and 1")
        if self.payload_bytes > _PAD_BYTES:
            raise UsageError(f"payload_bytes is {self.payload_bytes}, must be at most {_PAD_BYTES}")
        holes = self.missing_seqs + self.late_events
        if holes * 2 > self.users * (self.events_per_user - 1):
            raise UsageError(
                f"{holes} missing and late events are too many for {self.users} users with "
                f"{self.events_per_user} events: at most half of those that have a successor"
            )
        if self.conflicts * 4 > self.users * (self.events_per_user - 1):
            raise UsageError(
                f"conflicts is {self.conflicts}: at most a quarter of the events with a predecessor"
            )
        if self.stale * 2 > self.users * self.events_per_user:
            raise UsageError(f"stale is {self.stale}: at most half of the events")

    @property
    def events(self) -> int:
        """Sequenced events, those left out included."""
        return self.users * self.events_per_user

    def describe(self) -> dict[str, Any]:
        """All parameters, for the ledger's header."""
        return asdict(self)

    def main(self) -> Iterator[Record]:
        """Everything but the late events, shuffled within the window."""
        rng = random.Random(self.seed)
        waiting: list[tuple[float, int, Record]] = []
        for position, record in enumerate(self._unshuffled(rng)):
            heappush(waiting, (position + rng.random() * (self.shuffle_window + 1), position, record))
            while waiting and waiting[0][0] <= position:
                yield heappop(waiting)[2]
        while waiting:
            yield heappop(waiting)[2]

    def late(self) -> Iterator[Record]:
        """The events whose gaps should have closed by now, in random order."""
        rng = random.Random(self.seed)
        roles = self._roles(rng)
        rng = random.Random(f"{self.seed}/late")
        left_out = [index for index, role in roles.items() if role == "late"]
        rng.shuffle(left_out)
        maker = _Maker(self, rng)
        for index in left_out:
            maker.timestamp_ms += 1
            yield maker.event("late", index % self.users, index // self.users + 1)

    def _unshuffled(self, rng: random.Random) -> Iterator[Record]:
        roles = self._roles(rng)
        maker = _Maker(self, rng)
        extras = self._extras(rng)
        recent: list[Record] = []
        step_ms = 1000 / self.rate if self.rate else 0.05
        turn = 0
        for row in range(self.events_per_user):
            stride = _coprime(rng, self.users)
            first = rng.randrange(self.users)
            for column in range(self.users):
                user = (first + column * stride) % self.users
                role = roles.get(row * self.users + user)
                maker.timestamp_ms = self.start_ms + int(turn * step_ms)
                for extra in extras.pop(turn, ()):
                    yield maker.extra(extra, user)
                turn += 1
                if rng.random() < self.unsequenced_ratio:
                    yield maker.event("unsequenced", user, 0, f"n{turn}")
                if role in ("missing", "late"):
                    continue
                if role == "conflict":
                    yield maker.event("conflict", user, row + 1, str(row))
                    continue
                record = maker.event("event", user, row + 1)
                yield record
                if role == "stale":
                    yield maker.event("stale", user, row + 1, f"{row + 1}b")
                if rng.random() < self.duplicate_ratio:
                    yield maker.copy(rng.choice(recent) if recent and rng.random() < 0.5 else record)
                if len(recent) < _FAR_COPIES:
                    recent.append(record)
                elif self.duplicate_ratio:
                    recent[rng.randrange(_FAR_COPIES)] = record

    def _roles(self, rng: random.Random) -> dict[int, str]:
        """(seq - 1) * users + user -> what is special about that event; few, so they are held."""
        followed = self.users * (self.events_per_user - 1)
        holes = rng.sample(range(followed), self.missing_seqs + self.late_events)
        roles = dict.fromkeys(holes[: self.missing_seqs], "missing") | dict.fromkeys(
            holes[self.missing_seqs :], "late"
        )
        for _ in range(self.conflicts):
            index = self._free(rng, roles, range(self.users, self.events), self.users)
            roles[index - self.users] = "original"
            roles[index] = "conflict"
        for _ in range(self.stale):
            roles[self._free(rng, roles, range(self.events), 0)] = "stale"
        return roles

    def _free(self, rng: random.Random, roles: dict[int, str], among: range, back: int) -> int:
        for _ in range(10_000):
            index = rng.choice(among)
            if index not in roles and index - back not in roles:
                return index
        raise UsageError("the workload has too few events for its missing, late, stale and conflicting ones")

    def _extras(self, rng: random.Random) -> dict[int, list[str]]:
        """Turn -> invalid records and tombstones that come then."""
        extras: dict[int, list[str]] = {}
        for number in range(self.invalid_records):
            kind = INVALID_KINDS[number % len(INVALID_KINDS)]
            if kind == "too_large" and number >= len(INVALID_KINDS):
                kind = "bad_json"  # one record of that size is enough
            extras.setdefault(rng.randrange(self.events), []).append(kind)
        for _ in range(self.tombstones):
            extras.setdefault(rng.randrange(self.events), []).append("tombstone")
        return extras


class _Maker:
    """Builds records; ids are derived from user and seq, so that nothing has to be remembered."""

    def __init__(self, workload: Workload, rng: random.Random) -> None:
        self._rng = rng
        self._run = workload.run or f"s{workload.seed}"
        self._topic = workload.topic
        self._failing_ratio = workload.failing_ratio
        self._pad = random.Random(0).randbytes(_PAD_BYTES).hex() if workload.payload_bytes else ""
        self._pad_bytes = workload.payload_bytes
        self._extras = 0
        self.timestamp_ms = workload.start_ms

    def event(self, kind: Kind, user: int, seq: int, mark: str = "") -> Record:
        """An event of that user; `mark` names it where the seq does not."""
        rng = self._rng
        name = f"{self._run}-u{user}"
        id = f"{self._run}-{user}-{mark or seq}"
        type = _TYPES[rng.randrange(len(_TYPES))]
        payload: dict[str, Any] = {"seq": seq} if seq else {}
        fail = rng.random() < self._failing_ratio
        if fail:
            payload["fail"] = True
        if self._pad_bytes:
            start = rng.randrange(_PAD_BYTES)
            payload["data"] = self._pad[start : start + self._pad_bytes]
        value = orjson.dumps(
            {"id": id, "userId": name, "type": type, "payload": payload, "timestamp": self.timestamp_ms}
        )
        headers: Headers = [("event-id", id.encode()), ("event-type", type.encode())]
        return Record(kind, id, name, seq, type, fail, name.encode(), value, headers)

    def copy(self, record: Record) -> Record:
        """The same record again."""
        return Record(
            "duplicate",
            record.id,
            record.user,
            record.seq,
            record.type,
            record.fail,
            record.key,
            record.value,
            record.headers,
        )

    def extra(self, what: str, user: int) -> Record:
        """An invalid record or a tombstone under that user's key."""
        self._extras += 1
        name = f"{self._run}-u{user}"
        if what == "tombstone":
            return Record("tombstone", "", name, 0, "", False, name.encode(), None, [])
        id = f"{self._run}-bad{self._extras}"
        value, shows_id = invalid_value(what, id, name, self._topic, self.timestamp_ms)
        headers: Headers = [("event-id", id.encode()), ("event-type", what.encode())]
        return Record("invalid", id if shows_id else "", name, 0, what, False, name.encode(), value, headers)


def _coprime(rng: random.Random, users: int) -> int:
    while True:
        stride = rng.randrange(users) + 1
        if gcd(stride, users) == 1:
            return stride
