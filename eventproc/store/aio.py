"""redis-py's asyncio client with our options: bounded, and nothing is retried behind our back."""

from __future__ import annotations

from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from eventproc.settings import Settings
from eventproc.store.address import connection_options


def connect(settings: Settings, timeout_ms: int, connections: int) -> Any:
    """A client of at most `connections`; who finds all of them busy waits up to `timeout_ms`.

    Raises ConfigError for a URL or password file that cannot be used.
    """
    options = connection_options(settings)
    timeouts = dict.fromkeys(("socket_timeout", "socket_connect_timeout"), timeout_ms / 1000)
    sync = options.pop("connection_class", None)  # of a Unix socket or TLS; its asyncio twin is wanted
    twin = getattr(redis.asyncio.connection, sync.__name__ if sync else "Connection")
    pool = redis.asyncio.BlockingConnectionPool(
        max_connections=connections,
        timeout=timeout_ms / 1000,
        connection_class=twin,
        retry=Retry(NoBackoff(), 0),
        **(timeouts | options),
    )
    return redis.asyncio.Redis.from_pool(pool)  # so that closing it closes the connections
