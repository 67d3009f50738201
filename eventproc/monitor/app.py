"""The monitor's HTTP application: /healthz, /readyz and /metrics."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from eventproc.clock import Clock
from eventproc.metrics import Board
from eventproc.monitor.collector import BoardCollector
from eventproc.monitor.readiness import judge
from eventproc.settings import Settings

_STOP_S = 1.0


class RedisWatch(Protocol):
    """Keeps the deployment's gauges current; `error` is "" while Redis answers."""

    @property
    def error(self) -> str: ...

    async def run(self) -> None:
        """Watch until stopped."""
        ...

    def stop(self) -> None:
        """Let `run` end soon."""
        ...


def build_app(
    board: Board, partitions: Sequence[int], settings: Settings, clock: Clock, redis: RedisWatch
) -> Starlette:
    """Make the application; page i of `board` is the partition `partitions[i]`."""
    registry = CollectorRegistry()
    registry.register(BoardCollector(board, partitions, clock))

    def healthz(_: Request) -> Response:
        return JSONResponse({"status": "alive"})

    def readyz(_: Request) -> Response:
        readiness = judge(board, partitions, settings, clock.monotonic_ms(), redis.error)
        return JSONResponse(readiness.as_json(), 200 if readiness.ready else 503)

    def metrics(request: Request) -> Response:
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), headers={"Content-Type": content_type})

    routes = {"/healthz": healthz, "/readyz": readyz, "/metrics": metrics}
    return Starlette(
        routes=[Route(path, _on_loop(endpoint)) for path, endpoint in routes.items()],
        lifespan=lambda _: _watching(redis),
    )


def _on_loop(endpoint: Callable[[Request], Response]) -> Callable[[Request], object]:
    # Starlette would run a plain function in a thread; these take a millisecond and wait for nothing.
    async def call(request: Request) -> Response:
        return endpoint(request)

    return call


@contextlib.asynccontextmanager
async def _watching(redis: RedisWatch) -> AsyncIterator[None]:
    task = asyncio.create_task(redis.run())
    try:
        yield
    finally:
        redis.stop()
        _, running = await asyncio.wait([task], timeout=_STOP_S)
        for late in running:
            late.cancel()
