"""One partition's line to Redis: scripts are sent without waiting, replies are fetched by polling.

Every script is safe to replay, so the rule for all trouble is go-back-N: whatever is unanswered, from the
first request that failed, is sent again in order. Redis's own trouble (CONTRACT 4.10) is never raised: the
channel is down for as long as it lasts and tries again.
"""

from __future__ import annotations

import contextlib
import random
import re
import select
import socket
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import hiredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from eventproc.clock import Clock
from eventproc.effects import StoreReply, StoreRequest
from eventproc.errors import EventprocError, Transient
from eventproc.settings import Settings
from eventproc.store.address import connection_options, describe
from eventproc.store.scripts import ScriptSet, decode, script_error

#: Error replies that tell of the server's state, not of the call. Redis before 7 wraps a script's errors.
_TROUBLE = re.compile(
    r"(?:^|[-: ])(OOM|READONLY|NOREPLICAS|BUSY|MISCONF|LOADING|MASTERDOWN|NOAUTH|NOPERM|WRONGPASS"
    r"|CLUSTERDOWN|TRYAGAIN)\b|(The user executing the script can't)"
)
#: Error replies that the scripts make themselves; key names in them may look like anything.
_OF_SCRIPTS = ("FOREIGN ", "SCHEMA ")
#: After these the next attempt is made on a new connection: another server or other rights may answer.
_RECONNECT = frozenset({"READONLY", "MASTERDOWN", "NOAUTH", "NOPERM", "WRONGPASS", "CLUSTERDOWN"})
#: These do not pass by themselves: somebody has to change the server or the settings.
_REFUSALS = frozenset({"OOM", "READONLY", "NOREPLICAS", "MISCONF", "NOAUTH", "NOPERM", "WRONGPASS"})

_BACKOFF_MIN_MS = 50
_BACKOFF_MAX_MS = 2000
_CONNECT_TIMEOUT_MS = 2000
_RECEIVE_BYTES = 1 << 18


@dataclass(eq=False)
class _Pending:
    request: StoreRequest
    script: str
    packed: bytes


#: What the next reply on the wire belongs to: a request, a SCRIPT LOAD, or one sent again since.
_Expected = _Pending | Literal["load", "ignore"]


