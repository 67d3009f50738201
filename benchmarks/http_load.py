"""Posts prepared requests over a few connections that are kept, and times each answer."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import orjson

_LENGTH = re.compile(rb"content-length: (\d+)", re.IGNORECASE)


def prepare(path: str, body: Any) -> bytes:
    """One request, complete."""
    data = orjson.dumps(body)
    head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(data)}\r\n\r\n".encode() + data


class Connection:
    """One connection that is kept."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def post(self, request: bytes) -> bytes:
        """The answer's body; AssertionError unless it was accepted."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = _LENGTH.search(head)
        assert length is not None, head
        body = await self._reader.readexactly(int(length[1]))
        assert head.startswith(b"HTTP/1.1 202"), head + body
        return body

    async def close(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


async def _connect(url: str, count: int) -> list[Connection]:
    parts = urlsplit(url)
    return [Connection(*await asyncio.open_connection(parts.hostname, parts.port)) for _ in range(count)]


def post_all(url: str, requests: Sequence[bytes], connections: int) -> tuple[float, list[bytes]]:
    """Post them as fast as they are answered; seconds from the first to the last answer, and the bodies."""

    async def main() -> tuple[float, list[bytes]]:
        opened = await _connect(url, connections)
        waiting = iter(requests)
        bodies: list[bytes] = []

        async def work(connection: Connection) -> None:
            for request in waiting:
                bodies.append(await connection.post(request))

        begun = time.perf_counter()
        await asyncio.gather(*map(work, opened))
        elapsed_s = time.perf_counter() - begun
        for connection in opened:
            await connection.close()
        return elapsed_s, bodies

    return asyncio.run(main())


def post_at_rate(url: str, requests: Sequence[bytes], per_s: int, connections: int) -> list[float]:
    """Post them at this rate, whether or not they are answered; ms from each one's time to its answer."""

    async def main() -> list[float]:
        free: asyncio.Queue[Connection] = asyncio.Queue()
        for connection in await _connect(url, connections):
            free.put_nowait(connection)
        times: list[float] = []

        async def one(request: bytes, due: float) -> None:
            connection = await free.get()
            await connection.post(request)
            times.append((time.perf_counter() - due) * 1000)
            free.put_nowait(connection)

        begun = time.perf_counter()
        tasks = []
        for number, request in enumerate(requests):
            due = begun + number / per_s
            if (pause := due - time.perf_counter()) > 0:
                await asyncio.sleep(pause)
            tasks.append(asyncio.create_task(one(request, due)))
        await asyncio.gather(*tasks)
        while not free.empty():
            await free.get_nowait().close()
        return times

    return asyncio.run(main())
