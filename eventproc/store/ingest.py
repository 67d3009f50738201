"""What the HTTP API asks of Redis: quotas, idempotency keys, how far the workers are."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

from hiredis import pack_command
from redis.exceptions import NoScriptError, RedisError, ResponseError

from eventproc.errors import Transient
from eventproc.settings import Settings
from eventproc.store.address import describe
from eventproc.store.aio import connect
from eventproc.store.keys import flat
from eventproc.store.scripts import load_scripts

_CONNECTIONS = 8


class Charge(NamedTuple):
    """Events of one user from one address; an empty name is not limited."""

    user: str
    ip: str
    events: int


class Allowance(NamedTuple):
    """How many of a charge's events are accepted (-1: a key of the wrong type is in the way); when there is
    room for the others, and when that was told, both in ms of Redis's clock."""

    events: int
    again_ms: int
    now_ms: int


class KeyClaim(NamedTuple):
    """What became of a claim for an Idempotency-Key; see claim_idempotency_key.lua."""

    status: Literal["new", "again", "done", "busy", "other"]
    ids: list[str]
    states: str
    busy_ms: int


class Position(NamedTuple):
    """What a worker has written about its partition; `age_ms` is how long ago it was last heard of."""

    offset: int
    unfinalized: int
    rev: int
    age_ms: int


class IngestStore:
    """A few connections, made when needed. Whatever Redis does wrong is Transient, within `timeout_ms`."""

    def __init__(self, settings: Settings, timeout_ms: int) -> None:
        """Raises ConfigError for a URL or password file that cannot be used."""
        self._client = connect(settings, timeout_ms, _CONNECTIONS)
        self._timeout_s = timeout_ms / 1000
        self._where = describe(settings)
        self._scripts = load_scripts()
        self._prefix = settings.key_prefix
        self._topic = settings.kafka_topic
        self._limits = (settings.rate_window_ms, settings.rate_limit_per_user, settings.rate_limit_per_ip)
        self._key_ttl_ms = settings.idempotency_ttl_s * 1000
        self._instance = os.urandom(6).hex()
        self._calls = itertools.count(1)

    async def rate_limit(self, charges: Sequence[Charge]) -> list[Allowance]:
        """Charge them in this order, atomically."""
        numbers: dict[str, int] = {}
        arguments: list[int] = []
        for charge in charges:
            user = (
                numbers.setdefault(f"{self._prefix}rate:{charge.user}", len(numbers) + 1)
                if charge.user
                else 0
            )
            ip = (
                numbers.setdefault(f"{self._prefix}rate:ip:{charge.ip}", len(numbers) + 1) if charge.ip else 0
            )
            arguments += (user, ip, charge.events)
        call = f"{self._instance}{next(self._calls)}"
        reply = await self._run("rate_limit", list(numbers), [*self._limits, call, *arguments])
        now_ms = int(reply[0])
        return [Allowance(int(reply[k]), int(reply[k + 1]), now_ms) for k in range(1, len(reply), 2)]

    async def claim_key(self, key: str, body: str, token: str, lease_ms: int, ids: Sequence[str]) -> KeyClaim:
        """Take an Idempotency-Key; `ids` has "" for an event without."""
        arguments = [body, token, lease_ms, self._key_ttl_ms, "\n".join(ids)]
        reply = await self._run("claim_idempotency_key", [self._key(key)], arguments)
        status = reply[0].decode()
        if status == "busy":
            return KeyClaim(status, [], "", int(reply[1]))
        if len(reply) == 1:
            return KeyClaim(status, [], "", 0)
        return KeyClaim(status, reply[1].decode().split("\n"), reply[2].decode(), 0)

    async def settle_key(
        self, key: str, token: str, how: Literal["done", "open", "drop"], states: str
    ) -> bool:
        """Say what came of it; False when another attempt has it by now."""
        reply = await self._run("settle_idempotency_key", [self._key(key)], [token, how, states])
        return bool(reply[0] == b"ok")

    async def positions(self, partitions: Sequence[int]) -> dict[int, Position]:
        """Of the partitions that a worker has ever owned."""
        async with self._guard():
            pipeline = self._client.pipeline(transaction=False)
            pipeline.time()
            for partition in partitions:
                key = flat(self._prefix, self._topic, partition).partition
                pipeline.hmget(key, "offset", "unfinalized", "rev", "seen_ms")
            (seconds, micros), *found = await pipeline.execute()
        now_ms = seconds * 1000 + micros // 1000
        return {
            partition: Position(int(offset), int(unfinalized or 0), int(rev or 0), now_ms - int(seen_ms or 0))
            for partition, (offset, unfinalized, rev, seen_ms) in zip(partitions, found, strict=True)
            if offset is not None
        }

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    def _key(self, key: str) -> str:
        return f"{self._prefix}idempotency:{key}"

    async def _run(self, name: str, keys: list[str], arguments: list[Any]) -> Any:
        script = self._scripts[name]
        async with self._guard():
            try:
                return await self._send("EVALSHA", script.sha1, len(keys), *keys, *arguments)
            except NoScriptError:
                return await self._send("EVAL", script.source, len(keys), *keys, *arguments)

    async def _send(self, *command: str | bytes | int) -> Any:
        """One command, packed by hiredis: redis-py's asyncio client takes 4 us for each argument."""
        pool = self._client.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(pack_command(command))  # type: ignore[arg-type]
            return await connection.read_response()
        except ResponseError:
            raise
        except BaseException:
            await connection.disconnect(nowait=True)  # its answer may still come
            raise
        finally:
            await pool.release(connection)

    @asynccontextmanager
    async def _guard(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            raise Transient(f"Redis at {self._where} did not answer in {self._timeout_s:g} s") from None
        except (RedisError, OSError, ValueError) as error:
            raise Transient(f"Redis at {self._where}: {error}") from None
