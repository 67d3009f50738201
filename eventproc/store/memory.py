"""Asking Redis now and then how much memory it uses; for the monitor's event loop."""

from __future__ import annotations

from dataclasses import dataclass

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from eventproc.errors import Transient
from eventproc.settings import Settings
from eventproc.store.address import connection_options


@dataclass(frozen=True, slots=True)
class Memory:
    """`used_bytes` is used_memory; `max_bytes` is maxmemory, 0: unlimited."""

    used_bytes: int
    max_bytes: int


class MemoryProbe:
    """One connection, made on first use and again after a failure; nothing is retried."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for a URL or password file that cannot be used."""
        options = connection_options(settings)
        timeouts = dict.fromkeys(
            ("socket_timeout", "socket_connect_timeout"), settings.redis_timeout_ms / 1000
        )
        sync = options.pop("connection_class", None)  # of a Unix socket or TLS; its asyncio twin is wanted
        twin = getattr(redis.asyncio.connection, sync.__name__ if sync else "Connection")
        self._client = redis.asyncio.Redis(
            connection_pool=redis.asyncio.ConnectionPool(
                twin, max_connections=1, retry=Retry(NoBackoff(), 0), **(timeouts | options)
            )
        )

    async def read(self) -> Memory:
        """Read both numbers; Transient when Redis does not answer."""
        try:
            info = await self._client.info("memory")
        except (RedisError, OSError) as error:
            raise Transient(f"Redis does not answer: {type(error).__name__}: {error}") from None
        return Memory(int(info["used_memory"]), int(info.get("maxmemory", 0)))

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()
