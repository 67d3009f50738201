"""The event: its validity (CONTRACT section 2) and what a handler is given (section 5)."""

from __future__ import annotations

import re
from typing import Any

import orjson

from eventproc._entry import Event as Event
from eventproc._reorder import is_plain

MAX_ID_BYTES = 256
MAX_DEPTH = 64
MAX_SEQ = 2**53 - 1

_FORBIDDEN = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")


class Invalid(Exception):
    """The record is no valid event; the message names the field and the rule."""


class Validator:
    """Tells whether a JSON object is an event. One validator serves the worker and the HTTP API."""

    def __init__(self, topic: str, max_event_bytes: int) -> None:
        self._max_event_bytes = max_event_bytes
        self._position_prefix = topic + "-"
        self._position_id = re.compile(re.escape(topic) + r"-\d+-\d+", re.ASCII)

    def decode(self, value: bytes, size: int) -> dict[str, Any]:
        """The document in a record's value; `size` is the bytes of key and value. Raises Invalid."""
        self._check_size(size)
        try:
            document = orjson.loads(value)
        except orjson.JSONDecodeError as error:
            raise Invalid(f"value is not JSON: {error}") from None
        if type(document) is not dict:
            raise Invalid(f"value must be a JSON object, not {json_type(document)}")
        _check_depth(document, value)
        return document

    def encode(self, document: dict[str, Any], key_bytes: int) -> bytes:
        """The value of a checked document's record, if `decode` would take it. Raises Invalid."""
        try:
            value = orjson.dumps(document)
        except orjson.JSONEncodeError as error:
            _check_depth(document, b"{" * (MAX_DEPTH + 1))
            raise Invalid(f"event cannot be written as JSON: {error}") from None
        self._check_size(len(value) + key_bytes)
        _check_depth(document, value)
        return value

    def check(self, document: dict[str, Any]) -> int:
        """The seq of a valid document (0 = unsequenced). Raises Invalid."""
        id = document.get("id")
        user = document.get("userId")
        kind = document.get("type")
        if not is_plain(id, user, kind):
            check_name("id", id)
            check_name("userId", user)
            check_name("type", kind)
        assert id is not None
        assert user is not None
        if id == "list" or (id.startswith(self._position_prefix) and self._position_id.fullmatch(id)):
            raise Invalid(f"id {id!r} is reserved")
        if user.startswith("ip:"):
            raise Invalid(f"userId {user!r} is reserved: it begins with 'ip:'")
        payload = document.get("payload")
        if type(payload) is not dict:
            raise Invalid(f"payload must be an object, not {json_type(payload)}")
        if "seq" not in payload:
            return 0
        seq = payload["seq"]
        if type(seq) is not int:
            raise Invalid(f"payload.seq must be an integer, not {json_type(seq)}")
        if not 1 <= seq <= MAX_SEQ:
            raise Invalid(f"payload.seq is {seq}, not in 1..2^53-1")
        return seq

    def _check_size(self, size: int) -> None:
        if size > self._max_event_bytes:
            raise Invalid(f"record has {size} bytes, more than max_event_bytes ({self._max_event_bytes})")


def _check_depth(document: dict[str, Any], value: bytes) -> None:
    if value.count(b"{") + value.count(b"[") > MAX_DEPTH and depth(document) > MAX_DEPTH:
        raise Invalid(f"value is nested deeper than {MAX_DEPTH}")


def check_name(field: str, value: object) -> None:
    """Raise Invalid unless `value` may stand as an id, a userId or a type."""
    if type(value) is not str:
        raise Invalid(f"{field} must be a string, not {json_type(value)}")
    if not value or value.isspace():
        raise Invalid(f"{field} is {'blank' if value else 'empty'}")
    if _FORBIDDEN.search(value):
        raise Invalid(f"{field} holds a control character or a lone surrogate")
    if len(value.encode()) > MAX_ID_BYTES:
        raise Invalid(f"{field} has {len(value.encode())} UTF-8 bytes, more than {MAX_ID_BYTES}")


def depth(value: object) -> int:
    """How deep a JSON value is nested; a scalar is 0, `{}` is 1."""
    deepest = 0
    level = [value]
    while level:
        below: list[object] = []
        for item in level:
            if type(item) is dict:
                below.extend(item.values())
            elif type(item) is list:
                below.extend(item)
            else:
                continue
            below.append(None)  # an empty container counts as a level too
        if not below:
            return deepest
        deepest += 1
        level = below
    return deepest


def json_type(value: object) -> str:
    """What JSON calls the type of a value, with its article."""
    names = {type(None): "missing or null", bool: "a boolean", int: "an integer", float: "a float"}
    names |= {str: "a string", list: "an array", dict: "an object"}
    return names.get(type(value), type(value).__name__)
