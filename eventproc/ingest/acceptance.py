"""The way of events from a valid request to Kafka's acknowledgement (CONTRACT section 9, in its order)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from eventproc import logs
from eventproc.broker.publisher import Outgoing
from eventproc.clock import Clock
from eventproc.errors import Transient
from eventproc.ingest.events import EventReader, Posted, State
from eventproc.ingest.limiter import RateLimiter
from eventproc.ingest.refusal import Refusal, unavailable
from eventproc.ingest.watch import Watch
from eventproc.settings import Settings
from eventproc.store.ingest import Allowance, IngestStore

#: For so long nobody else may try a request with the same Idempotency-Key; longer than any takes.
_LEASE_SLACK_MS = 3000
_LEAST_WAIT_MS = 200
#: Of the time a request has, all its calls to Redis before produce get no more than this.
REDIS_SHARE = 2 / 3

_LETTERS: dict[str, State] = {"a": "accepted", "i": "invalid", "r": "rate_limited", "f": "failed"}
_RATE_LIMITED = "rate limit exceeded"


class Publishing(Protocol):
    """The part of `Publisher` that is used."""

    def reserve(self, records: int) -> bool: ...
    def release(self, records: int) -> None: ...
    async def publish(self, records: Sequence[Outgoing], timeout_s: float) -> list[str]: ...


class Sender(NamedTuple):
    """Whose request it is. `idempotency_key` is "" without one, else unique for API key, route and header."""

    address: str
    idempotency_key: str


class _Attempt(NamedTuple):
    """A request's hold on its Idempotency-Key."""

    key: str
    token: str
    first: bool


def idempotency_key(api_key: str, route: str, header: str) -> str:
    """The scope of an Idempotency-Key as one word."""
    return hashlib.sha256(f"{api_key}\n{route}\n{header}".encode()).hexdigest()


