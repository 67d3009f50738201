"""The API's description of itself (OpenAPI 3.1)."""

from __future__ import annotations

from typing import Any

from eventproc import __version__
from eventproc.event import MAX_ID_BYTES, MAX_SEQ
from eventproc.ingest.events import MAX_BATCH
from eventproc.settings import Settings

_JSON = "application/json"
_NAME: dict[str, Any] = {
    "type": "string",
    "minLength": 1,
    "maxLength": MAX_ID_BYTES,
    "pattern": r"^[^\u0000-\u001f\u007f-\u009f]*$",
}


def description(settings: Settings) -> dict[str, Any]:
    """As served at /openapi.json."""
    document: dict[str, Any] = {
        "openapi": "3.1.0",
        "info": {
            "title": "eventproc ingest API",
            "version": __version__,
            "description": "Accepts events for ordered processing. 202 means that Kafka has the event.",
        },
        "paths": {
            "/events": {"post": _post("Accept one event", "Event", "Accepted", _ONE_ERRORS)},
            "/events/batch": {"post": _post("Accept up to 1000 events", "Batch", "Results", _BATCH_ERRORS)},
            "/health": {"get": _get("Liveness", {"200": _object("alive")})},
            "/ready": {
                "get": _get("Readiness", {"200": _object("ready"), "503": _object("not ready, and why")})
            },
            "/metrics": {
                "get": _get("Prometheus metrics", {"200": {"description": "metrics", "content": _TEXT}})
            },
            "/openapi.json": {"get": _get("This description", {"200": _object("the description")})},
        },
        "components": {"schemas": _SCHEMAS},
    }
    if settings.api_keys_file:
        document["components"]["securitySchemes"] = {
            "bearer": {"type": "http", "scheme": "bearer"},
            "header": {"type": "apiKey", "in": "header", "name": "X-Api-Key"},
        }
        for path in ("/events", "/events/batch"):
            document["paths"][path]["post"]["security"] = [{"bearer": []}, {"header": []}]
    return document


_TEXT = {
    "text/plain": {"schema": {"type": "string"}},
    "application/openmetrics-text": {"schema": {"type": "string"}},
}

_RETRY_AFTER: dict[str, Any] = {
    "Retry-After": {"description": "s", "schema": {"type": "integer", "minimum": 1}}
}

_SCHEMAS: dict[str, Any] = {
    "Event": {
        "type": "object",
        "required": ["userId", "type"],
        "properties": {
            "id": {
                **_NAME,
                "type": ["string", "null"],
                "description": "made by the server when missing; the same id has one effect",
            },
            "userId": {
                **_NAME,
                "description": "whose sequence the event belongs to; must not begin with `ip:`",
            },
            "type": _NAME,
            "payload": {
                "type": ["object", "null"],
                "properties": {
                    "seq": {
                        "type": "integer",
                        "minimum": 1,
                        "maximum": MAX_SEQ,
                        "description": "place in the user's sequence; without: processed on arrival",
                    }
                },
            },
            "timestamp": {
                "type": ["integer", "null"],
                "description": "ms since the epoch; when missing: now",
            },
        },
    },
    "Batch": {
        "type": "object",
        "required": ["events"],
        "properties": {
            "events": {
                "type": "array",
                "minItems": 1,
                "maxItems": MAX_BATCH,
                "items": {"description": "an Event; one that is not valid does not spoil the others"},
            }
        },
    },
    "Accepted": {
        "type": "object",
        "required": ["eventId", "status"],
        "properties": {"eventId": {"type": "string"}, "status": {"const": "accepted"}},
    },
    "Results": {
        "type": "object",
        "required": ["results"],
        "properties": {
            "results": {
                "type": "array",
                "items": {
                    "type": "object",
                    "required": ["eventId", "status"],
                    "properties": {
                        "eventId": {"type": ["string", "null"]},
                        "status": {"enum": ["accepted", "invalid", "rate_limited", "failed"]},
                        "error": {"type": "string"},
                    },
                },
            }
        },
    },
    "Error": {
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}},
    },
    "RateLimited": {
        "type": "object",
        "required": ["error", "remaining", "resetAt"],
        "properties": {
            "error": {"type": "string"},
            "remaining": {"const": 0},
            "resetAt": {"type": "integer", "description": "ms since the epoch"},
        },
    },
}


def _reference(name: str) -> dict[str, Any]:
    return {_JSON: {"schema": {"$ref": f"#/components/schemas/{name}"}}}


def _error(text: str, schema: str = "Error", headers: dict[str, Any] | None = None) -> dict[str, Any]:
    return {"description": text, "content": _reference(schema), **({"headers": headers} if headers else {})}


_BATCH_ERRORS: dict[str, Any] = {
    "400": _error("invalid"),
    "401": _error("an API key is needed"),
    "408": _error("the body did not arrive in time"),
    "409": _error("the Idempotency-Key is in use, or was used with another body"),
    "413": _error("the body is too large"),
    "415": _error("the body is not plain JSON"),
    "503": _error("Kafka or Redis is away, or the workers are behind", headers=_RETRY_AFTER),
}
_ONE_ERRORS: dict[str, Any] = {
    **_BATCH_ERRORS,
    "429": _error("the user's or the address's quota is used up", "RateLimited", _RETRY_AFTER),
}


def _post(summary: str, takes: str, gives: str, errors: dict[str, Any]) -> dict[str, Any]:
    return {
        "summary": summary,
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "description": "the same key and body give the first answer again",
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[ -~]+$"},
            }
        ],
        "requestBody": {"required": True, "content": _reference(takes)},
        "responses": {"202": _error("Kafka has acknowledged", gives), **errors},
    }


def _get(summary: str, responses: dict[str, Any]) -> dict[str, Any]:
    return {"summary": summary, "responses": responses}


def _object(text: str) -> dict[str, Any]:
    return {"description": text, "content": {_JSON: {"schema": {"type": "object"}}}}
