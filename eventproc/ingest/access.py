"""Around every request: its id, the line in the access log, the counters."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import orjson
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from eventproc import logs
from eventproc.clock import Clock
from eventproc.ingest.meters import Meters

_REQUEST_ID = re.compile(rb"[!-~]{1,128}")
_CLOSED_BY_CLIENT = 499  # in log and counters only, as nginx has it
_DETAILS = "eventproc.details"

Pairs = list[tuple[bytes, bytes]]


class Access:
    """ASGI middleware, the outermost one."""

    def __init__(
        self, app: ASGIApp, meters: Meters, clock: Clock, new_id: Callable[[], str], log: bool
    ) -> None:
        self._app = app
        self._meters = meters
        self._clock = clock
        self._new_id = new_id
        self._log = log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        begun_ms = self._clock.monotonic_ms()
        request_id = _given_id(scope) or self._new_id().encode()
        details: dict[str, Any] = {}
        scope[_DETAILS] = details
        status = 0

        async def send_on(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", request_id)]
            await send(message)

        self._meters.begun()
        try:
            await self._app(scope, receive, send_on)
        except Exception as error:
            details["error"] = repr(error)
            logs.get().error("request failed", request_id=request_id.decode(), exc_info=error)
            raise
        finally:
            elapsed_ms = self._clock.monotonic_ms() - begun_ms
            status = status or _CLOSED_BY_CLIENT
            self._meters.answered(scope["path"], status, elapsed_ms / 1000)
            if self._log:
                logs.get().info(
                    "request",
                    method=scope["method"],
                    path=scope["path"],
                    status=status,
                    ms=elapsed_ms,
                    request_id=request_id.decode(),
                    **details,
                )


def note(scope: Scope, **details: Any) -> None:
    """Put these into the request's line in the access log."""
    scope[_DETAILS].update(details)


async def answer(send: Send, status: int, body: dict[str, Any], headers: Pairs | None = None) -> None:
    """Send a JSON answer."""
    data = orjson.dumps(body)
    fields = [
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(data)),
        *(headers or ()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": fields})
    await send({"type": "http.response.body", "body": data})


def _given_id(scope: Scope) -> bytes:
    """X-Request-Id, when it is fit to be repeated in a header and in a log."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            found: bytes = value
            return found
    return b""
