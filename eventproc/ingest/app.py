"""The HTTP application: routes, and what stands behind them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from eventproc.clock import Clock
from eventproc.ingest.acceptance import Acceptance, Sender, idempotency_key
from eventproc.ingest.access import Access, answer, note
from eventproc.ingest.addresses import client_address
from eventproc.ingest.api_keys import ApiKeys
from eventproc.ingest.bodies import BodyReader, Gone, discard
from eventproc.ingest.events import EventReader, Posted
from eventproc.ingest.meters import OUTCOMES, Meters
from eventproc.ingest.openapi import description
from eventproc.ingest.refusal import Refusal
from eventproc.ingest.watch import Watch
from eventproc.settings import Settings

_IDEMPOTENCY_KEY = re.compile(rb"[ -~]{1,255}")

Lifespan = Callable[[Starlette], AbstractAsyncContextManager[None]]


class _Post:
    """What both POST routes share: key, body, sender."""

    route = ""

    def __init__(
        self,
        settings: Settings,
        keys: ApiKeys,
        bodies: BodyReader,
        reader: EventReader,
        acceptance: Acceptance,
        meters: Meters,
    ) -> None:
        self._trusted_proxies = settings.trusted_proxies
        self._keys = keys
        self._bodies = bodies
        self._acceptance = acceptance
        self._meters = meters
        self.reader = reader

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._take(scope, receive, send)
        except Gone:
            return
        except Refusal as refusal:
            self._meters.refused(refusal.reason)
            note(scope, error=refusal.error)
            headers = list(refusal.headers)
            if refusal.retry_after_s:
                headers.append((b"retry-after", b"%d" % refusal.retry_after_s))
            if refusal.close:
                headers.append((b"connection", b"close"))
                await discard(scope, receive)
            await answer(send, refusal.status, refusal.body(), headers)

    async def _take(self, scope: Scope, receive: Receive, send: Send) -> None:
        api_key = self._keys.check(scope["headers"])
        async with self._bodies.read(scope, receive) as body:
            events = self.read(body)
            try:
                await self._acceptance.take(events, body, self._sender(scope, api_key), self.single)
            finally:
                counts: Counter[str] = Counter(event.state for event in events)
                for outcome in OUTCOMES:
                    if counts[outcome]:
                        self._meters.events(outcome, counts[outcome])
            note(scope, events=len(events), **{name: counts[name] for name in OUTCOMES[1:] if counts[name]})
            await answer(send, 202, self.result(events))

    @property
    def single(self) -> bool:
        """Whether the body is one event."""
        raise NotImplementedError

    def read(self, body: bytes) -> list[Posted]:
        """The events in a body. Raises Refusal."""
        raise NotImplementedError

    def result(self, events: list[Posted]) -> dict[str, Any]:
        """The answer's body."""
        raise NotImplementedError

    def _sender(self, scope: Scope, api_key: str) -> Sender:
        headers = scope["headers"]
        peer = scope["client"][0] if scope.get("client") else ""
        address = client_address(peer, headers, self._trusted_proxies)
        given = [value for name, value in headers if name == b"idempotency-key"]
        if not given:
            return Sender(address, "")
        if len(given) > 1 or not _IDEMPOTENCY_KEY.fullmatch(given[0]):
            raise Refusal(400, "Idempotency-Key must be one header of 1 to 255 printable ASCII characters")
        return Sender(address, idempotency_key(api_key, self.route, given[0].decode()))


class _PostOne(_Post):
    route = "/events"
    single = True

    def read(self, body: bytes) -> list[Posted]:
        try:
            return [self.reader.read_one(body)]
        except Refusal:
            self._meters.events("invalid")
            raise

    def result(self, events: list[Posted]) -> dict[str, Any]:
        return {"eventId": events[0].id, "status": "accepted"}


class _PostBatch(_Post):
    route = "/events/batch"
    single = False

    def read(self, body: bytes) -> list[Posted]:
        return self.reader.read_batch(body)

    def result(self, events: list[Posted]) -> dict[str, Any]:
        return {"results": [event.result() for event in events]}


def build_app(
    settings: Settings,
    keys: ApiKeys,
    bodies: BodyReader,
    reader: EventReader,
    acceptance: Acceptance,
    watch: Watch,
    meters: Meters,
    clock: Clock,
    new_id: Callable[[], str],
    lifespan: Lifespan,
) -> ASGIApp:
    """Make the application."""
    openapi = description(settings)

    async def health(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    async def ready(_: Request) -> Response:
        body = {
            "kafka": watch.kafka_error or "ok",
            "redis": watch.redis_error or "ok",
            "backlog": watch.backlog,
        }
        try:
            watch.check()
        except Refusal as refusal:
            return JSONResponse({"ready": False, "reason": refusal.error, **body}, 503)
        return JSONResponse({"ready": True, **body})

    async def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(meters.registry), headers={"Content-Type": content_type})

    async def show_openapi(_: Request) -> Response:
        return JSONResponse(openapi)

    posts = [kind(settings, keys, bodies, reader, acceptance, meters) for kind in (_PostOne, _PostBatch)]
    app = Starlette(
        routes=[
            *(Route(post.route, post, methods=["POST"]) for post in posts),
            Route("/health", health),
            Route("/ready", ready),
            Route("/metrics", metrics),
            Route("/openapi.json", show_openapi),
        ],
        exception_handlers={HTTPException: _not_there, Exception: _failed},
        lifespan=lifespan,
    )
    app.router.redirect_slashes = False
    return Access(app, meters, clock, new_id, settings.api_access_log)


async def _not_there(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    what = {404: f"there is no {request.url.path}", 405: f"{request.method} is not allowed here"}
    text = what.get(error.status_code, error.detail)
    return JSONResponse({"error": text}, error.status_code, headers=dict(error.headers or {}))


async def _failed(_request: Request, _error: Exception) -> Response:
    return JSONResponse({"error": "internal error"}, 500)
