"""The reference: the Redis commands for locks and effects of ordinary events, written bare.

FROZEN: figures of different commits are compared through it, so it must not change.

An ordinary event is sequenced, in order, new, and processed at the first attempt. What acquire_events and
finalize_events write for it is written here by plain commands in a pipeline: no script, no look-up, no fence,
no revision, nothing atomic. That costs Redis least; a bare Lua script of the same commands takes more.

    each event   SET inflight:<id> NX PXAT    only with locks
                 HSET event:<id>, PEXPIREAT event:<id>, SET dedup:<id> PXAT
    each user    RPUSH order:<user>           all seqs of the batch
    each batch   DEL inflight:<id> ...        only with locks
                 HSET partition:<topic>:<p>   the position
"""

from __future__ import annotations

from collections.abc import Sequence

import hiredis

from benchmarks.redis_load import Batch, Call

TOPIC = "events"
_OWNER = "1763800000000:0123456789abcdef0123456789abcdef"
_LOCK_TTL_MS = 30_000
_EVENT_TTL_MS = 86_400_000

Command = tuple[str, ...]


class Reference:
    """Writes batches at `now_ms`; `locks` says whether they were locked before."""

    def __init__(self, now_ms: int, *, locks: bool) -> None:
        self._now = str(now_ms)
        self._lock_expiry = str(now_ms + _LOCK_TTL_MS)
        self._event_expiry = str(now_ms + _EVENT_TTL_MS)
        self._locks = locks
        self._revs: dict[int, int] = {}

    def lock(self, batch: Batch) -> Call:
        """A lock on each event."""
        value = f"{TOPIC}:{batch.partition}:{_OWNER}"
        return _pack(
            batch,
            [("SET", f"inflight:{e.id}", value, "NX", "PXAT", self._lock_expiry) for e in batch.events],
        )

    def write(self, batch: Batch) -> Call:
        """The effects, and the locks dropped."""
        commands: list[Command] = []
        for user, events in batch.by_user().items():
            for id, _, seq, type in events:
                key = f"event:{id}"
                fields = ("status", "processed", "processedAt", self._now, "attempts", "1")
                commands += [
                    ("HSET", key, *fields, "userId", user, "type", type, "seq", str(seq)),
                    ("PEXPIREAT", key, self._event_expiry),
                    ("SET", f"dedup:{id}", "1", "PXAT", self._event_expiry),
                ]
            commands.append(("RPUSH", f"order:{user}", *(str(event.seq) for event in events)))
        if self._locks:
            commands.append(("DEL", *(f"inflight:{event.id}" for event in batch.events)))
        rev = self._revs[batch.partition] = self._revs.get(batch.partition, 0) + 1
        floor = str(batch.offset + len(batch.events))
        position = ("rev", str(rev), "offset", floor, "seen_ms", self._now, "unfinalized", "0")
        commands.append(("HSET", f"partition:{TOPIC}:{batch.partition}", *position))
        return _pack(batch, commands)


def _pack(batch: Batch, commands: Sequence[Command]) -> Call:
    packed = b"".join(hiredis.pack_command(command) for command in commands)  # type: ignore[arg-type]
    return Call(batch.partition, packed, len(commands))
