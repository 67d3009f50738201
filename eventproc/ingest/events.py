"""Posted events: from the request's JSON to the records that Kafka is given."""

from __future__ import annotations

from typing import Any, Literal

from eventproc.broker.publisher import Outgoing
from eventproc.clock import Clock
from eventproc.event import Invalid, Validator, json_type
from eventproc.ingest import strict_json
from eventproc.ingest.ids import IdMaker
from eventproc.ingest.refusal import Refusal
from eventproc.settings import Settings

MAX_BATCH = 1000

State = Literal["", "accepted", "invalid", "rate_limited", "failed"]


class Posted:
    """One event of a request, and what became of it. An invalid one has an `error` and no id."""

    __slots__ = ("document", "error", "id", "key", "state", "user", "value")

    def __init__(self, document: dict[str, Any], id: str, user: str, key: bytes, value: bytes) -> None:
        self.document = document
        self.id = id
        self.user = user
        self.key = key
        self.value = value
        self.state: State = ""
        self.error = ""

    def record(self) -> Outgoing:
        """Its Kafka record (CONTRACT section 2)."""
        kind = self.document["type"].encode()
        return Outgoing(self.key, self.value, [("event-id", self.id.encode()), ("event-type", kind)])

    def result(self) -> dict[str, Any]:
        """Its place in the answer to a batch."""
        found: dict[str, Any] = {"eventId": self.id or None, "status": self.state}
        if self.error:
            found["error"] = self.error
        return found


class EventReader:
    """Reads events, by the rules that the workers go by."""

    def __init__(self, settings: Settings, clock: Clock, ids: IdMaker) -> None:
        self._validator = Validator(settings.kafka_topic, settings.max_event_bytes)
        self._clock = clock
        self._ids = ids

    def read_one(self, body: bytes) -> Posted:
        """The event that is the body. Raises Refusal (400)."""
        document, marked = strict_json.loads(body)
        posted = self._read(document, marked, self._clock.wall_ms())
        if posted.error:
            raise Refusal(400, posted.error)
        return posted

    def read_batch(self, body: bytes) -> list[Posted]:
        """The events in the body, valid or not, in order. Raises Refusal (400) when it is no batch."""
        document, marked = strict_json.loads(body)
        if not isinstance(document, dict):
            raise Refusal(400, f"body must be a JSON object, not {json_type(document)}")
        if strict_json.is_doubled(document):
            raise Refusal(400, strict_json.fault(document))
        events = document.get("events")
        if type(events) is not list:
            raise Refusal(400, f"events must be an array, not {json_type(events)}")
        if not 1 <= len(events) <= MAX_BATCH:
            raise Refusal(400, f"events has {len(events)} elements, not 1 to {MAX_BATCH}")
        now_ms = self._clock.wall_ms()
        return [self._read(event, marked, now_ms) for event in events]

    def rename(self, posted: Posted, id: str) -> None:
        """Give a valid event another id: that of an earlier attempt."""
        if posted.id != id:
            posted.id = posted.document["id"] = id
            posted.value = self._validator.encode(posted.document, len(posted.key))

    def _read(self, document: Any, marked: bool, now_ms: int) -> Posted:
        try:
            if marked and (fault := strict_json.fault(document)):
                raise Invalid(fault)
            if type(document) is not dict:
                raise Invalid(f"an event must be a JSON object, not {json_type(document)}")
            if document.get("id") is None:
                document["id"] = self._ids.new()
            if document.get("payload") is None:
                document["payload"] = {}
            if document.get("timestamp") is None:
                document["timestamp"] = now_ms
            self._validator.check(document)
            user = document["userId"]
            key = user.encode()
            return Posted(document, document["id"], user, key, self._validator.encode(document, len(key)))
        except Invalid as error:
            posted = Posted({}, "", "", b"", b"")
            posted.state, posted.error = "invalid", str(error)
            return posted
