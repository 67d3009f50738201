"""Reading request bodies: no more than allowed, in no more time than allowed."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.types import Receive, Scope

from eventproc.ingest.refusal import Refusal, unavailable
from eventproc.settings import Settings

_DRAIN_BYTES = 8_388_608
_DRAIN_SILENCE_S = 0.2
_DRAIN_S = 2.0
_JSON = b"application/json"


class Gone(Exception):
    """The client has hung up; nobody reads an answer."""


class BodyReader:
    """Reads bodies, and knows how much of all of them is held."""

    def __init__(self, settings: Settings) -> None:
        self._max_bytes = settings.api_max_body_bytes
        self._max_held_bytes = settings.api_max_buffered_bytes
        self._timeout_s = settings.api_read_timeout_ms / 1000
        self.held_bytes = 0

    @asynccontextmanager
    async def read(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        """The body, which counts as held until the block is left. Raises Refusal or Gone."""
        self._check_headers(scope)
        body = _Held(self)
        try:
            await self._receive(body, receive)
            yield body.all()
        finally:
            body.release()

    async def _receive(self, body: _Held, receive: Receive) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Gone
                    body.add(message.get("body", b""))
                    more = message.get("more_body", False)
        except TimeoutError:
            late = f"body did not arrive in {self._timeout_s:g} s"
            raise Refusal(408, late, reason="slow", close=True) from None

    def _check_headers(self, scope: Scope) -> None:
        for name, value in scope["headers"]:
            if name == b"content-length" and int(value) > self._max_bytes:  # the parser let only digits pass
                raise self.too_large()
            if name == b"content-type" and value.partition(b";")[0].strip().lower() != _JSON:
                raise Refusal(415, "content-type must be application/json", reason="unsupported", close=True)
            if name == b"content-encoding" and value.strip().lower() not in (b"", b"identity"):
                raise Refusal(
                    415,
                    "content-encoding is not supported: send the body as it is",
                    reason="unsupported",
                    close=True,
                )

    def too_large(self) -> Refusal:
        """413."""
        return Refusal(
            413, f"body has more than api_max_body_bytes ({self._max_bytes})", reason="too_large", close=True
        )

    def hold(self, held: int, more: int) -> None:
        """Count `more` bytes of a body that has `held`; raises Refusal."""
        if held + more > self._max_bytes:
            raise self.too_large()
        if self.held_bytes + more > self._max_held_bytes:
            raise unavailable("too many requests at once", "overloaded", close=True)
        self.held_bytes += more


class _Held:
    """The parts of one body."""

    def __init__(self, reader: BodyReader) -> None:
        self._reader = reader
        self._parts: list[bytes] = []
        self._size = 0

    def add(self, part: bytes) -> None:
        self._reader.hold(self._size, len(part))
        self._size += len(part)
        if part:
            self._parts.append(part)

    def all(self) -> bytes:
        return self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)

    def release(self) -> None:
        self._reader.held_bytes -= self._size


async def discard(scope: Scope, receive: Receive) -> None:
    """Read on for a moment before a refusal: to one who still sends, a closed connection would hide it."""
    if any(name == b"expect" for name, _ in scope["headers"]):
        return  # waits for our word before it sends
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_S):  # else one who trickles would be listened to for ever
            await _until_silent(receive)


async def _until_silent(receive: Receive) -> None:
    left = _DRAIN_BYTES
    while left > 0:
        # No wait_for: up to Python 3.11 it loses a cancellation that meets the end of what it waits for.
        async with asyncio.timeout(_DRAIN_SILENCE_S):
            message = await receive()
        if message["type"] == "http.disconnect" or not message.get("more_body", False):
            return
        left -= len(message.get("body", b""))
