"""The validator against all there is: it raises nothing but Invalid, and its fast path tells the same."""

from __future__ import annotations

import json
import re
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from eventproc.event import Invalid, Validator, check_name, depth

VALIDATOR = Validator("events", 2_000)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4)
)
characters = st.characters(codec=None, categories=None)  # surrogates and controls too
names = (
    st.text(characters, max_size=12)
    | st.text(st.sampled_from(" \u00a0\t\u3000a"), max_size=4)
    | st.text(st.sampled_from("ax é😀"), min_size=60, max_size=300)
    | st.sampled_from(["list", "ip:1", "events-0-0", "events-1", "events-0-x", "other-0-0"])
)
odd_names = names | scalars
payloads = st.fixed_dictionaries({}, optional={"seq": st.integers() | scalars, "a": values})
documents = st.fixed_dictionaries(
    {},
    optional={
        "id": odd_names,
        "userId": odd_names,
        "type": odd_names,
        "payload": payloads | values,
        "timestamp": scalars,
        "more": values,
    },
)
valid_documents = st.fixed_dictionaries(
    {"id": names, "userId": names, "type": names, "payload": payloads},
)


def outcome(value: bytes) -> int | None:
    """The seq, or None for an invalid one; anything else that is raised fails the test."""
    try:
        return VALIDATOR.check(VALIDATOR.decode(value, len(value)))
    except Invalid as error:
        assert str(error)
        str(error).encode()  # it is written to Redis
        return None


@given(st.binary(max_size=300))
@example(b"")
@example(b"[" * 3_000)
@example(b'{"id":"\xff"}')
def test_any_bytes_are_an_event_or_invalid(value: bytes) -> None:
    outcome(value)


@given(values)
def test_any_json_is_an_event_or_invalid(value: Any) -> None:
    outcome(json.dumps(value).encode())


@given(documents)
def test_any_object_with_our_fields_is_an_event_or_invalid(document: dict[str, Any]) -> None:
    value = json.dumps(document).encode()  # lone surrogates as escapes, NaN, integers of any size
    seq = outcome(value)
    if seq is None:
        return
    decoded = orjson.loads(value)
    assert seq == decoded["payload"].get("seq", 0)
    assert 0 <= seq < 2**53


@given(documents)
def test_any_decoded_object_is_an_event_or_invalid(document: dict[str, Any]) -> None:
    try:
        VALIDATOR.check(document)
    except Invalid:
        pass


def obvious(document: dict[str, Any]) -> bool:
    """The rules of CONTRACT section 2 for a decoded object, one by one."""
    for field in ("id", "userId", "type"):
        value = document[field]
        if not value.strip() or any(ord(c) < 32 or 127 <= ord(c) < 160 for c in value):
            return False
        try:
            if len(value.encode()) > 256:
                return False
        except UnicodeEncodeError:
            return False
    if document["id"] == "list" or re.fullmatch("events-[0-9]+-[0-9]+", document["id"]):
        return False
    if document["userId"][:3] == "ip:":
        return False
    if "seq" not in document["payload"]:
        return True
    seq = document["payload"]["seq"]
    return type(seq) is int and 1 <= seq < 2**53


@given(valid_documents)
@example({"id": "e", "userId": " ", "type": "t", "payload": {}})
@example({"id": "e", "userId": "u", "type": "x" * 256, "payload": {"seq": 2**53 - 1}})
@example({"id": "e" * 257, "userId": "u", "type": "t", "payload": {}})
@example({"id": "e\x7f", "userId": "u", "type": "t", "payload": {}})
def test_what_is_valid_is_what_the_rules_say(document: dict[str, Any]) -> None:
    try:
        VALIDATOR.check(document)
    except Invalid:
        assert not obvious(document)
    else:
        assert obvious(document)


@given(names, st.sampled_from(["id", "userId", "type"]))
def test_the_fast_path_agrees_with_check_name(name: str, field: str) -> None:
    try:
        check_name(field, name)
    except Invalid as error:
        expected = str(error)
    else:
        expected = ""
    document = {"id": "e", "userId": "u", "type": "t", "payload": {}} | {field: name}
    try:
        VALIDATOR.check(document)
    except Invalid as error:
        if "reserved" not in str(error):
            assert str(error) == expected
            return
    assert expected == ""


def recursive_depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((recursive_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((recursive_depth(item) for item in value), default=0)
    return 0


@given(values)
def test_depth_is_what_it_is_by_definition(value: Any) -> None:
    assert depth(value) == recursive_depth(value)
