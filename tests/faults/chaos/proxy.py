"""A TCP proxy that spoils what passes through it: in a process of its own, told what to do line by line.

Each link listens on one port and leads to another. Its mode says what becomes of the traffic:

    pass        nothing happens to it
    refuse      connections are cut, and nobody listens any more
    freeze      connections stay, and nothing passes in either direction
    delay       every reply comes `delay_ms` late
    lose_reply  a request is carried out, its reply is dropped, and the connection is cut
    cut_reply   half of a reply passes, then the connection is cut

The last two wait for a reply that matters: in a Redis link one to a script call, in a Kafka link one to the
request type `api` (-1: any). How often a mode took effect is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, get_args

from eventproc.spawn import die_with_parent

Mode = Literal["pass", "refuse", "freeze", "delay", "lose_reply", "cut_reply"]
MODES: tuple[Mode, ...] = get_args(Mode)
Protocol = Literal["redis", "kafka"]

#: Kafka's request types.
PRODUCE, FETCH, OFFSET_COMMIT = 0, 1, 8
_CHUNK_BYTES = 1 << 16
_SCRIPT_CALL = b"EVALSHA"
_HEAD_BYTES = 8  # of a Kafka frame: length, then request type and version, or the correlation id


# --- what passes ----------------------------------------------------------------------------------------


class RedisTalk:
    """Knows which replies belong to script calls: all that come after the first one."""

    def __init__(self) -> None:
        self._called = False

    def request(self, data: bytes) -> None:
        """Bytes to the server."""
        self._called = self._called or _SCRIPT_CALL in data

    def replies(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Bytes from the server, in pieces; -1: replies to script calls, -2: others."""
        yield data, -1 if self._called else -2


class KafkaTalk:
    """Knows of each reply what it answers, by the correlation ids."""

    def __init__(self) -> None:
        self._asked: dict[bytes, int] = {}
        self._requests = _Frames(_HEAD_BYTES + 4)
        self._replies = _Frames(_HEAD_BYTES)

    def request(self, data: bytes) -> None:
        """Bytes to the server."""
        for _piece, head in self._requests.feed(data):
            if head:
                self._asked[head[8:12]] = int.from_bytes(head[4:6], "big")

    def replies(self, data: bytes) -> Iterator[tuple[bytes, int]]:
        """Bytes from the server, in pieces; a reply's first piece comes with its request type, others -2."""
        for piece, head in self._replies.feed(data):
            yield piece, self._asked.pop(head[4:8], -2) if head else -2


class _Frames:
    """Cuts a stream into frames: four bytes of length, then so many bytes."""

    def __init__(self, head_bytes: int) -> None:
        self._head_bytes = head_bytes
        self._left = 0  # bytes of the current frame that are still to come
        self._held = b""  # of a head that is not complete

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Pieces, none longer than what is left of its frame; with the frame's head where one begins."""
        data, self._held = self._held + data, b""
        while data:
            if self._left:
                piece, data = data[: self._left], data[self._left :]
                self._left -= len(piece)
                yield piece, b""
                continue
            if len(data) < self._head_bytes:
                self._held = data
                return
            size = 4 + int.from_bytes(data[:4], "big")
            piece, rest = data[:size], data[size:]
            self._left = size - len(piece)
            yield piece, data[: self._head_bytes]
            data = rest


