"""Reading Redis in bulk, for commands that only look: pipelined, batch by batch, never a SCAN."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import redis
from hiredis import pack_command
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.retry import Retry

from eventproc.errors import DependencyError
from eventproc.settings import Settings
from eventproc.store.address import connection_options, describe

_CHUNK = 5000  # elements of a list read at once
_FIRST_CHUNK = 500  # of each list when many are read together
_EXISTS = 200  # keys of one EXISTS


class UserKeys(NamedTuple):
    """What Redis holds of one user's sequence: the order list, `next:` ('' = none), the gap ledger."""

    order: array[int]
    next: str
    gaps: list[str]


class RedisReader:
    """One connection. Keys of a wrong type read as missing and are collected in `foreign`."""

    def __init__(self, settings: Settings) -> None:
        options = connection_options(settings)
        options.setdefault("socket_timeout", settings.redis_timeout_ms / 1000)
        kind = options.pop("connection_class", redis.Connection)
        self._address = describe(settings)
        self._pool = redis.ConnectionPool(connection_class=kind, retry=Retry(NoBackoff(), 1), **options)
        self.foreign: list[str] = []

    def hashes(self, keys: Sequence[str], fields: Sequence[str]) -> list[list[str | None]]:
        """The named fields of each hash; all None where there is no such hash."""
        replies = self._pipeline([("HMGET", key, *fields) for key in keys])
        nothing: list[bytes | None] = [None] * len(fields)
        return [
            [None if value is None else value.decode(errors="replace") for value in reply or nothing]
            for reply in replies
        ]

    def existing(self, keys: Sequence[str]) -> set[str]:
        """Those of the keys that exist."""
        chunks = [keys[at : at + _EXISTS] for at in range(0, len(keys), _EXISTS)]
        counts = self._pipeline([("EXISTS", *chunk) for chunk in chunks])
        found: set[str] = set()
        for chunk, count in zip(chunks, counts, strict=True):
            if count == len(chunk):
                found.update(chunk)
            elif count:
                answers = self._pipeline([("EXISTS", key) for key in chunk])
                found.update(key for key, answer in zip(chunk, answers, strict=True) if answer)
        return found

    def users(self, keys: Sequence[tuple[str, str, str]]) -> list[UserKeys]:
        """What each user's (order, next, gaps) keys hold; an order element that is no int is -1."""
        commands: list[tuple[str | int, ...]] = []
        for order_key, next_key, gaps_key in keys:
            commands.append(("LRANGE", order_key, 0, _FIRST_CHUNK - 1))
            commands.append(("GET", next_key))
            commands.append(("LRANGE", gaps_key, 0, -1))
        replies = self._pipeline(commands)
        users = []
        for index, (order_key, _, _) in enumerate(keys):
            first, following, gaps = replies[3 * index : 3 * index + 3]
            order = array("q", map(_int, first or ()))
            if len(order) == _FIRST_CHUNK:
                self._read_on(order_key, order)
            users.append(
                UserKeys(
                    order,
                    "" if following is None else following.decode(errors="replace"),
                    [entry.decode(errors="replace") for entry in gaps or ()],
                )
            )
        return users

    def elements(self, key: str) -> list[str]:
        """A whole list, read in chunks."""
        found: list[str] = []
        while True:
            (chunk,) = self._pipeline([("LRANGE", key, len(found), len(found) + _CHUNK - 1)])
            found += [element.decode(errors="replace") for element in chunk or ()]
            if not chunk or len(chunk) < _CHUNK:
                return found

    def value(self, key: str) -> str:
        """A string; '' when there is none."""
        (reply,) = self._pipeline([("GET", key)])
        return "" if reply is None else str(reply.decode(errors="replace"))

    def close(self) -> None:
        self._pool.disconnect()

    def _read_on(self, key: str, order: array[int]) -> None:
        while True:
            (chunk,) = self._pipeline([("LRANGE", key, len(order), len(order) + _CHUNK - 1)])
            order.extend(map(_int, chunk or ()))
            if not chunk or len(chunk) < _CHUNK:
                return

    def _pipeline(self, commands: Sequence[tuple[str | int, ...]]) -> list[Any]:
        if not commands:
            return []
        replies: list[Any] = []
        try:
            connection = self._pool.get_connection()
            try:
                packed = b"".join(pack_command(command) for command in commands)  # type: ignore[arg-type]
                connection.send_packed_command([packed], check_health=False)  # type: ignore[no-untyped-call]
                for _ in commands:
                    try:
                        replies.append(connection.read_response(disable_decoding=True))
                    except ResponseError as error:
                        replies.append(error)
            except BaseException:
                connection.disconnect()  # type: ignore[no-untyped-call]
                raise
            finally:
                self._pool.release(connection)
        except (RedisError, OSError) as error:
            raise DependencyError(
                f"Redis at {self._address} does not answer ({error}): is it running, and is redis_url right?"
            ) from None
        for index, reply in enumerate(replies):
            if isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply):
                self.foreign.append(str(commands[index][1]))
                replies[index] = None
            elif isinstance(reply, Exception):
                raise DependencyError(f"Redis at {self._address} refuses {commands[index][0]}: {reply}")
        return replies

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _int(text: bytes) -> int:
    try:
        return int(text)
    except ValueError:
        return -1
