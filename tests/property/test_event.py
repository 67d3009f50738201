"""The validator against all there is: it raises nothing but Invalid, and its fast path tells the same."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st

from eventproc._reorder import is_plain
from eventproc.event import Invalid, Validator, check_name, depth

VALIDATOR = Validator("events", 2_000)

scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
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


def told(check: Callable[[], object]) -> str:
    """What is wrong, `""` if nothing is; anything but Invalid that is raised fails the test."""
    try:
        check()
    except Invalid as error:
        text = str(error)
    else:
        return ""
    assert text
    assert text.encode()  # it is written to Redis
    return text


def outcome(value: bytes) -> int | None:
    """The seq of an event, None for an invalid one."""
    seqs: list[int] = []
    wrong = told(lambda: seqs.append(VALIDATOR.check(VALIDATOR.decode(value, len(value)))))
    return None if wrong else seqs[0]


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
    told(lambda: VALIDATOR.check(document))


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
    assert (told(lambda: VALIDATOR.check(document)) == "") == obvious(document)


@given(names, st.sampled_from(["id", "userId", "type"]))
def test_the_fast_path_agrees_with_check_name(name: str, field: str) -> None:
    document = {"id": "e", "userId": "u", "type": "t", "payload": {}} | {field: name}
    expected = told(lambda: check_name(field, name))
    found = told(lambda: VALIDATOR.check(document))
    assert found == expected or ("reserved" in found and not expected)


plain_or_not = odd_names | st.text(st.sampled_from(" a~\x7f\x1f"), max_size=3) | st.just("x" * 256)


@given(plain_or_not, plain_or_not, plain_or_not)
@example("x" * 256, "~", " a")
@example("x" * 257, "a", "a")
@example("a", "a", "é")
@example("a", " ", "a")
def test_what_needs_no_closer_look_would_pass_it(a: object, b: object, c: object) -> None:
    def plain(value: object) -> bool:
        return type(value) is str and value.isascii() and value.isprintable() and bool(value.strip())

    names_are_plain = all(plain(name) and len(str(name)) <= 256 for name in (a, b, c))
    assert is_plain(a, b, c) == names_are_plain
    if names_are_plain:
        for name in (a, b, c):
            check_name("field", name)


def recursive_depth(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + max((recursive_depth(item) for item in value.values()), default=0)
    if isinstance(value, list):
        return 1 + max((recursive_depth(item) for item in value), default=0)
    return 0


@given(values)
def test_depth_is_what_it_is_by_definition(value: Any) -> None:
    assert depth(value) == recursive_depth(value)
