"""The answers of CONTRACT section 9's table, and what is in Kafka afterwards."""

from __future__ import annotations

import json
import re

import pytest

from eventproc._reorder import partition_of
from eventproc.event import MAX_SEQ
from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import ApiServer, event
from tests.integration.ingest.conftest import StartApi


@pytest.mark.xdist_group("ingest_kafka")
def test_an_accepted_event_is_in_kafka_as_the_contract_has_it(
    start_api: StartApi, broker: BrokerUnderTest
) -> None:
    api = start_api(broker)
    answer = api.post(event("u-1", id="order-1", payload={"seq": 1}, timestamp=17, more=[1, "x"]))
    assert (answer.status, answer.json) == (202, {"eventId": "order-1", "status": "accepted"})
    (record,) = api.records()
    assert record.key() == b"u-1"
    assert record.partition() == partition_of("u-1", 2)
    assert record.headers() == [("event-id", b"order-1"), ("event-type", b"test")]
    assert json.loads(record.value() or b"") == {
        "id": "order-1",
        "userId": "u-1",
        "type": "test",
        "payload": {"seq": 1},
        "timestamp": 17,
        "more": [1, "x"],
    }


def test_a_batch_is_answered_in_input_order_and_keeps_each_users_order(
    shared_api: ApiServer, user: str
) -> None:
    events = [event(f"{user}-{n % 7}", id=f"{user}-e{n}") for n in range(500)]
    assert shared_api.results(events) == [{"eventId": one["id"], "status": "accepted"} for one in events]
    for number in range(7):
        assert shared_api.ids(f"{user}-{number}") == [one["id"] for one in events[number::7]]


class TestIds:
    def test_the_server_makes_one_when_none_is_given(self, shared_api: ApiServer) -> None:
        first, second = (shared_api.post(event("ids", **more)).json["eventId"] for more in ({}, {"id": None}))
        for id in (first, second):
            assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", id)
        assert first != second

    def test_no_two_of_a_batch_are_alike(self, shared_api: ApiServer) -> None:
        results = shared_api.results([event(f"ids-{n}") for n in range(1000)])
        assert len({result["eventId"] for result in results}) == 1000


def test_a_missing_payload_is_an_empty_one(shared_api: ApiServer, user: str) -> None:
    shared_api.results([event(user), event(user, payload=None), event(user, payload={})])
    found = shared_api.documents(user)
    assert [value["payload"] for value in found] == [{}] * 3
    assert all(isinstance(value["timestamp"], int) for value in found)


INVALID = [
    ([], "must be a JSON object, not an array"),
    ("x", "must be a JSON object, not a string"),
    ({"type": "t"}, "userId must be a string, not missing or null"),
    ({"userId": "u"}, "type must be a string, not missing or null"),
    (event(user=" "), "userId is blank"),
    (event(user=""), "userId is empty"),
    (event(user="u" * 257), "userId has 257 UTF-8 bytes"),
    (event(user="a\r\nb"), "userId holds a control character"),
    (event(user="a\0b"), "userId holds a control character"),
    (event(user="ip:1.2.3.4"), "userId 'ip:1.2.3.4' is reserved"),
    (event(id="list"), "id 'list' is reserved"),
    (event(id=7), "id must be a string, not an integer"),
    (event(id="a\nb"), "id holds a control character"),
    (event(payload=[]), "payload must be an object, not an array"),
    (event(payload={"seq": 1.0}), "payload.seq must be an integer, not a float"),
    (event(payload={"seq": True}), "payload.seq must be an integer, not a boolean"),
    (event(payload={"seq": "1"}), "payload.seq must be an integer, not a string"),
    (event(payload={"seq": 0}), "payload.seq is 0"),
    (event(payload={"seq": MAX_SEQ + 1}), "payload.seq is 9007199254740992"),
    (event(payload={"seq": 2**64}), "payload.seq must be an integer, not a float"),
    (event(payload={"x": "y" * 900_000}), "more than max_event_bytes (900000)"),
]


@pytest.mark.parametrize(("body", "error"), INVALID, ids=[error for _, error in INVALID])
def test_what_is_invalid_is_told_by_field_and_rule(
    shared_api: ApiServer, user: str, body: object, error: str
) -> None:
    answer = shared_api.post(body)
    assert answer.status == 400
    assert error in answer.error
    good, bad, last = shared_api.results([event(user), body, event(user)])
    assert (good["status"], last["status"]) == ("accepted", "accepted")
    assert (bad["eventId"], bad["status"]) == (None, "invalid")
    assert error in bad["error"]


def test_nothing_that_is_invalid_reaches_kafka(shared_api: ApiServer, user: str) -> None:
    before = len(shared_api.records())
    bodies = [body for body, error in INVALID if "max_event_bytes" not in error]
    for body in bodies:
        assert shared_api.post(body).status == 400
    results = shared_api.results([event(user), *bodies, event(user)])
    assert [result["status"] for result in results[1:-1]] == ["invalid"] * len(bodies)
    assert len(shared_api.ids(user)) == 2
    assert len(shared_api.records()) == before + 2


