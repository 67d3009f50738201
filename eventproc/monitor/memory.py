"""What Redis' memory is used for: read now and then, written to the deployment's page."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Protocol

from eventproc.errors import Transient
from eventproc.metrics import Board
from eventproc.store.memory import Memory

_INTERVAL_S = 10.0
_INTERVAL_DOWN_S = 1.0


class Probe(Protocol):
    """The part of `MemoryProbe` that is used."""

    async def read(self) -> Memory: ...
    async def close(self) -> None: ...


class MemoryWatch:
    """Reads Redis' memory every 10 s, every second while it does not answer.

    Bytes per event are the growth of used_memory since the first reading, divided by the events that
    were finalized (processed, failed or skipped) since then: so neither what lay there before nor the
    server's own needs count. It is telling while the keyspace grows: after `event_ttl_s` as much
    expires as is written, and the number goes towards 0. It stays as it was while nothing is finalized.
    """

    def __init__(self, board: Board, probe: Probe) -> None:
        self._board = board
        self._probe = probe
        self._first: tuple[int, int] | None = None  # used_memory and finalized events
        self._stopped = asyncio.Event()
        self.error = ""  # why Redis did not answer last time

    async def run(self) -> None:
        """Watch until stopped."""
        try:
            while not self._stopped.is_set():
                await self.read()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_INTERVAL_DOWN_S if self.error else _INTERVAL_S):
                        await self._stopped.wait()
        finally:
            await self._probe.close()

    def stop(self) -> None:
        """Let `run` end after the reading that is under way.

        Cancelling it is not enough: a cancellation that meets a timeout inside the client may be lost.
        """
        self._stopped.set()

    async def read(self) -> None:
        """Read once; an error is kept in `error`, never raised."""
        try:
            memory = await self._probe.read()
        except Transient as error:
            self.error = str(error)
            return
        self.error = ""
        self._note(memory)

    def _note(self, memory: Memory) -> None:
        page = self._board.deployment
        page.set("redis_bytes_used", memory.used_bytes)
        page.set("redis_maxmemory", memory.max_bytes)
        finalized = finalized_events(self._board)
        if self._first is None:
            self._first = (memory.used_bytes, finalized)
        first_used, first_finalized = self._first
        if finalized > first_finalized:
            grown = max(0, memory.used_bytes - first_used)
            page.set("redis_bytes_per_event", round(grown / (finalized - first_finalized)))


def finalized_events(board: Board) -> int:
    """Events whose outcome Redis holds, over all partitions, since the board was made."""
    outcomes = ("processed", "failed", "skipped")
    return sum(page.get("events", outcome) for page in board.pages() for outcome in outcomes)
