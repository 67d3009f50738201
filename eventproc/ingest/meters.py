"""What the API counts, for /metrics."""

from __future__ import annotations

from typing import Protocol

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

from eventproc import __version__

_BUCKETS = (0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
OUTCOMES = ("accepted", "invalid", "rate_limited", "failed")
ROUTES = ("/events", "/events/batch", "/health", "/ready", "/metrics", "/openapi.json")


class Levels(Protocol):
    """What gauges are read from."""

    @property
    def backlog(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def held_bytes(self) -> int: ...
    @property
    def kafka_error(self) -> str: ...
    @property
    def redis_error(self) -> str: ...


class Meters:
    """Counters by route and outcome; a path that is no route counts as `other`."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "eventproc_api_requests", "requests answered", ["route", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "eventproc_api_request_seconds",
            "time from the request's head to its answer",
            ["route"],
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._refused = Counter(
            "eventproc_api_refused", "requests refused, by reason", ["reason"], registry=self.registry
        )
        self._events = Counter(
            "eventproc_api_events", "events, by what became of them", ["outcome"], registry=self.registry
        )
        self._in_flight = Gauge(
            "eventproc_api_requests_in_flight", "requests being answered", registry=self.registry
        )
        Info("eventproc_api_build", "what is running", registry=self.registry).info({"version": __version__})
        self._of_event = {outcome: self._events.labels(outcome) for outcome in OUTCOMES}
        self._of_route = {route: self._seconds.labels(route) for route in (*ROUTES, "other")}

    def watch(self, levels: Levels) -> None:
        """Show these levels as gauges, as they are at each scrape."""
        for name, help, read in (
            ("backlog", "records in the topic that are not final", lambda: levels.backlog),
            ("queued", "records not acknowledged by Kafka yet", lambda: levels.queued),
            ("held_bytes", "bodies of requests being answered, bytes", lambda: levels.held_bytes),
            ("kafka_up", "1 while Kafka answers", lambda: int(not levels.kafka_error)),
            ("redis_up", "1 while Redis answers", lambda: int(not levels.redis_error)),
        ):
            Gauge(f"eventproc_api_{name}", help, registry=self.registry).set_function(read)

    def begun(self) -> None:
        """A request has come."""
        self._in_flight.inc()

    def answered(self, route: str, status: int, elapsed_s: float) -> None:
        """It was answered."""
        self._in_flight.dec()
        route = route if route in self._of_route else "other"
        self._requests.labels(route, status).inc()
        self._of_route[route].observe(elapsed_s)

    def refused(self, reason: str) -> None:
        """A request was refused."""
        self._refused.labels(reason).inc()

    def events(self, outcome: str, count: int = 1) -> None:
        """Events had this outcome."""
        self._of_event[outcome].inc(count)