SYNTAX = [
    (b'{"userId":"u","type":"t","userId":"v"}', "key 'userId' stands twice"),
    (b'{"userId":"u","type":"t","payload":{"a":{"x":1,"x":2}}}', "key 'x' stands twice"),
    (b'{"userId":"u:v","type":"t","payload":{"a:b":1,"a:b":2}}', "key 'a:b' stands twice"),
    (b'{"userId":"u","type":"t","payload":{"n":NaN}}', "NaN is no JSON number"),
    (b'{"userId":"u","type":"t","payload":{"n":-Infinity}}', "-Infinity is no JSON number"),
    (b'{"userId":"u","type":"t","payload":{"n":1e999}}', "1e999 is no JSON number"),
    (b'{"userId":"\\ud800","type":"t"}', "lone surrogate"),
    (b'{"userId":"u","type":"t","payload":{"s":"\\udfff"}}', "lone surrogate"),
    (b'{"userId":"u","type":"t","payload":' + b'{"a":' * 64 + b"1" + b"}" * 65, "nested deeper than 64"),
    (b'{"userId":"u","type":"t","payload":' + b'{"a":' * 400 + b"1" + b"}" * 401, "nested deeper than 64"),
]


@pytest.mark.parametrize(("body", "error"), SYNTAX, ids=[body[:60].decode() for body, _ in SYNTAX])
def test_json_that_others_may_read_otherwise_is_refused_and_spoils_no_batch(
    shared_api: ApiServer, body: bytes, error: str
) -> None:
    answer = shared_api.post(body)
    assert answer.status == 400
    assert error in answer.error
    good = json.dumps(event("colons:in:it", payload={"a:b": "c:d"})).encode()
    batch = shared_api.post(b'{"events":[' + b",".join((good, body, good)) + b"]}", "/events/batch")
    assert batch.status == 202
    results = batch.json["results"]
    assert [result["status"] for result in results] == ["accepted", "invalid", "accepted"]
    assert error in results[1]["error"]


NO_BATCH = [
    (b"", "body is not JSON"),
    (b"{", "body is not JSON"),
    (b'{"events":[]}\xff', "body is not JSON"),
    (b"[" * 100_000, "body is"),
    (b"[]", "body must be a JSON object, not an array"),
    (b"{}", "events must be an array, not missing or null"),
    (b'{"events":{}}', "events must be an array, not an object"),
    (b'{"events":[]}', "events has 0 elements, not 1 to 1000"),
    (b'{"events":[' + b",".join([b"1"] * 1001) + b"]}", "events has 1001 elements, not 1 to 1000"),
    (b'{"events":[1],"events":[2]}', "key 'events' stands twice"),
]


@pytest.mark.parametrize(("body", "error"), NO_BATCH, ids=[error for _, error in NO_BATCH])
def test_what_is_no_batch_is_refused_as_a_whole(shared_api: ApiServer, body: bytes, error: str) -> None:
    answer = shared_api.post(body, "/events/batch")
    assert answer.status == 400
    assert error in answer.error


def test_a_batch_of_nothing_but_invalid_events_is_answered(shared_api: ApiServer) -> None:
    assert [result["status"] for result in shared_api.results([1, {}, []])] == ["invalid"] * 3


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nothing", 404), ("GET", "/events", 405), ("POST", "/health", 405), ("POST", "/events/", 404)],
)
def test_other_paths_and_methods_are_json_errors(
    shared_api: ApiServer, method: str, path: str, status: int
) -> None:
    answer = shared_api.request(method, path)
    assert answer.status == status
    assert answer.error
    assert ("allow" in answer.headers) == (status == 405)


def test_health_ready_and_the_description(shared_api: ApiServer) -> None:
    assert shared_api.get("/health").json == {"status": "alive"}
    ready = shared_api.get("/ready")
    assert ready.status == 200
    assert ready.json.items() >= {"ready": True, "kafka": "ok", "redis": "ok"}.items()
    assert shared_api.get("/openapi.json").json["openapi"] == "3.1.0"


def test_metrics_count_by_route_and_outcome(start_api: StartApi, embedded_broker: BrokerUnderTest) -> None:
    api = start_api(embedded_broker, rate_limit_per_user=1)
    api.post(event("a"))
    api.post(event("a"))
    api.post({})
    api.batch([event("a"), event("b"), {}])
    api.get("/nothing")
    assert api.metric("requests_total", route="/events", status="202") == 1
    assert api.metric("requests_total", route="/events", status="429") == 1
    assert api.metric("requests_total", route="/events", status="400") == 1
    assert api.metric("requests_total", route="/events/batch", status="202") == 1
    assert api.metric("requests_total", route="other", status="404") == 1
    assert api.metric("events_total", outcome="accepted") == 2
    assert api.metric("events_total", outcome="invalid") == 2
    assert api.metric("events_total", outcome="rate_limited") == 2
    assert api.metric("refused_total", reason="rate_limit") == 1
    assert api.metric("request_seconds_count", route="/events") == 3
    assert (api.metric("kafka_up"), api.metric("redis_up"), api.metric("queued")) == (1, 1, 0)


def test_request_ids_are_given_back_and_logged(shared_api: ApiServer) -> None:
    assert shared_api.get("/health", X_Request_Id="my-id-1").headers["x-request-id"] == "my-id-1"
    made = shared_api.get("/health", X_Request_Id="no good id").headers["x-request-id"]
    assert made != "no good id"
    answer = shared_api.post({}, X_Request_Id="my-id-2")
    assert answer.headers["x-request-id"] == "my-id-2"
    shared_api.logged("request_id=my-id-2")
    (line,) = [line for line in shared_api.log().splitlines() if "my-id-2" in line]
    for word in ("method=POST", "path=/events", "status=400", 'error="userId must be a string'):
        assert word in line
