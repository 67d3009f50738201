"""Sends prepared calls over one connection for each partition, and tells what they cost Redis.

CPU time is what is compared. What Redis counts itself (INFO commandstats) is the time on the clock while a
command runs: on a busy machine it holds the times in which Redis had no processor.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import hiredis

from benchmarks.deployment import cpu_s
from tests.redis_server import RedisServer

_TIMEOUT_S = 60.0
_RECEIVE_BYTES = 65_536


class Event(NamedTuple):
    """What Redis learns of an ordinary event."""

    id: str
    user: str
    seq: int
    type: str


class Batch(NamedTuple):
    """Events of one partition, of which the first lies at `offset`."""

    partition: int
    offset: int
    events: Sequence[Event]

    def by_user(self) -> dict[str, list[Event]]:
        """Each user's events, in order."""
        groups: dict[str, list[Event]] = {}
        for event in self.events:
            groups.setdefault(event.user, []).append(event)
        return groups


class Call(NamedTuple):
    """What goes to Redis in one piece, and how many replies it gets."""

    partition: int
    packed: bytes
    replies: int


class Writer(Protocol):
    """Locks a batch and writes its effects."""

    def lock(self, batch: Batch) -> Call: ...
    def write(self, batch: Batch) -> Call: ...


def calls(writer: Writer, batches: Iterable[Batch], *, locks: bool) -> list[Call]:
    """All that is sent for these batches."""
    if not locks:
        return [writer.write(batch) for batch in batches]
    return [call for batch in batches for call in (writer.lock(batch), writer.write(batch))]


@dataclass(frozen=True, slots=True)
class Cost:
    """CPU time of Redis, and what it counts: seconds by command, those that scripts call included."""

    cpu_s: float
    counted: dict[str, float]

    def us(self, events: int) -> float:
        """CPU time of one event."""
        return self.cpu_s / events * 1e6

    def counted_us(self, events: int) -> float:
        """What Redis counts for one event, for the commands that came in."""
        came = self.counted.get("evalsha") or sum(self.counted.values())
        return came / events * 1e6


def send(server: RedisServer, prepared: Sequence[Call]) -> Cost:
    """Send them, with one call of each partition under way at a time; AssertionError for an error reply."""
    lanes: dict[int, list[Call]] = {}
    for call in prepared:
        lanes.setdefault(call.partition, []).append(call)
    client = server.client()
    with contextlib.ExitStack() as resources:
        links = {
            partition: _Link(
                resources.enter_context(socket.create_connection(("127.0.0.1", server.port), _TIMEOUT_S))
            )
            for partition in lanes
        }
        client.config_resetstat()
        before_s = cpu_s(server.pid)
        for turn in range(max(map(len, lanes.values()))):
            under_way = [(links[lane], sent[turn]) for lane, sent in lanes.items() if turn < len(sent)]
            for link, call in under_way:
                link.socket.sendall(call.packed)
            for link, call in under_way:
                link.receive(call.replies)
        used_s = cpu_s(server.pid) - before_s
    stats: dict[str, dict[str, Any]] = client.info("commandstats")
    counted = {name.removeprefix("cmdstat_"): one["usec"] / 1e6 for name, one in stats.items()}
    return Cost(used_s, {name: s for name, s in counted.items() if not name.startswith("config")})


class _Link:
    """One connection."""

    def __init__(self, connected: socket.socket) -> None:
        self.socket = connected
        self._reader = hiredis.Reader()

    def receive(self, replies: int) -> None:
        while replies:
            reply = self._reader.gets()
            if reply is False:
                data = self.socket.recv(_RECEIVE_BYTES)
                assert data, "Redis has closed the connection"
                self._reader.feed(data)
                continue
            assert not isinstance(reply, hiredis.ReplyError), reply
            replies -= 1
