"""What Redis' memory is used for: read now and then, written to the deployment's page."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass
from typing import Protocol

from eventproc.clock import Clock
from eventproc.errors import Transient
from eventproc.metrics import Board
from eventproc.store.memory import Memory

_INTERVAL_S = 5.0
_INTERVAL_DOWN_S = 1.0
_WINDOW_S = 300.0
#: Of fewer events nothing is told: what scripts and tables of Redis need once would be counted as theirs.
LEAST_EVENTS = 1000


class Probe(Protocol):
    """The part of `MemoryProbe` that is used."""

    async def read(self) -> Memory: ...
    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Reading:
    """Redis' memory, and the events finalized up to then (processed, failed or skipped)."""

    at_ms: int
    memory: Memory
    finalized: int


def forecast(first: Reading, last: Reading) -> tuple[int, int]:
    """(bytes per event, seconds until maxmemory) if it goes on as between the two; 0: not known.

    It is the growth that counts, so neither what lay there before nor the server's own needs. Once as much
    expires as is written nothing grows, and nothing is told. What others write to the same Redis counts too.
    """
    events = last.finalized - first.finalized
    grown = last.memory.data_bytes - first.memory.data_bytes
    if events < LEAST_EVENTS or grown <= 0 or last.at_ms <= first.at_ms:
        return 0, 0
    per_event = max(1, round(grown / events))
    if not last.memory.max_bytes:
        return per_event, 0
    left = max(0, last.memory.max_bytes - last.memory.used_bytes)
    return per_event, max(1, round(left / grown * (last.at_ms - first.at_ms) / 1000))


class MemoryWatch:
    """Reads Redis' memory every 5 s, every second while it does not answer, and looks back five minutes."""

    def __init__(self, board: Board, probe: Probe, clock: Clock) -> None:
        self._board = board
        self._probe = probe
        self._clock = clock
        self._readings: deque[Reading] = deque(maxlen=1 + round(_WINDOW_S / _INTERVAL_S))
        self._stopped = asyncio.Event()
        self.error = ""  # why Redis did not answer last time

    async def run(self) -> None:
        """Watch until stopped."""
        self._forget()  # what a monitor before this one has left
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
            self._forget()  # it may come back as another one
            return
        self.error = ""
        page = self._board.deployment
        page.set("redis_bytes_used", memory.used_bytes)
        page.set("redis_maxmemory", memory.max_bytes)
        self._readings.append(Reading(self._clock.monotonic_ms(), memory, finalized_events(self._board)))
        self._tell(*forecast(self._readings[0], self._readings[-1]))

    def _forget(self) -> None:
        self._readings.clear()
        self._tell(0, 0)

    def _tell(self, bytes_per_event: int, full_s: int) -> None:
        self._board.deployment.set("redis_bytes_per_event", bytes_per_event)
        self._board.deployment.set("redis_full_s", full_s)


def finalized_events(board: Board) -> int:
    """Events whose outcome Redis holds, over all partitions, since the board was made."""
    outcomes = ("processed", "failed", "skipped")
    return sum(page.get("events", outcome) for page in board.pages() for outcome in outcomes)
