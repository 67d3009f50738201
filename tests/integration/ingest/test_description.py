"""The API against its own OpenAPI description: whatever schemathesis thinks up, no answer is a surprise."""

from __future__ import annotations

from typing import Any

import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.ingest.api_server import ApiServer

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
GENTLE = settings(max_examples=5, deadline=None, suppress_health_check=list(HealthCheck), database=None)
HARD = settings(GENTLE, max_examples=40)


def test_every_answer_is_described(shared_api: ApiServer) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{shared_api.port}/openapi.json")
    operations: list[Any] = [found.ok() for found in schema.get_all_operations()]  # type: ignore[union-attr]
    own = {"/openapi.json"}  # schemathesis leaves it out
    assert {operation.path for operation in operations} == set(schema.raw_schema["paths"]) - own
    for operation in operations:
        by_route = HARD if operation.method.upper() == "POST" else GENTLE

        @by_route
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        ask()
