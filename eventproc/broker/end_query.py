"""Asking for a partition's end offset without waiting: on a connection of its own, not behind a fetch."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from typing import Any

from confluent_kafka import IsolationLevel, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

from eventproc.broker.client import LATEST, LOG, check_config, client_config, explain, kafka_error
from eventproc.clock import Clock
from eventproc.errors import ConfigError
from eventproc.settings import Settings

_log = logging.getLogger(__name__)

_REQUEST_TIMEOUT_S = 5.0
_RETRY_MS = 100
_FAILURES_MAX = 3


class EndQuery:
    """The newest answer to "where does the partition end?".

    With what open transactions hold back: behind them may be records that have been acknowledged, and that
    come to be read once these have ended.

    Its client is made at the first question: most workers never see a gap. `alive` tells that a query
    asked after the last `forget` was answered.
    """

    def __init__(self, settings: Settings, partition: int, clock: Clock) -> None:
        self.alive = False
        self._settings = settings
        self._target = TopicPartition(settings.kafka_topic, partition)
        self._clock = clock
        self._client: AdminClient | None = None
        self._future: Future[Any] | None = None
        self._wanted = False
        self._answer: int | None = None
        self._asked_ms = -1
        self._failures = 0
        self._refusal = ""  # told already

    def request(self) -> None:
        """Ask; an answer to an earlier question does not count."""
        self._wanted, self._answer = True, None
        self._ask()

    def poll(self) -> int | None:
        """The answer to the last request, None while there is none. Asks again after a failure."""
        self.serve()
        if self._wanted and self._future is None and self._due(_RETRY_MS):
            self._ask()
        return self._answer

    def probe(self, interval_ms: int) -> None:
        """See whether the broker answers, at most every `interval_ms`."""
        if self._future is None and self._due(interval_ms):
            self._ask()

    def forget(self) -> None:
        """The broker may be away: only an answer to a new query counts as a sign of life."""
        self.alive = False
        self._future = None

    def serve(self) -> None:
        """Take in what the query under way has brought; cheap, never waits."""
        if self._client is None:
            return
        self._client.poll(0)
        if self._future is None or not self._future.done():
            return
        future, self._future = self._future, None
        try:
            end = future.result().offset
        except KafkaException as error:
            refusal = explain(
                kafka_error(error), "asking for the end", self._settings.kafka_bootstrap_servers
            )
            if isinstance(refusal, ConfigError) and self._wanted and str(refusal) != self._refusal:
                self._refusal = str(refusal)
                _log.warning("no gap can be closed: %s", refusal)
            self._failures += 1
            if self._failures >= _FAILURES_MAX:
                # after an outage a client may go on failing although its broker is back; a new one does not
                self._failures, self._client = 0, None
            return
        self._failures = 0
        self._refusal = ""
        self.alive = True
        if self._wanted:
            self._wanted, self._answer = False, end

    def close(self) -> None:
        """Drop the client."""
        self._client = self._future = None

    def _due(self, interval_ms: int) -> bool:
        return self._asked_ms < 0 or self._clock.monotonic_ms() - self._asked_ms >= interval_ms

    def _ask(self) -> None:
        if self._client is None:
            self._client = self._connect()
        self._asked_ms = self._clock.monotonic_ms()
        futures = self._client.list_offsets(
            {self._target: LATEST},
            isolation_level=IsolationLevel.READ_UNCOMMITTED,
            request_timeout=_REQUEST_TIMEOUT_S,
        )
        self._future = futures[self._target]

    def _connect(self) -> AdminClient:
        try:
            return AdminClient(client_config(self._settings, {}, {}), logger=LOG)
        except (KafkaException, ValueError, TypeError) as error:
            raise check_config(self._settings, error) from error
