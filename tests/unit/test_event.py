"""CONTRACT section 2: every rule of what is a valid event, at its boundaries."""

from __future__ import annotations

from typing import Any, cast

import orjson
import pytest

from eventproc.effects import Record
from eventproc.event import MAX_DEPTH, MAX_ID_BYTES, Event, Invalid, Validator, check_name, depth

NAMES = ("id", "userId", "type")


@pytest.fixture
def validator() -> Validator:
    return Validator("events", 900_000)


def document(**fields: Any) -> dict[str, Any]:
    """A valid document, with these fields instead."""
    return {"id": "e1", "userId": "u1", "type": "t", "payload": {}, "timestamp": 1} | fields


def without(field: str) -> dict[str, Any]:
    found = document()
    del found[field]
    return found


def told(validator: Validator, field: str, value: str) -> str:
    """What is wrong with the field, `""` if nothing is."""
    try:
        validator.check(document(**{field: value}))
    except Invalid as error:
        return str(error)
    return ""


# --- names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize(
    "value",
    [
        "a",
        " a",
        "a b",
        "Übermut",
        "名前",
        "😀",
        "a\u00a0b",
        "\u200b",
        "x" * MAX_ID_BYTES,
        "é" * (MAX_ID_BYTES // 2),
        "😀" * (MAX_ID_BYTES // 4),
        "-" * 200,
        '"\\',
    ],
)
def test_a_name_may_be_any_text_of_up_to_256_bytes(validator: Validator, field: str, value: str) -> None:
    assert validator.check(document(**{field: value})) == 0


@pytest.mark.parametrize("field", NAMES)
@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (None, "must be a string, not missing or null"),
        (7, "must be a string, not an integer"),
        (7.5, "must be a string, not a float"),
        (True, "must be a string, not a boolean"),
        (["a"], "must be a string, not an array"),
        ({"a": 1}, "must be a string, not an object"),
        ("", "is empty"),
        (" ", "is blank"),
        (" " * 10, "is blank"),
        ("\u00a0\u2003", "is blank"),
        ("x" * (MAX_ID_BYTES + 1), "has 257 UTF-8 bytes"),
        ("é" * (MAX_ID_BYTES // 2) + "x", "has 257 UTF-8 bytes"),
        ("😀" * (MAX_ID_BYTES // 4) + "x", "has 257 UTF-8 bytes"),
        ("a\ud800", "lone surrogate"),
        ("\udfffa", "lone surrogate"),
    ],
)
def test_a_name_that_breaks_a_rule_is_named_with_it(
    validator: Validator, field: str, value: object, rule: str
) -> None:
    with pytest.raises(Invalid, match=f"^{field} .*{rule}"):
        validator.check(document(**{field: value}))


@pytest.mark.parametrize("field", NAMES)
def test_a_name_must_be_there(validator: Validator, field: str) -> None:
    with pytest.raises(Invalid, match=f"{field} must be a string, not missing"):
        validator.check(without(field))


@pytest.mark.parametrize("field", NAMES)
def test_no_control_character_may_stand_in_a_name(validator: Validator, field: str) -> None:
    controls = {*range(0x20), *range(0x7F, 0xA0)}
    refused = {code for code in range(0x180) if told(validator, field, f"a{chr(code)}b")}
    assert refused == controls
    assert "control character" in told(validator, field, "a\x00b")


@pytest.mark.parametrize("id", ["list", "events-0-0", "events-7-123456789012345678901", "events-00-00"])
def test_ids_that_would_collide_with_keys_are_reserved(validator: Validator, id: str) -> None:
    with pytest.raises(Invalid, match=f"id '{id}' is reserved"):
        validator.check(document(id=id))


@pytest.mark.parametrize(
    "id",
    [
        "lists",
        "List",
        "events",
        "events-",
        "events-0",
        "events-0-",
        "events--0",
        "events-0-0-0",
        "events-a-0",
        "xevents-0-0",
        "events-0-0 ",
        "events-٣-0",  # a digit, but not of ours
        "other-0-0",
        "eventsx0-0",
    ],
)
def test_ids_that_only_look_like_reserved_ones_are_free(validator: Validator, id: str) -> None:
    assert validator.check(document(id=id)) == 0


def test_position_ids_are_reserved_for_this_topic_only_whatever_its_name() -> None:
    odd = Validator("a.b-c", 900_000)
    with pytest.raises(Invalid, match="reserved"):
        odd.check(document(id="a.b-c-0-0"))
    assert odd.check(document(id="aXb-c-0-0")) == 0
    assert odd.check(document(id="events-0-0")) == 0


@pytest.mark.parametrize("user", ["ip:", "ip:127.0.0.1", "ip:x"])
def test_user_ids_that_begin_with_ip_are_reserved(validator: Validator, user: str) -> None:
    with pytest.raises(Invalid, match="begins with 'ip:'"):
        validator.check(document(userId=user))


@pytest.mark.parametrize("user", ["ip", "IP:1", " ip:1", "list", "events-0-0"])
def test_other_user_ids_are_not_reserved(validator: Validator, user: str) -> None:
    assert validator.check(document(userId=user)) == 0


# --- payload, seq, timestamp --------------------------------------------------------------------------


@pytest.mark.parametrize("payload", [None, [], "x", 1, 1.5, True])
def test_the_payload_must_be_an_object(validator: Validator, payload: object) -> None:
    with pytest.raises(Invalid, match="payload must be an object"):
        validator.check(document(payload=payload))
    with pytest.raises(Invalid, match="missing"):
        validator.check(without("payload"))


@pytest.mark.parametrize("seq", [1, 2, 2**31, 2**53 - 1])
def test_a_seq_in_range_is_told(validator: Validator, seq: int) -> None:
    assert validator.check(document(payload={"seq": seq})) == seq


def test_without_a_seq_the_event_is_unsequenced(validator: Validator) -> None:
    assert validator.check(document(payload={"Seq": 3})) == 0


@pytest.mark.parametrize("seq", [0, -1, 2**53, 2**63, 2**64 - 1])
def test_a_seq_outside_its_range_is_invalid(validator: Validator, seq: int) -> None:
    with pytest.raises(Invalid, match=rf"payload.seq is {seq}, not in 1\.\.2\^53-1"):
        validator.check(document(payload={"seq": seq}))


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("true", "a boolean"),
        ("false", "a boolean"),
        ("1.0", "a float"),
        ("1e0", "a float"),
        ('"1"', "a string"),
        ("null", "null"),
        ("[1]", "an array"),
        ("{}", "an object"),
        ("18446744073709551616", "a float"),  # beyond 64 bits
        ("9" * 400, "."),
    ],
)
def test_a_seq_that_is_no_integer_is_invalid(validator: Validator, text: str, kind: str) -> None:
    value = b'{"id":"e","userId":"u","type":"t","payload":{"seq":%s}}' % text.encode()
    with pytest.raises(Invalid, match=kind):
        validator.check(validator.decode(value, len(value)))


@pytest.mark.parametrize("timestamp", [None, "yesterday", 1.5, True, [], -1, 0, 2**63])
def test_any_timestamp_or_none_will_do(validator: Validator, timestamp: object) -> None:
    assert validator.check(document(timestamp=timestamp)) == 0
    assert validator.check(without("timestamp")) == 0


def test_unknown_fields_are_kept(validator: Validator) -> None:
    value = orjson.dumps(document(extra={"a": [1]}))
    decoded = validator.decode(value, len(value))
    assert validator.check(decoded) == 0
    assert decoded["extra"] == {"a": [1]}


# --- the record ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "rule"),
    [
        (b"", "not JSON"),
        (b" ", "not JSON"),
        (b"{", "not JSON"),
        (b"{'id':1}", "not JSON"),
        (b'{"id":"e"} x', "not JSON"),
        (b"\xff\xfe{\x00}\x00", "not JSON"),  # UTF-16
        (b"\xef\xbb\xbf{}", "not JSON"),  # a byte order mark
        (b'{"id":"\xe9"}', "not JSON"),  # Latin-1
        (b'{"id":"\xed\xa0\x80"}', "not JSON"),  # a surrogate in UTF-8
        (b'{"id":"a\x00b"}', "not JSON"),
        (b'{"id":NaN}', "not JSON"),
        (b"[]", "must be a JSON object, not an array"),
        (b"null", "must be a JSON object, not missing or null"),
        (b'"x"', "must be a JSON object, not a string"),
        (b"7", "must be a JSON object, not an integer"),
        (b"7.5", "must be a JSON object, not a float"),
        (b"true", "must be a JSON object, not a boolean"),
    ],
)
def test_a_value_that_is_no_json_object_is_invalid(validator: Validator, value: bytes, rule: str) -> None:
    with pytest.raises(Invalid, match=rule):
        validator.decode(value, len(value))


