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
from typing import Any, Literal

import hiredis

from eventproc.effects import (
    Acquire,
    Acquired,
    Claim,
    Claimed,
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
from eventproc.store._encode import BatchEncoder
from eventproc.store.keys import Keyspace, flat

Argument = str | bytes | int

NAMES = (
    "claim_partition",
    "load_users",
    "acquire_events",
    "finalize_events",
    "release_events",
    "renew_partition",
    "rate_limit",
    "claim_idempotency_key",
    "settle_idempotency_key",
)

_REFUSED = re.compile(rb"(\d+)(?::(\d),|=(\d+):|!,)")


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


@dataclass(frozen=True)
class Call:
    """A script call as the bytes of its EVALSHA command. Made once: a repeated call is the same call."""

    script: str
    packed: bytes

    def parts(self) -> tuple[list[bytes], list[bytes]]:
        """KEYS and ARGV, read back from the command; for those who run the script by other means."""
        reader = hiredis.Reader()
        reader.feed(self.packed)
        _, _, count, *rest = reader.gets()
        return rest[: int(count)], rest[int(count) :]


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
        limits: list[int | str] = [
            settings.event_ttl_s * 1000,
            settings.dedup_ttl_s * 1000,
            settings.dlq_ttl_s * 1000,
            settings.order_max_len,
            settings.gaps_max_len,
            settings.dlq_max_len,
            topic,
            partition,
        ]
        self._batches = BatchEncoder(
            self.keyspace,
            self.scripts["acquire_events"].sha1,
            self.scripts["finalize_events"].sha1,
            f"{topic}:{partition}:",
            settings.inflight_ttl_ms,
            settings.locking == "event",
            settings.dlq_raw_max_bytes,
            limits,
        )
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

    def _call(self, script: str, keys: list[str], args: list[Argument]) -> Call:
        command = ("EVALSHA", self.scripts[script].sha1, len(keys), *keys, *args)
        return Call(script, hiredis.pack_command(command))  # type: ignore[arg-type]

    def _claim(self, request: Claim) -> Call:
        claim = f"{request.owner}#{next(self._claims)}"
        death = request.death
        died: list[Argument] = [death.id, death.cause, *death.offsets] if death is not None else ["", ""]
        return self._call(
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
                request.above,
                *died,
            ],
        )

    def _load(self, request: LoadUsers) -> Call:
        order, following = self.keyspace.order, self.keyspace.next
        keys: list[str] = []
        for user in request.users:
            keys += (order + user, following + user)
        return self._call("load_users", keys, [])

    def _acquire(self, request: Acquire) -> Call:
        lock = self.lock(request.epoch, request.owner)
        return Call("acquire_events", self._batches.acquire(request, lock))

    def _finalize(self, request: Finalize) -> Call:
        return Call("finalize_events", self._batches.finalize(request))

    def _release(self, request: Release) -> Call:
        return self._call("release_events", *self._locks(request))

    def _renew(self, request: Renew) -> Call:
        keys, args = self._locks(request)
        rev: Argument = request.rev if request.rev >= 0 else ""
        return self._call("renew_partition", keys, [*args, self._lock_ttl_ms, rev])

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
        return [_user_state(*reply[k : k + 3]) for k in range(0, len(reply), 3)]
    if isinstance(request, Claim):
        return _claimed(request, reply)
    if isinstance(request, Renew):
        return Renewed(_status(reply), [int(index) for index in reply[1:]])
    return None


def _claimed(request: Claim, reply: Any) -> Claimed:
    if reply[0] == b"held":
        return Claimed("held", owner=reply[1].decode(), age_ms=int(reply[2]))
    epoch, rev, offset, baseline = (int(value) for value in reply[1:5])
    suspects = {int(reply[k]): _suspect(reply[k + 1]) for k in range(5, len(reply), 2)}
    return Claimed("ok", epoch, rev, offset, baseline, request.owner, suspects=suspects)


def _status(reply: Any) -> Literal["ok", "fenced", "rewound"]:
    status: Literal["ok", "fenced", "rewound"] = reply[0].decode()
    return status


def _suspect(value: bytes) -> Suspect:
    deaths, _, cause = value.decode(errors="replace").partition(" ")
    return Suspect(int(deaths), cause)


def _user_state(last: bytes, following: bytes, dense: bytes) -> UserState:
    if last == b"!":
        return UserState(foreign=following.decode(errors="replace"))
    return UserState(int(last or 0), int(following or 0), bool(dense))


def _acquired(request: Acquire, reply: Any) -> Acquired:
    status = _status(reply)
    if status != "ok":
        return Acquired(status)
    expiry_ms = int(reply[1])
    if len(reply) == 2:
        return Acquired("ok", [0] * len(request.entries), expiry_ms=expiry_ms)
    acquired = Acquired("ok", [digit - 48 for digit in reply[2]], expiry_ms=expiry_ms)
    rest = 3
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
            elif match[3] is None:
                finalized.not_dense.add(int(match[1]))
            else:
                length = int(match[3])
                finalized.foreign[int(match[1])] = text[at : at + length].decode(errors="replace")
                at += length + 1
    return finalized
