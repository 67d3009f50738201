"""JSON as the API takes it: no doubled keys, no NaN, no lone surrogates, and told which part is wrong.

orjson reads what is good. What it refuses, and what may hold a doubled key, is read again by the standard
library, which can mark the places; so one bad event does not spoil the batch that it is in.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

import orjson

from eventproc.ingest.refusal import Refusal

_STRING = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"', re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


class _Doubled(dict[str, Any]):
    """An object with a key that stands in it twice."""

    key = ""


class _NoNumber:
    """In the place of a number that JSON does not have, or that no double holds."""

    def __init__(self, text: str) -> None:
        self.text = text


def loads(body: bytes) -> tuple[Any, bool]:
    """The document, and whether `fault` has to be asked about its parts. Raises Refusal (400)."""
    try:
        document = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        return _mark(body, str(error)), True
    if _has_doubled_key(body, document):
        return _mark(body, "a key stands twice in an object"), True
    return document, False


def fault(value: Any) -> str:
    """What is wrong with a part of a marked document; "" if nothing is."""
    if type(value) is _Doubled:
        return f"key {value.key!r} stands twice in an object"
    level = [value]
    while level:
        item = level.pop()
        if type(item) is _Doubled:
            return f"key {item.key!r} stands twice in an object"
        if type(item) is _NoNumber:
            return f"{item.text} is no JSON number"
        if type(item) is str and _SURROGATE.search(item):
            return "a string holds a lone surrogate"
        if isinstance(item, dict):
            level += item.keys()
            level += item.values()
        elif type(item) is list:
            level += item
    return ""


def is_doubled(value: Any) -> bool:
    """Whether this object itself, not one inside it, has a doubled key."""
    return type(value) is _Doubled


def _has_doubled_key(body: bytes, document: Any) -> bool:
    """Doubled keys are lost in the document, but their colons stand in the body.

    Colons in strings are told apart only when the quick count leaves a doubt.
    """
    keys = _count_keys(document)
    return body.count(b":") != keys and _STRING.sub(b"", body).count(b":") != keys


def _count_keys(document: Any) -> int:
    count = 0
    level = [document]
    while level:
        item = level.pop()
        if type(item) is dict:
            count += len(item)
            level += [value for value in item.values() if type(value) is dict or type(value) is list]
        elif type(item) is list:
            level += [value for value in item if type(value) is dict or type(value) is list]
    return count


def _mark(body: bytes, why: str) -> Any:
    try:
        return json.loads(
            body.decode(),
            object_pairs_hook=_object,
            parse_constant=_NoNumber,
            parse_float=_float,
        )
    except RecursionError:
        raise Refusal(400, "body is nested too deep") from None
    except ValueError:
        raise Refusal(400, f"body is not JSON: {why}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    doubled = _Doubled(found)
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            doubled.key = key
            break
        seen.add(key)
    return doubled


def _float(text: str) -> float | _NoNumber:
    number = float(text)
    return number if math.isfinite(number) else _NoNumber(text)
