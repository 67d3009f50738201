"""How Kafka, Redis and the workers are: looked at each second, never by a request."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from eventproc.clock import Clock
from eventproc.errors import EventprocError, Transient
from eventproc.ingest.refusal import unavailable
from eventproc.settings import Settings
from eventproc.store.ingest import Position

_INTERVAL_S = 1.0
_COMMITTED_AGAIN_MS = 10_000

Offsets = Mapping[int, int]


class Positions(Protocol):
    """The part of `IngestStore` that is used."""

    async def positions(self, partitions: Sequence[int]) -> dict[int, Position]: ...


class Producing(Protocol):
    """The part of `Publisher` that is used."""

    @property
    def down(self) -> bool: ...
    @property
    def last_error(self) -> str: ...
    def up(self) -> None: ...


class _Question:
    """Asked in a thread, once at a time however long that takes."""

    def __init__(self, ask: Callable[[], Offsets]) -> None:
        self._ask = ask
        self._asked: asyncio.Future[Offsets] | None = None

    @property
    def under_way(self) -> bool:
        """Whether it is asked already."""
        return self._asked is not None

    async def answer(self, timeout_s: float) -> Offsets | None:
        """None when there is none in time; it is taken up by the next call, which does not wait again."""
        if self._asked is None:
            self._asked = asyncio.ensure_future(asyncio.to_thread(self._ask))
        else:
            timeout_s = 0
        await asyncio.wait([self._asked], timeout=timeout_s)
        if not self._asked.done():
            return None
        asked, self._asked = self._asked, None
        return asked.result()


class Watch:
    """Keeps `backlog`, `kafka_error` and `redis_error` ("" while it answers) current.

    The backlog is what the workers publish as `unfinalized`. A worker that has written nothing since we
    looked last has made nothing final either: what came to its partition meanwhile is added. Where no
    worker lives, all from its last position (else from the group's committed offset) to the end counts.

    `ends` and `committed` block, and are called in threads.
    """

    def __init__(
        self,
        settings: Settings,
        store: Positions,
        producer: Producing,
        clock: Clock,
        ends: Callable[[], Offsets],
        committed: Callable[[], Offsets],
    ) -> None:
        self.backlog = 0
        self.redis_error = self._ends_error = "not asked yet"
        self._max_lag = settings.max_lag
        self._lease_ms = settings.lease_ms
        self._store = store
        self._producer = producer
        self._clock = clock
        self._timeout_s = settings.api_timeout_ms / 1000
        self._read_ends = _Question(ends)
        self._read_committed = _Question(committed)
        self._ends: Offsets = {}
        self._committed: Offsets = {}
        self._committed_ms: int | None = None
        self._marks: dict[int, tuple[int, int]] = {}  # partition -> revision, end when it was seen first
        self._stopped = asyncio.Event()

    @property
    def kafka_error(self) -> str:
        """Why nothing can be produced; "" when nothing is known against it."""
        if self._ends_error:
            return self._ends_error
        return f"Kafka: {self._producer.last_error}" if self._producer.down else ""

    def check(self) -> None:
        """Raise Refusal (503) when no events are taken now."""
        if error := self.kafka_error:
            raise unavailable(f"Kafka is away: {error}", "kafka")
        if self.redis_error:
            raise unavailable(f"Redis is away: {self.redis_error}", "redis")
        if self._max_lag and self.backlog >= self._max_lag:
            raise unavailable(
                f"{self.backlog} records are waiting to be processed, max_lag is {self._max_lag}", "lag"
            )

    async def run(self) -> None:
        """Look each second until stopped."""
        while not self._stopped.is_set():
            try:
                await self.look()
            except Exception as error:  # were the watch to end here, all would look well for ever
                self.redis_error = f"{type(error).__name__}: {error}"
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_INTERVAL_S):
                    await self._stopped.wait()

    def stop(self) -> None:
        """Let `run` end after the look that is under way."""
        self._stopped.set()

    async def look(self) -> None:
        """Look once."""
        await self._look_at_kafka()
        await self._look_at_redis()

    async def _look_at_kafka(self) -> None:
        # what was asked before the producer lost Kafka may have been answered before, too
        doubted = self._producer.down and not self._read_ends.under_way
        try:
            ends = await self._read_ends.answer(self._timeout_s)
        except EventprocError as error:
            self._ends_error = str(error)
            return
        if ends is None:
            # whatever librdkafka's own timeouts are: a broker that stands still keeps it for 10 s and more
            self._ends_error = f"it does not answer in {self._timeout_s:g} s"
            return
        self._ends = {**self._ends, **ends}
        self._ends_error = ""
        if doubted:
            self._producer.up()

    async def _look_at_redis(self) -> None:
        try:
            positions = await self._store.positions(sorted(self._ends))
        except Transient as error:
            self.redis_error = str(error)
            return
        self.redis_error = ""
        if positions.keys() != self._ends.keys():
            await self._look_at_group()
        self.backlog = sum(self._waiting(number, positions.get(number)) for number in self._ends)

    async def _look_at_group(self) -> None:
        now_ms = self._clock.monotonic_ms()
        if self._committed_ms is not None and now_ms - self._committed_ms < _COMMITTED_AGAIN_MS:
            return
        self._committed_ms = now_ms
        with contextlib.suppress(EventprocError):  # whether Kafka answers is told by the ends
            self._committed = await self._read_committed.answer(self._timeout_s) or self._committed

    def _waiting(self, number: int, position: Position | None) -> int:
        end = self._ends[number]
        if position is None:
            return end - max(0, self._committed.get(number, 0))
        if position.age_ms > self._lease_ms:
            return max(0, end - position.offset)
        rev, then = self._marks.get(number, (-1, 0))
        if rev != position.rev:
            self._marks[number] = (position.rev, end)
            return position.unfinalized
        return position.unfinalized + max(0, end - then)
