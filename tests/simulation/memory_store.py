"""A small in-memory Redis that runs the real .lua files, with a clock of its own, for the simulation.

`memory_store.lua` holds the data and the commands; a parity test holds it against a real Redis.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from lupa import lua51  # type: ignore[import-untyped]

from eventproc.clock import Clock
from eventproc.effects import StoreReply, StoreRequest
from eventproc.store.scripts import Call, ScriptSet, decode, load_scripts

TRACE = "EVENTPROC_TEST_TRACE_LUA"
_CHUNK = re.compile(rb"^local chunk = \d+", re.MULTILINE)
Value = bytes | list[bytes] | dict[bytes, bytes]


class ReplyError(Exception):
    """An error reply of a script."""


def _with_small_chunks(source: bytes) -> bytes:
    """The script, but for how much it looks up at once: a history's calls are to be longer than that."""
    return _CHUNK.sub(b"local chunk = 3", source)


@cache
def _runtime() -> tuple[Any, Any]:
    """The one Lua runtime of this process, with every script compiled, and the store's functions."""
    lua = lua51.LuaRuntime(encoding=None, unpack_returned_tuples=True)
    api = lua.execute(Path(__file__).with_suffix(".lua").read_bytes())
    for script in load_scripts().values():
        assert script.name != "acquire_events" or _CHUNK.search(script.source), (
            "it looks up no chunks any more"
        )
        api[b"load"](script.name.encode(), _with_small_chunks(script.source))
    if os.environ.get(TRACE):
        api[b"trace"]()
    return lua, {name: api[name.encode()] for name in _FUNCTIONS}


def lines_missed(script: str) -> set[int]:
    """The lines of a script that have not run; of a function that was never called, its first.

    To be asked of a process in which TRACE was set in the environment before the first store was made.
    """
    source = load_scripts()[script].source.decode().splitlines()
    missed, called = (set(table.values()) for table in _runtime()[1]["traced"](script.encode()).values())
    for number, line in enumerate(source, 1):
        if re.match(r"\s*(local )?function\b", line) and number not in called:
            missed.add(number)
    return {number for number in missed if source[number - 1].strip() != "end"}


_FUNCTIONS = ("traced", "new", "run", "command", "hashes", "snapshot", "restore", "flush", "dump")


def _bytes(value: str | bytes | int) -> bytes:
    return value if type(value) is bytes else str(value).encode()


class MemoryStore:
    """One Redis database. Several partitions may share it, as they do a server."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._lua, self._api = _runtime()
        self._store = self._api["new"]()

    def execute(self, call: Call, *, fail_at: int | None = None) -> Any:
        """Run a script of the package; raises ReplyError for an error reply.

        `fail_at` plants an error: that many of its commands succeed, then the script dies in mid-course.
        """
        table = self._lua.table_from
        keys, args = call.parts()
        reply = self._api["run"](
            self._store, call.script.encode(), table(keys), table(args), self._clock.wall_ms(), fail_at
        )
        return self._reply(reply)

    def perform(self, scripts: ScriptSet, request: StoreRequest) -> StoreReply:
        """Encode, execute and decode one request."""
        return decode(request, self.execute(scripts.encode(request)))

    def command(self, *words: str | bytes | int) -> Any:
        """One command of those that the scripts use, as a client would send it."""
        return self._reply(
            self._api["command"](self._store, self._clock.wall_ms(), *[_bytes(word) for word in words])
        )

    def hashes(self, keys: Sequence[str], fields: Sequence[str]) -> list[tuple[bytes | None, ...]]:
        """The same fields of several hashes in one call; of what is no hash, none."""
        joined = "\n".join(keys).encode(), "\n".join(fields).encode()
        found = self._api["hashes"](self._store, self._clock.wall_ms(), *joined)
        values = [value or None for value in found.values()]
        n = len(fields)
        return [tuple(values[at : at + n]) for at in range(0, len(values), n)]

    def flush(self) -> None:
        """Lose everything (FLUSHALL)."""
        self._api["flush"](self._store)

    def snapshot(self) -> Any:
        """A copy of all data, for `restore`."""
        return self._api["snapshot"](self._store)

    def restore(self, snapshot: Any) -> None:
        """Go back to a snapshot: what was acknowledged since is lost, as in a failover."""
        self._api["restore"](self._store, snapshot)

    def dump(self) -> dict[bytes, tuple[Value, int]]:
        """Every live key with its value and its absolute expiry in ms (-1 = none)."""
        flat = list(self._api["dump"](self._store, self._clock.wall_ms()).values())
        keys: dict[bytes, tuple[Value, int]] = {}
        at = 0
        while at < len(flat):
            key, kind, expires, count = flat[at : at + 4]
            elements = flat[at + 4 : at + 4 + count]
            at += 4 + count
            value: Value
            if kind == b"string":
                value = elements[0]
            elif kind == b"list":
                value = elements
            else:
                value = dict(zip(elements[::2], elements[1::2], strict=True))
            keys[key] = (value, int(expires))
        return keys

    def _reply(self, value: Any) -> Any:
        if lua51.lua_type(value) != "table":
            return None if value is False else 1 if value is True else value
        if value[b"err"] is not None:
            raise ReplyError(value[b"err"].decode(errors="replace"))
        if value[b"ok"] is not None:
            return value[b"ok"]
        return [self._reply(element) for element in value.values()]
