"""The Lua scripts, and how requests become their keys and arguments, replies what the pipeline is told.

No connection is needed: the simulation runs the same scripts on a store of its own.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, NamedTuple

from eventproc.effects import (
    Acquire,
    Acquired,
    Claim,
    Claimed,
    Entry,
    Final,
    Finalize,
    Finalized,
    LoadUsers,
    Refusal,
    Release,
    Renew,
    Renewed,
    Status,
    StoreReply,
    StoreRequest,
    Suspect,
    UserState,
    Verdict,
)
from eventproc.errors import ConfigError, EventprocError
from eventproc.settings import Settings
from eventproc.store.keys import Keyspace, flat

Argument = str | bytes | int

NAMES = (
    "claim_partition",
    "load_users",
    "acquire_events",
    "finalize_events",
    "release_events",
    "renew_partition",
)

_REFUSED = re.compile(rb"(\d+)(?::(\d),|=(\d+):)")


@dataclass(frozen=True, slots=True)
class Script:
    """One Lua file, and the SHA-1 by which Redis knows it."""

    name: str
    source: bytes
    sha1: bytes


def load_scripts() -> dict[str, Script]:
    """All scripts by name, read from the package."""
    folder = resources.files("eventproc.store") / "lua"
    scripts = {}
    for name in NAMES:
        source = (folder / f"{name}.lua").read_bytes()
        scripts[name] = Script(name, source, hashlib.sha1(source).hexdigest().encode())
    return scripts


class Call(NamedTuple):
    """A script with its KEYS and ARGV."""

    script: str
    keys: list[str]
    args: list[Argument]


def script_error(name: str, message: str) -> EventprocError:
    """The exception for a script's error reply that is not the server's own trouble."""
    kind, _, rest = message.partition(" ")
    if kind in ("FOREIGN", "SCHEMA"):
        what = "the Redis" if kind == "FOREIGN" else "the schema"
        return ConfigError(f"{what} {rest}")
    return EventprocError(f"the Redis script {name} failed: {message}")


class ScriptSet:
    """Encodes the requests of one partition for the scripts, and decodes their replies."""

    def __init__(
        self, settings: Settings, topic: str, partition: int, keyspace: Keyspace | None = None
    ) -> None:
        self.scripts = load_scripts()
        self.keyspace = keyspace or flat(settings.key_prefix, topic, partition)
        self._topic = topic
        self._partition = partition
        self._lock_ttl_ms = settings.inflight_ttl_ms
        self._raw_max_bytes = settings.dlq_raw_max_bytes
        self._limits: list[Argument] = [
            settings.event_ttl_s * 1000,
            settings.dedup_ttl_s * 1000,
            settings.dlq_ttl_s * 1000,
            settings.order_max_len,
            settings.gaps_max_len,
            settings.dlq_max_len,
            topic,
            partition,
        ]
        self._claims = itertools.count(1)
        self._encoders: dict[type, Callable[[Any], Call]] = {
            Claim: self._claim,
            LoadUsers: self._load,
            Acquire: self._acquire,
            Finalize: self._finalize,
            Release: self._release,
            Renew: self._renew,
        }

    def lock(self, epoch: int, owner: str) -> str:
        """The value of this owner's `inflight:` locks."""
        return f"{self._topic}:{self._partition}:{epoch}:{owner}"

    def encode(self, request: StoreRequest) -> Call:
        """The script call for a request. To be made once per request: a repeated call is the same call."""
        return self._encoders[type(request)](request)

    def _claim(self, request: Claim) -> Call:
        claim = f"{request.owner}#{next(self._claims)}"
        death = request.death
        died: list[Argument] = [death.id, death.cause, *death.offsets] if death is not None else ["", ""]
        return Call(
            "claim_partition",
            [self.keyspace.partition],
            [
                request.owner,
                claim,
                request.lease_ms,
                request.may_take,
                int(request.force),
                request.offset,
                request.baseline,
                *died,
            ],
        )

    def _load(self, request: LoadUsers) -> Call:
        order, following = self.keyspace.order, self.keyspace.next
        keys: list[str] = []
        for user in request.users:
            keys += (order + user, following + user)
        return Call("load_users", keys, [])

    def _acquire(self, request: Acquire) -> Call:
        keyspace, entries = self.keyspace, request.entries
        event, dedup, inflight = keyspace.event, keyspace.dedup, keyspace.inflight
        keys = [keyspace.partition]
        add = keys.append
        for entry in entries:
            add(event + entry.id)
            add(dedup + entry.id)
        keys += [inflight + entry.id for entry in entries]
        looks = [index for index, entry in enumerate(entries, 1) if entry.look]
        args: list[Argument] = [
            request.epoch,
            request.owner,
            self.lock(request.epoch, request.owner),
            f"{self._topic}:{self._partition}:",
            self._lock_ttl_ms,
            len(entries),
            len(looks),
        ]
        for index in looks:
            entry = entries[index - 1]
            keys.append(keyspace.gaps + entry.user)
            args += (index, entry.seq)
        return Call("acquire_events", keys, args)

    def _finalize(self, request: Finalize) -> Call:
        keyspace, groups, loose, letters = self.keyspace, request.groups, request.loose, request.letters
        event, dedup, inflight = keyspace.event, keyspace.dedup, keyspace.inflight
        order, following = keyspace.order, keyspace.next
        grouped = [entry for group in groups for entry in group.entries]
        writable = grouped + loose
        entries = writable + letters if letters else writable
        ids = [entry.id for entry in writable]
        locks = [inflight + entry.id for entry in writable if entry.granted_ms or entry.look]

        keys = [keyspace.partition, keyspace.dlq_list]
        keys += [event + i for i in ids]
        keys += [dedup + i for i in ids]
        keys += locks
        args: list[Argument] = [
            request.epoch,
            request.owner,
            request.rev,
            request.floor,
            request.unfinalized,
            self.lock(request.epoch, request.owner),
            *self._limits,
            " ".join([str(entry.offset) for entry in entries]),
            len(grouped),
            len(loose),
            len(letters),
            len(locks),
            len(groups),
            0,
        ]
        details_at = len(args) - 1
        args += [entry.seq or "" for entry in entries]
        args += [entry.type for entry in writable]
        if loose or letters:
            args += [entry.user for entry in entries[len(grouped) :]]
        for group in groups:
            user = group.user
            keys.append(order + user)
            keys.append(following + user)
            args += (user, len(group.entries), 1 if group.has_next else 0, len(group.gaps))
            if group.gaps:
                keys.append(keyspace.gaps + user)
                for gap in group.gaps:
                    args += (gap.first, gap.last, gap.reason)
        count = 0
        first_letter = len(writable)
        for index, entry in enumerate(entries):
            if entry.attempts != 1 or entry.status != "processed" or entry.passed or index >= first_letter:
                count += 1
                self._detail(index, entry, keys, args)
        args[details_at] = count
        return Call("finalize_events", keys, args)

    def _detail(self, index: int, entry: Entry, keys: list[str], args: list[Argument]) -> None:
        if entry.passed:
            listed = int(entry.status == "processed")
            args += (index + 1, "", listed, "", entry.offset, "", entry.id, b"")
            return
        raw: bytes = b""
        if entry.reason:
            keys.append(self.keyspace.dlq + entry.id)
            raw = (entry.record.value() or b"")[: self._raw_max_bytes]
        args += (
            index + 1,
            entry.status,
            entry.attempts,
            entry.error,
            entry.offset,
            entry.reason,
            entry.id,
            raw,
        )

    def _release(self, request: Release) -> Call:
        return Call("release_events", *self._locks(request))

    def _renew(self, request: Renew) -> Call:
        keys, args = self._locks(request)
        return Call(
            "renew_partition", keys, [*args, self._lock_ttl_ms, request.rev if request.rev >= 0 else ""]
        )

    def _locks(self, request: Release | Renew) -> tuple[list[str], list[Argument]]:
        inflight = self.keyspace.inflight
        keys = [self.keyspace.partition, *[inflight + entry.id for entry in request.entries]]
        return keys, [request.epoch, request.owner, self.lock(request.epoch, request.owner)]


