"""Records that break one rule of CONTRACT section 2 each."""

from __future__ import annotations

from typing import Any

import orjson

_OVERSIZE_BYTES = 900_001  # one above the default of max_event_bytes

#: Overrides of a valid event's fields; None removes the field.
_FIELDS: dict[str, dict[str, Any]] = {
    "missing_id": {"id": None},
    "missing_user": {"userId": None},
    "missing_type": {"type": None},
    "missing_payload": {"payload": None},
    "id_number": {"id": 17},
    "id_empty": {"id": ""},
    "id_reserved": {"id": "list"},
    "id_long": {"id": "x" * 257},
    "id_control": {"id": "bell\x07"},
    "user_blank": {"userId": " \t"},
    "user_reserved": {"userId": "ip:127.0.0.1"},
    "type_number": {"type": 1.5},
    "payload_list": {"payload": [1]},
    "seq_float": {"payload": {"seq": 1.0}},
    "seq_bool": {"payload": {"seq": True}},
    "seq_text": {"payload": {"seq": "1"}},
    "seq_zero": {"payload": {"seq": 0}},
    "seq_huge": {"payload": {"seq": 2**53}},
}
_RAW = ("bad_json", "not_object", "bad_utf8", "lone_surrogate", "too_deep", "id_position", "too_large")

#: Every way in which an invalid record is made.
INVALID_KINDS = (*_FIELDS, *_RAW)


def invalid_value(kind: str, id: str, user: str, topic: str, timestamp_ms: int) -> tuple[bytes, bool]:
    """The value, and whether it shows `id` as its own (so that no `event:<id>` may come of it)."""
    document: dict[str, Any] = {
        "id": id,
        "userId": user,
        "type": "invalid",
        "payload": {"seq": 1},
        "timestamp": timestamp_ms,
    }
    if kind in _FIELDS:
        changes = _FIELDS[kind]
        document |= changes
        kept = {name: value for name, value in document.items() if value is not None}
        return orjson.dumps(kept), "id" not in changes
    if kind == "bad_json":
        return orjson.dumps(document)[:-2], True
    if kind == "not_object":
        return orjson.dumps([document]), True
    if kind == "bad_utf8":
        return orjson.dumps(document).replace(b"invalid", b"\xff\xfe"), True
    if kind == "lone_surrogate":
        return orjson.dumps(document).replace(b"invalid", rb"\ud800"), True
    if kind == "too_deep":
        nested = b"[" * 65 + b"]" * 65
        return orjson.dumps(document).replace(b'{"seq":1}', b'{"a":' + nested + b"}"), True
    if kind == "id_position":
        return orjson.dumps(document | {"id": f"{topic}-0-1"}), False
    if kind == "too_large":
        return orjson.dumps(document | {"payload": {"data": "x" * _OVERSIZE_BYTES}}), True
    raise ValueError(f"no such kind of invalid record: {kind!r}")
