"""A slow, obvious worker for the checker's tests: applies a topic to Redis by the contract's rules."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import redis
from confluent_kafka import Consumer, Message, TopicPartition

from eventproc.broker.admin import Admin
from eventproc.broker.producer import DeadLetterProducer
from eventproc.broker.reading import TopicReader
from eventproc.clock import SystemClock
from eventproc.effects import Entry
from eventproc.event import Invalid, Validator
from eventproc.settings import Settings
from eventproc.workload import Workload, produce
from eventproc.workload.ledger import Line, read_ledger

CLOCK = SystemClock()


def lines_of(ledger: Path) -> list[Line]:
    """The records of a ledger."""
    return list(read_ledger(ledger).lines())


def commit(settings: Settings, offsets: dict[int, int]) -> None:
    """Commit these offsets to the group."""
    consumer = Consumer({**settings.kafka_client(), "group.id": settings.kafka_group_id})
    targets = [TopicPartition(settings.kafka_topic, number, offset) for number, offset in offsets.items()]
    consumer.commit(offsets=targets, asynchronous=False)
    consumer.close()


@dataclass
class _User:
    expected: int = 1
    last: int = 0
    parked: dict[int, tuple[Message, dict[str, Any]]] = field(default_factory=dict)


class World:
    """A topic with a workload in it, its ledger, the state a right worker leaves, and the handler's runs."""

    def __init__(self, settings: Settings, client: redis.Redis, workload: Workload, folder: Path) -> None:
        self.settings = settings
        self.redis = client
        self.ledger = folder / "ledger"
        self.runs = folder / "runs"
        self.runs.mkdir()
        self.main_end: dict[int, int] = {}
        self._users: dict[str, _User] = {}
        self._letters = DeadLetterProducer(settings)
        self._validator = Validator(settings.kafka_topic, settings.max_event_bytes)
        self._lines: list[str] = []
        produce(settings, workload, self.ledger, before_late=self._before_late)
        self.apply()

    def lines(self) -> list[Line]:
        """The ledger."""
        return lines_of(self.ledger)

    def marks(self) -> dict[int, tuple[int, int]]:
        with Admin(self.settings) as admin:
            return admin.watermarks(self.settings.kafka_topic)

    def _before_late(self) -> None:
        self.main_end = {number: high for number, (_low, high) in self.marks().items()}

    # --- the worker -----------------------------------------------------------------------------------

    def apply(self) -> None:
        """Process the whole topic; leave Redis, the dead-letter topic and the commits as when idle."""
        marks = self.marks()
        with TopicReader(self.settings) as reader:
            for number, mark in marks.items():
                self._users, self._lines = {}, []
                for message in reader.read(self.settings.kafka_topic, {number: mark}):
                    if message.offset() == self.main_end.get(number):
                        self._close_gaps()
                    self._take(message)
                self._close_gaps()
                (self.runs / f"{number}.runs").write_text("".join(self._lines))
                self.redis.hset(
                    f"partition:{self.settings.kafka_topic}:{number}",
                    mapping={
                        "epoch": 1,
                        "owner": "reference",
                        "rev": 1,
                        "seen_ms": CLOCK.wall_ms(),
                        "offset": mark[1],
                        "unfinalized": 0,
                        "schema": 1,
                    },
                )
        assert self._letters.flush(10)
        assert all(fate is None for _, fate in self._letters.poll())
        self._letters.close()
        commit(self.settings, {number: high for number, (_low, high) in marks.items()})

    def _take(self, message: Message) -> None:
        value = message.value()
        if value is None:
            return
        try:
            document = self._validator.decode(value, len(value) + len(message.key() or b""))
            seq = self._validator.check(document)
        except Invalid as problem:
            self._letter(message, self._position_id(message), "invalid", str(problem), 0, "", 0)
            return
        user = self._users.setdefault(document["userId"], _User())
        if not seq:
            self._handle(message, document)
        elif seq < user.expected:
            self._below(message, document)
        elif seq in user.parked:
            if user.parked[seq][1]["id"] != document["id"]:
                self._below(message, document)
        else:
            user.parked[seq] = (message, document)
            self._release(user)

    def _release(self, user: _User) -> None:
        while user.expected in user.parked:
            message, document = user.parked.pop(user.expected)
            if self._handle(message, document):
                self.redis.rpush(f"order:{document['userId']}", user.expected)
                user.last = user.expected
            user.expected += 1
            self._write_next(document["userId"], user)

    def _close_gaps(self) -> None:
        for name, user in self._users.items():
            while user.parked:
                last = min(user.parked) - 1
                entry = f"{user.expected}-{last}:timeout:{CLOCK.wall_ms()}"
                self.redis.rpush(f"gaps:{name}", entry)
                user.expected = last + 1
                self._release(user)

    def _write_next(self, name: str, user: _User) -> None:
        if user.expected > user.last + 1:
            self.redis.set(f"next:{name}", user.expected)
        else:
            self.redis.delete(f"next:{name}")

    def _handle(self, message: Message, document: dict[str, Any]) -> bool:
        """Whether the seq takes a place in the order."""
        if self._is_final(message, document):
            return False
        id, user, seq = document["id"], document["userId"], document["payload"].get("seq", 0)
        fail = bool(document["payload"].get("fail"))
        attempts = self.settings.max_attempts if fail else 1
        for attempt in range(1, attempts + 1):
            self._lines.append(f"{user}\t{seq}\t{id}\t{attempt}\t{'fail' if fail else 'ok'}\n")
        if fail:
            self._finish(message, document, "failed", attempts, "payload.fail is true", "handler")
        else:
            self._finish(message, document, "processed", attempts)
        return not fail

    def _below(self, message: Message, document: dict[str, Any]) -> None:
        if self._is_final(message, document):
            return
        seq = document["payload"]["seq"]
        ledger: Any = self.redis.lrange(f"gaps:{document['userId']}", 0, -1)
        spans = [entry.split(b":")[0].split(b"-") for entry in ledger]
        late = any(int(first) <= seq <= int(last) for first, last in spans)
        reason = "late" if late else "stale"
        self._finish(message, document, "skipped", 0, f"seq {seq} is {reason}", reason)

    def _is_final(self, message: Message, document: dict[str, Any]) -> bool:
        """Final already: a duplicate, or an id_conflict, which is dead-lettered."""
        found: Any = self.redis.hmget(f"event:{document['id']}", "userId", "seq")
        if found[0] is None:
            return False
        user, seq = found[0].decode(), int(found[1] or 0)
        if (user, seq) != (document["userId"], document["payload"].get("seq", 0)):
            text = f"the id is final under user {user} seq {seq}"
            id = self._position_id(message)
            self._letter(
                message,
                id,
                "id_conflict",
                text,
                0,
                document["userId"],
                document["payload"].get("seq", 0),
            )
        return True

    def _finish(
        self,
        message: Message,
        document: dict[str, Any],
        status: str,
        attempts: int,
        error: str = "",
        reason: str = "",
    ) -> None:
        id, user, seq = document["id"], document["userId"], document["payload"].get("seq", 0)
        fields: Any = {
            "status": status,
            "processedAt": CLOCK.wall_ms(),
            "attempts": attempts,
            "userId": user,
            "type": document["type"],
        }
        if seq:
            fields["seq"] = seq
        if status != "processed":
            fields |= {"error": error, "partition": message.partition(), "offset": message.offset()}
        self.redis.hset(f"event:{id}", mapping=fields)
        self.redis.set(f"dedup:{id}", 1)
        if reason:
            self._letter(message, id, reason, error, attempts, user, seq)

    def _letter(
        self, message: Message, id: str, reason: Any, error: str, attempts: int, user: str, seq: int
    ) -> None:
        self.redis.hset(
            f"dlq:{id}",
            mapping={
                "eventId": id,
                "attempts": attempts,
                "error": error,
                "queuedAt": CLOCK.wall_ms(),
                "reason": reason,
                "userId": user,
                "seq": seq or "",
                "topic": self.settings.kafka_topic,
                "partition": message.partition() or 0,
                "offset": message.offset() or 0,
                "raw": message.value() or b"",
            },
        )
        self.redis.rpush("dlq:list", id)
        self.dead_letter(message, reason, attempts, error)

    def dead_letter(self, message: Any, reason: Any, attempts: int, error: str = "") -> None:
        """Put a record into the dead-letter topic."""
        offset = message.offset()
        assert offset is not None
        entry = Entry(offset, message, "", reason=reason, error=error, attempts=attempts)
        self._letters.send(entry, (self.settings.kafka_topic, message.partition() or 0))

    def _position_id(self, message: Message) -> str:
        return f"{self.settings.kafka_topic}-{message.partition()}-{message.offset()}"
