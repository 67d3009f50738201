"""Asking Redis now and then how much memory it uses; for the monitor's event loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from eventproc.errors import ConfigError, Transient
from eventproc.settings import Settings


@dataclass(frozen=True, slots=True)
class Memory:
    """`used_bytes` is used_memory; `max_bytes` is maxmemory, 0: unlimited."""

    used_bytes: int
    max_bytes: int


class MemoryProbe:
    """One connection, made on first use and again after a failure; nothing is retried."""

    def __init__(self, settings: Settings) -> None:
        options: dict[str, Any] = {"password": _password(settings)} if settings.redis_password_file else {}
        try:
            self._client = redis.asyncio.Redis.from_url(
                settings.redis_url.get_secret_value(),
                socket_timeout=settings.redis_timeout_ms / 1000,
                socket_connect_timeout=settings.redis_timeout_ms / 1000,
                retry=Retry(NoBackoff(), 0),
                max_connections=1,
                **options,
            )
        except ValueError as error:
            raise ConfigError(f"redis_url: {error}") from None

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


def _password(settings: Settings) -> str:
    path = Path(settings.redis_password_file)
    try:
        return path.read_text(encoding="utf-8").split("\n", 1)[0]
    except OSError as error:
        raise ConfigError(f"redis_password_file={path}: {error.strerror}") from None