@pytest.mark.parametrize("escape", [r"\ud800", r"\udfff", r"\ud800x", r"\udc00\ud800"])
@pytest.mark.parametrize("field", NAMES)
def test_a_lone_surrogate_written_as_an_escape_is_invalid(
    validator: Validator, field: str, escape: str
) -> None:
    value = orjson.dumps(document(**{field: "HERE"})).replace(b"HERE", escape.encode())
    with pytest.raises(Invalid):
        validator.check(validator.decode(value, len(value)))


@pytest.mark.parametrize("escape", [r"\u0000", r"\u001f", r"\u007f", r"\u009f", r"\n"])
def test_a_control_character_written_as_an_escape_is_invalid(validator: Validator, escape: str) -> None:
    value = orjson.dumps(document(id="a HERE")).replace(b"HERE", escape.encode())
    with pytest.raises(Invalid, match="control character"):
        validator.check(validator.decode(value, len(value)))


def test_a_pair_of_surrogates_written_as_escapes_is_one_character(validator: Validator) -> None:
    value = orjson.dumps(document(id="HERE")).replace(b"HERE", rb"\ud83d\ude00")
    decoded = validator.decode(value, len(value))
    assert validator.check(decoded) == 0
    assert decoded["id"] == "😀"


def test_of_duplicate_keys_the_last_counts(validator: Validator) -> None:
    value = b'{"id":"a","id":"b","userId":"u","type":"t","payload":{"seq":0,"seq":5}}'
    decoded = validator.decode(value, len(value))
    assert decoded["id"] == "b"
    assert validator.check(decoded) == 5