class Channel:
    """Submits store requests to Redis in order and hands out their replies in the same order.

    `up` tells whether the last thing that happened was an answer; `down_since_ms` (monotonic, -1 when up),
    `outages` (how often it went down), `errors` (how often trying failed), `last_error` (never with a
    password) and `refused` (the last error does not pass by itself) are for status and for timers that must
    not count an outage. Not thread-safe.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        partition: int,
        clock: Clock,
        *,
        jitter: Callable[[], float] = random.random,
    ) -> None:
        self.scripts = ScriptSet(settings, topic, partition)
        self.outages = 0
        self.errors = 0
        self.last_error = ""
        self.refused = False
        self._settings = settings
        self._clock = clock
        self._jitter = jitter
        self._timeout_ms = settings.redis_timeout_ms
        self._where = describe(settings)
        self._connection: redis.connection.AbstractConnection | None = None
        self._socket: socket.socket | None = None
        self._poller: select.poll | None = None  # for replies
        self._reader = hiredis.Reader()
        self._unsent = bytearray()
        self._pending: deque[_Pending] = deque()
        self._expected: deque[_Expected] = deque()
        self._done: deque[tuple[StoreRequest, StoreReply] | EventprocError] = deque()
        self._failing = False
        self.down_since_ms = clock.monotonic_ms()
        self._retry_at_ms = 0
        self._backoff_ms = _BACKOFF_MIN_MS
        self._progress_ms = 0
        self._loads_in_row = 0

    @property
    def up(self) -> bool:
        """Connected, and no trouble since the last answer."""
        return self.down_since_ms < 0

    def silent_ms(self) -> int:
        """For how long an answer has been waited for; 0 when none is."""
        if not self._expected or self._failing:
            return 0
        return self._clock.monotonic_ms() - self._progress_ms

    def pending(self) -> int:
        """Requests whose reply `poll` has not returned."""
        return len(self._pending) + len(self._done)

    def fileno(self) -> int:
        """The socket, for select and poll; -1 while there is none."""
        return self._socket.fileno() if self._socket is not None else -1

    def submit(self, request: StoreRequest) -> None:
        """Send a request with the next `flush` or `poll`, or once the channel is up again.

        Never raises for trouble with Redis.
        """
        call = self.scripts.encode(request)
        item = _Pending(request, call.script, call.packed)
        self._pending.append(item)
        if self._socket is not None and not self._failing:
            self._send(item)
        elif self._due():
            self._recover()

    def flush(self) -> None:
        """Write as much as the socket takes."""
        if self._socket is None or not self._unsent:
            return
        try:
            while self._unsent:
                sent = self._socket.send(self._unsent)
                del self._unsent[:sent]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            return
        except OSError as error:
            self._went_down(f"Redis at {self._where}: {error}", reconnect=True)

    def poll(self, timeout_ms: float = 0) -> list[tuple[StoreRequest, StoreReply]]:
        """Replies that have come, in the order of their requests; waits for the first up to `timeout_ms`.

        Also reconnects and sends again when that is due, so call it while nothing is expected, too.
        Raises ConfigError or EventprocError for an error of the script itself; that request is gone then.
        """
        if not self._done:
            deadline = self._clock.monotonic_ms() + timeout_ms
            self._work(timeout_ms)
            while not self._done:
                left = deadline - self._clock.monotonic_ms()
                if left <= 0:
                    break
                self._work(left)
        replies: list[tuple[StoreRequest, StoreReply]] = []
        while self._done:
            done = self._done[0]
            if isinstance(done, EventprocError):
                if not replies:
                    self._done.popleft()
                    raise done
                break
            replies.append(done)
            self._done.popleft()
        return replies

    def call(self, request: StoreRequest, timeout_ms: float | None = None) -> StoreReply:
        """Submit one request and wait for its reply; for callers that do nothing else meanwhile.

        Raises Transient if there is none within `timeout_ms` (default: the setting `redis_timeout_ms`);
        the request is forgotten then, though it may have been carried out.
        """
        assert not self.pending(), "call() among pending requests"
        self.submit(request)
        wait_ms = self._timeout_ms if timeout_ms is None else timeout_ms
        deadline = self._clock.monotonic_ms() + wait_ms
        while True:
            left = deadline - self._clock.monotonic_ms()
            replies = self.poll(max(left, 0))
            if replies:
                return replies[0][1]
            if left <= 0:
                self._pending.clear()
                self.close()
                raise Transient(self.last_error or f"no answer from Redis at {self._where} in {wait_ms:g} ms")

    def close(self) -> None:
        """Close the connection; pending requests stay and would be sent again by `poll`."""
        self._disconnect()

    # --- going down and up ------------------------------------------------------------------------

    def _due(self) -> bool:
        return self._clock.monotonic_ms() >= self._retry_at_ms

    def _went_down(self, error: str, *, reconnect: bool, refused: bool = False) -> None:
        self.errors += 1
        self.last_error = error
        self.refused = refused
        now_ms = self._clock.monotonic_ms()
        if self.down_since_ms < 0:
            self.down_since_ms = now_ms
            self.outages += 1
        self._failing = True
        self._retry_at_ms = now_ms + int(self._backoff_ms * (0.5 + self._jitter() / 2))
        self._backoff_ms = min(self._backoff_ms * 2, _BACKOFF_MAX_MS)
        if reconnect:
            self._disconnect()
        else:
            self._expected = deque(["ignore"] * len(self._expected))

    def _came_up(self) -> None:
        self.down_since_ms = -1
        self._backoff_ms = _BACKOFF_MIN_MS
        self._retry_at_ms = 0
        self._loads_in_row = 0

    def _recover(self) -> None:
        """Connect if need be, and send everything unanswered again."""
        if self._socket is None and not self._connect():
            return
        self._failing = False
        self._send_again()
        self.flush()

    def _send_again(self) -> None:
        self._expected = deque(["ignore"] * len(self._expected))
        self._progress_ms = self._clock.monotonic_ms()  # what is sent now has its full time to be answered
        for script in self.scripts.scripts.values():
            self._unsent += hiredis.pack_command(("SCRIPT", "LOAD", script.source))  # type: ignore[arg-type]
            self._expected.append("load")
        for item in self._pending:
            self._send(item)

    def _connect(self) -> bool:
        try:
            options = connection_options(self._settings)
            kind = options.pop("connection_class", redis.Connection)
            timeout_s = min(self._timeout_ms, _CONNECT_TIMEOUT_MS) / 1000
            options |= {
                "socket_timeout": timeout_s,
                "retry": Retry(NoBackoff(), 0),
                "protocol": 2,
                "health_check_interval": 0,
            }
            if not issubclass(kind, redis.UnixDomainSocketConnection):
                options["socket_connect_timeout"] = timeout_s
            connection = kind(**options)
            connection.connect()
        except (redis.RedisError, OSError, EventprocError) as error:
            refused = isinstance(error, redis.AuthenticationError | redis.exceptions.NoPermissionError)
            self._went_down(f"Redis at {self._where}: {error}", reconnect=True, refused=refused)
            return False
        # From here on the socket is read and written by this class alone.
        self._connection = connection
        self._socket = connection._sock
        assert self._socket is not None
        self._socket.setblocking(False)
        self._reader = hiredis.Reader()
        self._unsent.clear()
        self._expected.clear()
        return True

    def _disconnect(self) -> None:
        if self._connection is not None:
            with contextlib.suppress(redis.RedisError, OSError):
                self._connection.disconnect()  # type: ignore[no-untyped-call]
        self._connection = self._socket = self._poller = None
        self._unsent.clear()
        self._expected.clear()
        self._failing = True

    # --- the wire ---------------------------------------------------------------------------------

    def _send(self, item: _Pending) -> None:
        if not self._expected:
            self._progress_ms = self._clock.monotonic_ms()
        self._unsent += item.packed
        self._expected.append(item)

    def _work(self, wait_ms: float) -> None:
        """Recover if due; write; read what is there, waiting for it up to `wait_ms`."""
        now_ms = self._clock.monotonic_ms()
        if self._socket is None or self._failing:
            if self._due():
                self._recover()
                return
            wait_ms = min(wait_ms, self._retry_at_ms - now_ms)
        if self._socket is None:
            if wait_ms > 0:
                self._clock.sleep_ms(wait_ms)
            return
        self.flush()
        if self._socket is None:
            return
        if self._expected and not self._failing:
            wait_ms = min(wait_ms, max(self._progress_ms + self._timeout_ms - now_ms, 0))
        if self._receive(wait_ms):
            self._progress_ms = self._clock.monotonic_ms()
            self._take_replies()
        elif self._expected and not self._failing:
            silent_ms = self._clock.monotonic_ms() - self._progress_ms
            if silent_ms >= self._timeout_ms:
                self._went_down(f"Redis at {self._where}: no answer for {silent_ms} ms", reconnect=True)

    def _receive(self, wait_ms: float) -> bool:
        """Feed the parser with what has come; false if nothing has (or the connection is lost)."""
        assert self._socket is not None
        poller = self._poller
        if poller is None or self._unsent:
            poller = select.poll()
            poller.register(self._socket, select.POLLIN | (select.POLLOUT if self._unsent else 0))
            self._poller = poller if not self._unsent else None
        there = poller.poll(max(wait_ms, 0))
        for _, event in there:
            if event & select.POLLOUT:
                self.flush()
        return self._drain_socket() if there and self._socket is not None else False

    def _drain_socket(self) -> bool:
        received = False
        while self._socket is not None:
            try:
                data = self._socket.recv(_RECEIVE_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                break
            except OSError as error:
                self._went_down(f"Redis at {self._where}: {error}", reconnect=True)
                return False
            if not data:
                self._went_down(f"Redis at {self._where} closed the connection", reconnect=True)
                return False
            received = True
            self._reader.feed(data)
            if len(data) < _RECEIVE_BYTES and not isinstance(self._socket, ssl.SSLSocket):
                break
        return received

    def _take_replies(self) -> None:
        while True:
            try:
                reply: Any = self._reader.gets()
            except hiredis.ProtocolError as error:
                self._went_down(f"Redis at {self._where}: {error}", reconnect=True)
                return
            if reply is False:
                return
            if not self._expected:
                # Only pushed or stray data comes unasked.
                self._went_down(f"Redis at {self._where} sent an unexpected reply", reconnect=True)
                return
            expected = self._expected.popleft()
            if isinstance(expected, str):
                if expected == "load" and isinstance(reply, hiredis.ReplyError):
                    self._error(str(reply), None)
                elif expected == "load" and not self._pending and "load" not in self._expected:
                    self._came_up()
            elif isinstance(reply, hiredis.ReplyError):
                self._error(str(reply), expected)
            else:
                self._came_up()
                self._pending.popleft()
                self._done.append((expected.request, decode(expected.request, reply)))
            if self._socket is None:
                return

    def _error(self, message: str, item: _Pending | None) -> None:
        """An error reply to `item` (always the first pending one), or to a SCRIPT LOAD."""
        trouble = None if message.startswith(_OF_SCRIPTS) else _TROUBLE.search(message)
        if trouble or item is None:
            code = trouble[1] or "NOPERM" if trouble else ""
            self._went_down(
                f"Redis at {self._where}: {message}",
                reconnect=item is None or code in _RECONNECT,
                refused=code in _REFUSALS,
            )
        elif message.startswith("NOSCRIPT"):
            self._loads_in_row += 1
            if self._loads_in_row > 3:
                self._went_down(f"Redis at {self._where} forgets its scripts: {message}", reconnect=True)
                return
            self._send_again()
            self.flush()
        else:
            self._pending.popleft()
            self._done.append(script_error(item.script, message))
