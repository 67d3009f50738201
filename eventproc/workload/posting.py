"""Sending a part of a workload through the HTTP ingest API."""

from __future__ import annotations

import http.client
import queue
import threading
from collections import Counter, deque
from collections.abc import Callable, Mapping
from typing import NamedTuple
from urllib.parse import urlsplit
from zlib import crc32

import orjson

from eventproc.broker.reading import TopicReader
from eventproc.clock import Clock
from eventproc.settings import Settings
from eventproc.workload.generate import Record

_BATCH = 500
_GATHER_MS = 20  # so that a paced workload comes in batches, too
_TIMEOUT_S = 30.0
_TRIES = 60
_NOT_THERE = "accepted by the API, but not in the topic"


class ApiShare(NamedTuple):
    """Where the API is, and what share of the users is posted there."""

    url: str
    share: float

    def takes(self, record: Record) -> bool:
        """Whether the record is to be posted, as all good ones of its user are."""
        if record.kind in ("invalid", "tombstone"):
            return False
        return crc32(record.key) % 1000 < self.share * 1000


class ApiPoster:
    """Posts records in batches from a thread of its own, in the order in which they were given.

    The API does not tell where in Kafka a record is: `settle` looks that up when all is sent.
    """

    def __init__(self, url: str, clock: Clock) -> None:
        self.failed: Counter[str] = Counter()
        self.acknowledged = 0
        self._host = urlsplit(url).netloc
        self._clock = clock
        self._queue: queue.Queue[tuple[int, Record] | None] = queue.Queue()
        self._accepted: dict[str, deque[tuple[int, int]]] = {}  # id -> number and time of each
        self._thread = threading.Thread(target=self._run, name="poster", daemon=True)
        self._thread.start()

    def post(self, number: int, record: Record) -> None:
        """Have it posted; `number` names it in `settle`."""
        self._queue.put((number, record))

    def flush(self) -> None:
        """Return when all that was given is answered."""
        self._queue.join()

    def close(self) -> None:
        """End the thread, after what it was given."""
        self._queue.put(None)
        self._thread.join()

    def settle(
        self,
        settings: Settings,
        ranges: Mapping[int, tuple[int, int]],
        on_acked: Callable[[int, int, int, int], None],
    ) -> None:
        """Find every accepted record in the topic: `on_acked(number, partition, offset, acked_ms)`.

        Copies of one id are told in the order in which they were given. Raises as `TopicReader` does.
        """
        if not self._accepted:
            return
        with TopicReader(settings, self._clock) as reader:
            for message in reader.read(settings.kafka_topic, ranges):
                id = dict(message.headers() or ()).get("event-id")
                waiting = self._accepted.get(id.decode()) if isinstance(id, bytes) else None
                if waiting:
                    number, acked_ms = waiting.popleft()
                    on_acked(number, message.partition() or 0, message.offset() or 0, acked_ms)
        self.failed[_NOT_THERE] += sum(map(len, self._accepted.values()))
        self.failed = +self.failed

    # --- the thread -----------------------------------------------------------------------------------

    def _run(self) -> None:
        connection = http.client.HTTPConnection(self._host, timeout=_TIMEOUT_S)
        ended = False
        while not ended:
            found = [self._queue.get()]
            if found[0] is not None:
                self._clock.sleep_ms(_GATHER_MS)
            while len(found) < _BATCH and found[-1] is not None and not self._queue.empty():
                found.append(self._queue.get())
            ended = found[-1] is None
            self._send(connection, [one for one in found if one is not None])
            for _ in found:
                self._queue.task_done()
        connection.close()

    def _send(self, connection: http.client.HTTPConnection, batch: list[tuple[int, Record]]) -> None:
        if not batch:
            return
        body = b'{"events":[' + b",".join(record.value or b"" for _, record in batch) + b"]}"
        try:
            results = self._answer(connection, body)
        except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
            connection.close()
            self.failed[f"the API did not answer: {error}"] += len(batch)
            return
        now_ms = self._clock.wall_ms()
        for (number, record), result in zip(batch, results, strict=True):
            if result["status"] == "accepted":
                self.acknowledged += 1
                self._accepted.setdefault(record.id, deque()).append((number, now_ms))
            else:
                self.failed[f"{result['status']} by the API: {result.get('error', '')}"] += 1

    def _answer(self, connection: http.client.HTTPConnection, body: bytes) -> list[dict[str, str]]:
        """The results of a batch. One that is refused for now (503: nothing was tried) is sent again."""
        for _ in range(_TRIES):
            connection.request("POST", "/events/batch", body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            data = answer.read()
            if answer.status == http.client.ACCEPTED:
                results: list[dict[str, str]] = orjson.loads(data)["results"]
                return results
            if answer.status != http.client.SERVICE_UNAVAILABLE:
                break
            self._clock.sleep_ms(1000 * int(answer.headers["retry-after"]))
        raise ValueError(f"status {answer.status}, {data.decode(errors='replace')}")
