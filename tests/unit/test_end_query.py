"""Asking for a partition's end: what an operator is told when Kafka refuses to answer."""

from __future__ import annotations

import logging
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from eventproc.broker.end_query import EndQuery
from eventproc.clock import SystemClock
from eventproc.settings import Settings


class Broker:
    """Answers each query with what `next` is: an offset, or an error's code."""

    def __init__(self) -> None:
        self.next: tuple[str, int] = ("offset", 0)

    def poll(self, _timeout_s: float) -> int:
        return 0

    def list_offsets(self, targets: dict[Any, Any], **_how: Any) -> dict[Any, Future[Any]]:
        future: Future[Any] = Future()
        kind, value = self.next
        if kind == "offset":
            future.set_result(SimpleNamespace(offset=value))
        else:
            future.set_exception(KafkaException(KafkaError(value)))
        return dict.fromkeys(targets, future)


@pytest.fixture
def broker(monkeypatch: pytest.MonkeyPatch) -> Broker:
    made = Broker()
    monkeypatch.setattr(EndQuery, "_connect", lambda _self: made)
    return made


def ask(query: EndQuery, times: int = 1) -> int | None:
    """The same question again and again, until it is answered."""
    answer = None
    for _ in range(times):
        query.request()
        answer = query.poll()
    return answer


def test_a_refusal_is_told_once_and_again_after_an_answer(
    broker: Broker, caplog: pytest.LogCaptureFixture
) -> None:
    query = EndQuery(Settings(kafka_topic="orders"), 3, SystemClock())
    broker.next = ("error", KafkaError.TOPIC_AUTHORIZATION_FAILED)
    with caplog.at_level(logging.WARNING, "eventproc"):
        assert ask(query, 5) is None
        assert len(caplog.messages) == 1
        assert caplog.messages[0].startswith("no gap can be closed: asking for the end")
        broker.next = ("offset", 17)
        assert ask(query) == 17
        broker.next = ("error", KafkaError.TOPIC_AUTHORIZATION_FAILED)
        assert ask(query, 5) is None
    assert len(caplog.messages) == 2
    assert {record.name for record in caplog.records} == {"eventproc.broker.end_query"}


def test_a_broker_that_is_away_is_no_refusal(broker: Broker, caplog: pytest.LogCaptureFixture) -> None:
    query = EndQuery(Settings(), 0, SystemClock())
    broker.next = ("error", KafkaError._TRANSPORT)
    with caplog.at_level(logging.WARNING, "eventproc"):
        assert ask(query, 5) is None
    assert not caplog.messages