@pytest.mark.parametrize(("size", "valid"), [(99, True), (100, True), (101, False)])
def test_a_record_may_have_so_many_bytes_of_key_and_value_and_no_more(size: int, valid: bool) -> None:
    validator = Validator("events", 100)
    if valid:
        assert validator.decode(b"{}", size) == {}
        return
    with pytest.raises(Invalid, match=r"101 bytes, more than max_event_bytes \(100\)"):
        validator.decode(b"{}", size)


def nested(levels: int, form: str) -> bytes:
    """A JSON object that is that deep."""
    if form == "objects":
        return b'{"a":' * levels + b"1" + b"}" * levels
    if form == "empty":
        return b'{"a":' * (levels - 1) + b"{}" + b"}" * (levels - 1)
    return b'{"a":' + b"[" * (levels - 1) + b"]" * (levels - 1) + b"}"


@pytest.mark.parametrize("form", ["objects", "empty", "arrays"])
def test_json_may_be_64_deep_and_no_deeper(validator: Validator, form: str) -> None:
    value = nested(MAX_DEPTH, form)
    assert depth(validator.decode(value, len(value))) == MAX_DEPTH == 64
    for levels in (65, 1000, 100_000):
        value = nested(levels, form)
        with pytest.raises(Invalid, match=r"nested deeper than 64|not JSON"):
            validator.decode(value, len(value))


def test_many_brackets_side_by_side_are_not_deep(validator: Validator) -> None:
    value = b'{"a":[' + b",".join([b"[{}]"] * 1000) + b"]}"
    assert depth(validator.decode(value, len(value))) == 4
    value = orjson.dumps({"a": "{[" * 1000})
    assert depth(validator.decode(value, len(value))) == 1


@pytest.mark.parametrize(
    ("value", "levels"),
    [(1, 0), ("x", 0), (None, 0), ({}, 1), ([], 1), ({"a": 1}, 1), ([[], {}], 2), ({"a": [1, {"b": []}]}, 4)],
)
def test_depth_counts_containers(value: object, levels: int) -> None:
    assert depth(value) == levels


@pytest.mark.parametrize("name", ["a", "名"])
def test_a_good_name_passes_by_itself(name: str) -> None:
    check_name("field", name)


# --- what a handler is given --------------------------------------------------------------------------


class _Record:
    def __init__(self, headers: list[tuple[str, bytes | None]] | None) -> None:
        self._headers = headers

    def headers(self) -> list[tuple[str, bytes | None]] | None:
        return self._headers

    def offset(self) -> int:
        return 9

    def key(self) -> bytes:
        return b"u1"

    def value(self) -> bytes:
        return b"{}"

    def timestamp(self) -> tuple[int, int]:
        return (1, 1)


def given(headers: list[tuple[str, bytes | None]] | None = None, *, record: bool = True) -> Event:
    found = document(payload={"seq": 3}, extra=1, more=None)
    return Event(
        "e1", "u1", "t", found["payload"], 3, 17, 2, 4, 9, found, _Record(headers) if record else None
    )


def test_an_event_has_what_the_contract_names() -> None:
    event = given([("a", b"1"), ("a", None)])
    assert (event.id, event.user_id, event.type, event.payload) == ("e1", "u1", "t", {"seq": 3})
    assert (event.seq, event.timestamp, event.attempt) == (3, 17, 2)
    assert (event.partition, event.offset) == (4, 9)
    assert event.headers == [("a", b"1"), ("a", None)]
    assert event.extra == {"extra": 1, "more": None}
    assert repr(event) == "Event(id='e1', user_id='u1', seq=3, attempt=2)"


def test_an_event_without_headers_has_an_empty_list() -> None:
    assert given(None).headers == []
    assert given(record=False).headers == []


def test_a_misspelt_attribute_is_refused() -> None:
    with pytest.raises(AttributeError):
        given().userid = "u2"  # type: ignore[attr-defined]


def test_headers_that_cannot_be_read_are_told_as_such() -> None:
    class Unreadable:
        def headers(self) -> None:
            raise SystemError("returned a result with an exception set")

    given = Event("a", "u", "t", {}, 1, 1, 1, 0, 7, {}, cast(Record, Unreadable()))
    with pytest.raises(ValueError, match="the name of one is not UTF-8"):
        _ = given.headers
