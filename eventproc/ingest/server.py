"""The API's process: its parts put together, served until TERM, then drained."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator

import uvicorn
import uvloop
from starlette.applications import Starlette
from starlette.types import ASGIApp

from eventproc import logs
from eventproc.broker.admin import committed_offsets, prepare_topics
from eventproc.broker.publisher import Publisher
from eventproc.broker.topic_ends import TopicEnds
from eventproc.clock import Clock, SystemClock
from eventproc.errors import ConfigError
from eventproc.ingest.acceptance import REDIS_SHARE, Acceptance
from eventproc.ingest.api_keys import ApiKeys
from eventproc.ingest.app import build_app
from eventproc.ingest.bodies import BodyReader
from eventproc.ingest.events import EventReader
from eventproc.ingest.ids import IdMaker
from eventproc.ingest.limiter import RateLimiter
from eventproc.ingest.meters import Meters
from eventproc.ingest.protocol import HttpProtocol
from eventproc.ingest.watch import Watch
from eventproc.listening import listen
from eventproc.settings import Settings
from eventproc.store.check import check_redis
from eventproc.store.ingest import IngestStore

_KEEP_ALIVE_S = 75


class _Server(uvicorn.Server):
    """Has its signals set by `serve`, before anybody was told that it is there."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Api:
    """All parts of one API process."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        """Raises ConfigError. Nothing is connected before the application's lifespan begins."""
        self.keys = ApiKeys(settings.api_keys_file)
        self._drain_s = float(settings.shutdown_timeout_s)
        self._store = IngestStore(
            settings, min(settings.redis_timeout_ms, int(settings.api_timeout_ms * REDIS_SHARE))
        )
        self._publisher = Publisher(settings)
        self._ends = TopicEnds(settings, settings.api_timeout_ms, clock)
        self._watch = Watch(
            settings,
            self._store,
            self._publisher,
            clock,
            self._ends.read,
            lambda: committed_offsets(settings),
        )
        ids = IdMaker(clock)
        reader = EventReader(settings, clock, ids)
        self._bodies = BodyReader(settings)
        meters = Meters()
        meters.watch(self)
        limiter = RateLimiter(settings, self._store)
        acceptance = Acceptance(
            settings, self._store, limiter, self._publisher, self._watch, reader, clock, ids.new
        )
        self.app: ASGIApp = build_app(
            settings,
            self.keys,
            self._bodies,
            reader,
            acceptance,
            self._watch,
            meters,
            clock,
            ids.new,
            self._lifespan,
        )

    @property
    def backlog(self) -> int:
        return self._watch.backlog

    @property
    def queued(self) -> int:
        return self._publisher.queued

    @property
    def held_bytes(self) -> int:
        return self._bodies.held_bytes

    @property
    def kafka_error(self) -> str:
        return self._watch.kafka_error

    @property
    def redis_error(self) -> str:
        return self._watch.redis_error

    def reload_keys(self) -> None:
        """Read the API keys again; when that fails, the former ones stand."""
        try:
            logs.get().info("api keys reloaded", keys=self.keys.reload())
        except ConfigError as error:
            logs.get().error("api keys not reloaded", error=str(error))

    @contextlib.asynccontextmanager
    async def _lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self._publisher.start()
        await self._watch.look()
        watching = asyncio.create_task(self._watch.run())
        try:
            yield
        finally:
            self._watch.stop()
            await watching
            left = await asyncio.to_thread(self._publisher.close, self._drain_s)
            if left:
                logs.get().error("records not acknowledged at the end", records=left)
            await self._store.close()


def serve(settings: Settings, announce: Callable[[int], None]) -> None:
    """Serve until TERM or INT; then requests under way are answered, and what was produced is flushed.

    `announce` is told the port once it listens. HUP reads the API keys again. A second TERM or INT ends at
    once. Raises ConfigError or DependencyError when it cannot start.
    """
    prepare_topics(settings)
    check_redis(settings)
    api = Api(settings, SystemClock())
    with listen(settings.api_host, settings.api_port, "api") as sock:
        server = _Server(_config(settings, api.app))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(_run(server, api, sock, announce))
    logs.get().info("stopped")


async def _run(server: _Server, api: Api, sock: socket.socket, announce: Callable[[int], None]) -> None:
    loop = asyncio.get_running_loop()
    for sig in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(sig, server.handle_exit, sig, None)
    loop.add_signal_handler(signal.SIGHUP, api.reload_keys)
    announce(sock.getsockname()[1])
    await server.serve(sockets=[sock])


def _config(settings: Settings, app: ASGIApp) -> uvicorn.Config:
    protocol = type("Protocol", (HttpProtocol,), {"head_timeout_s": settings.api_read_timeout_ms / 1000})
    return uvicorn.Config(
        app,
        http=protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        date_header=False,
        backlog=1024,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
