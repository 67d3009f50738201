"""Asking Redis now and then how much memory it uses; for the monitor's event loop."""

from __future__ import annotations

from dataclasses import dataclass

from redis.exceptions import RedisError

from eventproc.errors import Transient
from eventproc.settings import Settings
from eventproc.store.aio import connect

_BUFFERS = ("mem_clients_normal", "mem_clients_slaves", "mem_aof_buffer")


@dataclass(frozen=True, slots=True)
class Memory:
    """`used_bytes` is used_memory; `max_bytes` is maxmemory, 0: unlimited.

    `data_bytes` is what is used without the buffers of connections, which come and go with the load.
    """

    used_bytes: int
    max_bytes: int
    data_bytes: int


class MemoryProbe:
    """One connection, made on first use and again after a failure; nothing is retried."""

    def __init__(self, settings: Settings) -> None:
        """Raises ConfigError for a URL or password file that cannot be used."""
        self._client = connect(settings, settings.redis_timeout_ms, 1)

    async def read(self) -> Memory:
        """Read it; Transient when Redis does not answer."""
        try:
            info = await self._client.info("memory")
        except (RedisError, OSError) as error:
            raise Transient(f"Redis does not answer: {type(error).__name__}: {error}") from None
        used = int(info["used_memory"])
        buffers = sum(int(info.get(name, 0)) for name in _BUFFERS)
        return Memory(used, int(info.get("maxmemory", 0)), used - buffers)

    async def close(self) -> None:
        """Close the connection."""
        await self._client.aclose()