class Acceptance:
    """Takes valid and invalid events of one request at a time; knows nothing of HTTP but refusals."""

    def __init__(
        self,
        settings: Settings,
        store: IngestStore,
        limiter: RateLimiter,
        publisher: Publishing,
        watch: Watch,
        reader: EventReader,
        clock: Clock,
        new_token: Callable[[], str],
    ) -> None:
        self._store = store
        self._limiter = limiter
        self._publisher = publisher
        self._watch = watch
        self._reader = reader
        self._clock = clock
        self._new_token = new_token
        self._timeout_ms = settings.api_timeout_ms
        self._redis_s = self._timeout_ms * REDIS_SHARE / 1000
        self._rare = logs.OnceAMinute(clock)

    async def take(self, events: list[Posted], body: bytes, sender: Sender, single: bool) -> None:
        """Give every event its final state. Raises Refusal when nothing may be promised to any of them.

        `single`: there is one event, which is refused (429, 503) rather than told to be rate_limited or
        failed.
        """
        deadline_ms = self._clock.monotonic_ms() + self._timeout_ms
        self._watch.check()
        count = sum(not event.state for event in events)
        if not self._publisher.reserve(count):
            raise unavailable("the local queue is full", "queue")
        attempt = None
        tried = False
        try:
            try:
                async with asyncio.timeout(
                    self._redis_s
                ):  # calls that each are in time may not be so together
                    if sender.idempotency_key:
                        attempt = await self._claim(sender.idempotency_key, body, events)
                        if attempt is None:
                            return
                    open = [event for event in events if not event.state]
                    allowed = await self._charge(open, sender.address, single)
            except TimeoutError:
                raise unavailable(f"Redis is away: it has taken {self._redis_s:g} s", "redis") from None
            tried = bool(allowed)
            await self._publish(allowed, self._left_s(deadline_ms))
        except BaseException:
            if attempt is not None:
                settled = self._settle(attempt, events, tried, False, self._left_s(deadline_ms))
                await asyncio.shield(settled)
            raise
        finally:
            self._publisher.release(count)
        failed = any(event.state == "failed" for event in events)
        if attempt is not None:
            await self._settle(attempt, events, tried, not failed, self._left_s(deadline_ms))
        if single and failed:
            raise unavailable(
                f"event is not acknowledged: {events[0].error}", "not_acknowledged", eventId=events[0].id
            )

    def _left_s(self, deadline_ms: int) -> float:
        return max(_LEAST_WAIT_MS, deadline_ms - self._clock.monotonic_ms()) / 1000

    # --- Idempotency-Key ------------------------------------------------------------------------------

    async def _claim(self, key: str, body: bytes, events: list[Posted]) -> _Attempt | None:
        """Our hold on the key; None when the first answer was found, and the events have its states."""
        token = self._new_token()
        digest = hashlib.sha256(body).hexdigest()
        lease_ms = self._timeout_ms + _LEASE_SLACK_MS
        try:
            claim = await self._store.claim_key(key, digest, token, lease_ms, [event.id for event in events])
        except Transient as error:
            raise unavailable(f"Redis is away: {error}", "redis") from None
        if claim.status == "other":
            raise Refusal(409, "Idempotency-Key was used with another body", reason="conflict")
        if claim.status == "busy":
            raise Refusal(
                409,
                "the first request with this Idempotency-Key is under way",
                reason="conflict",
                retry_after_s=seconds(claim.busy_ms),
            )
        if claim.status in ("again", "done"):
            self._recall(events, claim.ids, claim.states, claim.status == "done")
        return None if claim.status == "done" else _Attempt(key, token, claim.status == "new")

    def _recall(self, events: list[Posted], ids: list[str], states: str, done: bool) -> None:
        """Take over the ids of the first attempt, and what of its states is final."""
        for index, event in enumerate(events):
            if event.state == "invalid":
                continue
            if ids[index]:
                self._reader.rename(event, ids[index])
            state = _LETTERS.get(states[index : index + 1], "")
            if done or state == "accepted":
                event.state = state
                event.error = _RATE_LIMITED if state == "rate_limited" else ""

    async def _settle(
        self, attempt: _Attempt, events: list[Posted], tried: bool, answered: bool, timeout_s: float
    ) -> None:
        """Tell Redis what came of the attempt. What it cannot be told, the lease's end will do."""
        states = "".join(event.state[:1] or "f" for event in events)
        how = "done" if answered else "drop" if attempt.first and not tried else "open"
        try:
            async with asyncio.timeout(timeout_s):
                await self._store.settle_key(attempt.key, attempt.token, how, states)  # type: ignore[arg-type]
        except (Transient, TimeoutError) as error:
            why = str(error) or "Redis did not answer in time"
            self._rare.warning(logs.get(), "idempotency_key_not_settled", error=why)

    # --- quota and Kafka ------------------------------------------------------------------------------

    async def _charge(self, events: list[Posted], address: str, single: bool) -> list[Posted]:
        """The events that are within their quota; the others get their state. Raises Refusal (429, 503)."""
        try:
            runs = await self._limiter.take([event.user for event in events], address)
        except Transient as error:
            raise unavailable(f"Redis is away: {error}", "redis") from None
        allowed: list[Posted] = []
        at = 0
        for count, allowance in runs:
            run = events[at : at + count]
            at += count
            allowed += run[: max(0, allowance.events)]
            for event in run[max(0, allowance.events) :]:
                self._refuse(event, allowance, single)
        return allowed

    def _refuse(self, event: Posted, allowance: Allowance, single: bool) -> None:
        if allowance.events < 0:
            event.state, event.error = "failed", "the key of its rate limit has the wrong type in Redis"
            return
        event.state, event.error = "rate_limited", _RATE_LIMITED
        if single:
            raise Refusal(
                429,
                _RATE_LIMITED,
                reason="rate_limit",
                retry_after_s=seconds(allowance.again_ms - allowance.now_ms),
                remaining=0,
                resetAt=allowance.again_ms,
            )

    async def _publish(self, events: list[Posted], timeout_s: float) -> None:
        if not events:
            return
        reasons = await self._publisher.publish([event.record() for event in events], timeout_s)
        for event, reason in zip(events, reasons, strict=True):
            event.state, event.error = ("failed", reason) if reason else ("accepted", "")


def seconds(ms: int) -> int:
    """For Retry-After: whole seconds, at least 1."""
    return max(1, -(-ms // 1000))