def decode(request: StoreRequest, reply: Any) -> StoreReply:
    """What a script's reply (bytes, ints, lists) tells; error replies are the caller's to sort out."""
    if isinstance(request, Finalize):
        return _finalized(request, reply)
    if isinstance(request, Acquire):
        return _acquired(request, reply)
    if isinstance(request, LoadUsers):
        return [_user_state(reply[k], reply[k + 1]) for k in range(0, len(reply), 2)]
    if isinstance(request, Claim):
        if reply[0] == b"held":
            return Claimed("held", owner=reply[1].decode(), age_ms=int(reply[2]))
        epoch, rev, offset, baseline = (int(value) for value in reply[1:5])
        suspects = {int(reply[k]): _suspect(reply[k + 1]) for k in range(5, len(reply), 2)}
        return Claimed("ok", epoch, rev, offset, baseline, request.owner, suspects=suspects)
    if isinstance(request, Renew):
        return Renewed(_status(reply), [int(index) for index in reply[1:]])
    return None


def _status(reply: Any) -> Literal["ok", "fenced", "rewound"]:
    status: Literal["ok", "fenced", "rewound"] = reply[0].decode()
    return status


def _suspect(value: bytes) -> Suspect:
    deaths, _, cause = value.decode(errors="replace").partition(" ")
    return Suspect(int(deaths), cause)


def _user_state(last: bytes, following: bytes) -> UserState:
    if last == b"!":
        return UserState(foreign=following.decode(errors="replace"))
    return UserState(int(last or 0), int(following or 0))


def _acquired(request: Acquire, reply: Any) -> Acquired:
    status = _status(reply)
    if status != "ok":
        return Acquired(status)
    if len(reply) == 1:
        return Acquired("ok", [0] * len(request.entries))
    acquired = Acquired("ok", [digit - 48 for digit in reply[1]])
    rest = 2
    for index, verdict in enumerate(acquired.verdicts):
        if verdict == Verdict.FINAL:
            acquired.finals[index] = _final(*reply[rest : rest + 8])
            rest += 8
        elif verdict == Verdict.FOREIGN:
            acquired.foreign[index] = reply[rest].decode(errors="replace")
            rest += 1
    return acquired


def _final(
    status: bytes,
    user: bytes,
    seq: bytes,
    partition: bytes,
    offset: bytes,
    attempts: bytes,
    error: bytes,
    reason: bytes,
) -> Final:
    known: Status = status.decode()  # type: ignore[assignment]
    return Final(
        known,
        user.decode(errors="replace"),
        int(seq or 0),
        int(partition or -1),
        int(offset or -1),
        int(attempts or 0),
        error.decode(errors="replace"),
        reason.decode(errors="replace"),  # type: ignore[arg-type]
    )


def _finalized(request: Finalize, reply: Any) -> Finalized:
    status = _status(reply)
    if status != "ok":
        return Finalized(status)
    finalized = Finalized("ok", int(reply[1]))
    if len(reply) > 2 and reply[2]:
        text, at = reply[2], 0
        while match := _REFUSED.match(text, at):
            at = match.end()
            if match[2]:
                finalized.refused[int(match[1])] = Refusal(int(match[2]))
            else:
                length = int(match[3])
                finalized.foreign[int(match[1])] = text[at : at + length].decode(errors="replace")
                at += length + 1
    return finalized
