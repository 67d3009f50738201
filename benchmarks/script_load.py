"""What workers send for batches of ordinary events: calls of acquire_events and finalize_events, prepared."""

from __future__ import annotations

from collections.abc import Iterable

from benchmarks.redis_load import Batch, Call
from eventproc.effects import Entry, UserEffects
from tests.redis_server import RedisServer
from tests.script_runner import ScriptRunner, entry, settings


class Scripts:
    """The owner of all partitions named, on a server that has none of the scripts yet."""

    def __init__(self, server: RedisServer, partitions: Iterable[int], *, locks: bool) -> None:
        chosen = settings(locking="event" if locks else "partition")
        self._locked = {"granted_ms": 1, "lock_expiry_ms": 1 << 50} if locks else {"granted_ms": 0}
        self._owners = {p: ScriptRunner(server.client(), chosen, partition=p) for p in partitions}
        for owner in self._owners.values():
            owner.claim()
        for script in owner.scripts.scripts.values():
            owner.client.script_load(script.source)

    def lock(self, batch: Batch) -> Call:
        """The call of acquire_events."""
        owner = self._owners[batch.partition]
        call = owner.scripts.encode(owner.acquiring(*self._entries(batch)))
        return Call(batch.partition, call.packed, 1)

    def write(self, batch: Batch) -> Call:
        """The call of finalize_events; to be sent in the order in which they are made."""
        owner = self._owners[batch.partition]
        by_user: dict[str, list[Entry]] = {}
        for one in self._entries(batch):
            by_user.setdefault(one.user, []).append(one)
        groups = [UserEffects(user, False, (), entries, dense=True) for user, entries in by_user.items()]
        request = owner.request(*groups, floor=batch.offset + len(batch.events))
        return Call(batch.partition, owner.scripts.encode(request).packed, 1)

    def _entries(self, batch: Batch) -> list[Entry]:
        return [
            entry(offset, e.user, e.seq, id=e.id, type=e.type, **self._locked)
            for offset, e in enumerate(batch.events, batch.offset)
        ]
