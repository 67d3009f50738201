"""The control socket: one JSON line asks, JSON lines answer; the last one has `ok`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

from eventproc.errors import EventprocError, UsageError

_MAX_LINE_BYTES = 1 << 20
_CONNECT_TIMEOUT_S = 5.0

#: Answers to one request, in order. May raise EventprocError.
Answers = AsyncIterator[dict[str, Any]]


class ControlServer:
    """Serves the control socket of a running supervisor."""

    def __init__(self, path: Path, answer: Callable[[dict[str, Any]], Answers]) -> None:
        self._path = path
        self._answer = answer
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen; a socket file left by a dead supervisor is replaced (the caller holds the lock)."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        mask = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._serve, self._path, limit=_MAX_LINE_BYTES)
        finally:
            os.umask(mask)

    async def close(self) -> None:
        """Stop listening and hang up; those who wait for the end of the supervisor learn it so."""
        if self._server is None:
            return
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            while line := await reader.readline():
                async for reply in self._replies(line):
                    writer.write(json.dumps(reply).encode() + b"\n")
                    await writer.drain()
        except (ConnectionError, ValueError, asyncio.CancelledError):
            pass  # the client has gone, has sent no line, or the supervisor ends
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _replies(self, line: bytes) -> Answers:
        try:
            request = json.loads(line)
            if not isinstance(request, dict):
                raise ValueError
        except ValueError:
            yield {"ok": False, "exit_code": UsageError.exit_code, "error": "not a JSON object"}
            return
        try:
            async for reply in self._answer(request):
                yield reply
        except EventprocError as error:
            yield {"ok": False, "exit_code": error.exit_code, "error": str(error)}


class ControlClient:
    """Talks to a running supervisor."""

    def __init__(self, path: Path) -> None:
        """Connect; EventprocError names the socket when nobody answers there."""
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(_CONNECT_TIMEOUT_S)
        try:
            self._socket.connect(str(path))
        except PermissionError:
            self._socket.close()
            raise EventprocError(f"control socket {path} belongs to another user") from None
        except OSError:
            self._socket.close()
            raise EventprocError(f"no supervisor is running for these settings (tried {path})") from None
        self._file = self._socket.makefile("rb")

    def ask(self, timeout_s: float, **request: Any) -> Iterator[dict[str, Any]]:
        """Send a request; yields every answer. EventprocError on a refusal, a hang-up or a timeout."""
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                line = self._file.readline()
                if not line:
                    raise EventprocError("the supervisor ended before it had answered")
                reply = json.loads(line)
                if reply.get("ok") is False:
                    raise _error(reply)
                yield reply
                if reply.get("ok"):
                    return
        except TimeoutError:
            raise EventprocError(
                f"the supervisor did not answer within {timeout_s:g} s ({self._path})"
            ) from None
        except ConnectionError:
            raise EventprocError("the supervisor ended before it had answered") from None

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait for the supervisor's end; False when it takes longer."""
        self._socket.settimeout(timeout_s)
        try:
            return self._file.read() == b""
        except ConnectionError:
            return True
        except TimeoutError:
            return False

    def close(self) -> None:
        self._file.close()
        self._socket.close()

    def __enter__(self) -> ControlClient:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()


def _error(reply: dict[str, Any]) -> EventprocError:
    message = str(reply.get("error", "refused"))
    return UsageError(message) if reply.get("exit_code") == UsageError.exit_code else EventprocError(message)