# --- one link -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Link:
    """One port that leads to another; in the proxy's process."""

    protocol: Protocol
    port: int
    to: int
    mode: Mode = "pass"
    api: int = -1
    delay_ms: float = 0
    hits: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*MODES, "cut"), 0))

    def __post_init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._open: set[asyncio.StreamWriter] = set()
        self._flowing = asyncio.Event()
        self._flowing.set()

    async def listen(self) -> None:
        """Take connections (again)."""
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, "127.0.0.1", self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def set(self, mode: Mode, api: int = -1, delay_ms: float = 0) -> None:
        """Change the mode."""
        self.mode, self.api, self.delay_ms = mode, api, delay_ms
        if mode == "freeze":
            self._flowing.clear()
        else:
            self._flowing.set()
        if mode == "refuse" and self._server is not None:
            self._server.close()
            self._server = None
            self.hits["refuse"] += self.cut()
        elif mode != "refuse":
            await self.listen()

    def lead_to(self, port: int) -> None:
        """Where new connections go from now on; the old ones are cut."""
        self.to = port
        self.cut()

    def cut(self) -> int:
        """Cut all connections; how many there were."""
        count = len(self._open)
        for writer in list(self._open):
            writer.transport.abort()
        self.hits["cut"] += count
        return count

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self.to)
        except OSError:
            writer.transport.abort()
            return
        talk = RedisTalk() if self.protocol == "redis" else KafkaTalk()
        self._open.add(writer)
        tasks = [
            asyncio.ensure_future(self._pass_requests(reader, back, talk)),
            asyncio.ensure_future(self._pass_replies(there, writer, talk)),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._open.discard(writer)
            for task in tasks:
                task.cancel()
            writer.transport.abort()
            back.transport.abort()

    async def _pass_requests(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, talk: RedisTalk | KafkaTalk
    ) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await self._gate()
                talk.request(data)
                writer.write(data)
                await writer.drain()
        except OSError:
            return

    async def _pass_replies(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, talk: RedisTalk | KafkaTalk
    ) -> None:
        try:
            while data := await reader.read(_CHUNK_BYTES):
                await self._gate()
                if self.mode == "delay":
                    self.hits["delay"] += 1
                    await asyncio.sleep(self.delay_ms / 1000)
                for piece, answers in talk.replies(data):
                    if self.mode in ("lose_reply", "cut_reply") and self._matters(answers):
                        self.hits[self.mode] += 1
                        if self.mode == "cut_reply":
                            writer.write(piece[: max(1, len(piece) // 2)])
                            await writer.drain()
                            await _let_go(writer)
                        return
                    writer.write(piece)
                await writer.drain()
        except OSError:
            return

    async def _gate(self) -> None:
        if not self._flowing.is_set():
            self.hits["freeze"] += 1
            await self._flowing.wait()

    def _matters(self, answers: int) -> bool:
        return answers == self.api or (self.api < 0 and answers >= -1)


async def _let_go(writer: asyncio.StreamWriter) -> None:
    """What was written goes out before the end: an abort would take it along."""
    writer.close()
    await writer.wait_closed()


# --- the process ----------------------------------------------------------------------------------------


async def _serve(described: dict[str, dict[str, Any]]) -> None:
    links = {name: Link(**values) for name, values in described.items()}
    for link in links.values():
        await link.listen()
    _tell({name: link.port for name, link in links.items()})
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        order = json.loads(line)
        link = links[order.pop("link")]
        match order.pop("do"):
            case "set":
                await link.set(**order)
                _tell(dict(link.hits))
            case "lead_to":
                link.lead_to(**order)
                _tell(dict(link.hits))
            case "cut":
                _tell({"cut": link.cut()})
            case "hits":
                _tell(dict(link.hits))


def _tell(answer: dict[str, int]) -> None:
    print(json.dumps(answer), flush=True)


class Proxy:
    """The proxy's process, and its links by name; may be used by several threads.

    `links`: name -> protocol, port to listen on (0: any), port to lead to. Start it from a thread that
    lives as long as it is to.
    """

    def __init__(self, links: dict[str, tuple[Protocol, int, int]]) -> None:
        described = {
            name: {"protocol": protocol, "port": port, "to": to}
            for name, (protocol, port, to) in links.items()
        }
        self._turn = threading.Lock()
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__, "--parent", str(os.getpid()), json.dumps(described)],
            cwd=Path(__file__).parents[3],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.ports = self._answer()

    def set(self, link: str, mode: Mode, **options: float) -> dict[str, int]:
        """Change a link's mode; what it has hit so far."""
        return self._ask(link=link, do="set", mode=mode, **options)

    def hits(self, link: str) -> dict[str, int]:
        """How often each mode has taken effect."""
        return self._ask(link=link, do="hits")

    def cut(self, link: str) -> int:
        """Cut the link's connections; how many there were."""
        return self._ask(link=link, do="cut")["cut"]

    def lead_to(self, link: str, port: int) -> None:
        """Lead the link to another port."""
        self._ask(link=link, do="lead_to", port=port)

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, **order: Any) -> dict[str, int]:
        assert self._process.stdin is not None
        with self._turn:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
            return self._answer()

    def _answer(self) -> dict[str, int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the proxy has ended"
        answer: dict[str, int] = json.loads(line)
        return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parent", type=int, required=True)
    parser.add_argument("links")
    options = parser.parse_args()
    die_with_parent(options.parent)
    asyncio.run(_serve(json.loads(options.links)))


if __name__ == "__main__":
    main()
