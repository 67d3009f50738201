"""The API against its own OpenAPI description: whatever schemathesis thinks up, no answer is a surprise."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.integration.conftest import BrokerUnderTest
from tests.integration.ingest.api_server import ApiServer
from tests.redis_server import RedisServer

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def api_schema(embedded_broker: BrokerUnderTest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with RedisServer() as server:
        # a machine that is too slow would be told by 503, which is no fault here
        api = ApiServer(embedded_broker, server, tmp_path_factory.mktemp("api"), api_timeout_ms=30_000)
        try:
            api.start()
            yield schemathesis.openapi.from_url(f"http://127.0.0.1:{api.port}/openapi.json")
        finally:
            api.close()


schema = schemathesis.pytest.from_fixture("api_schema")


@schema.parametrize()
@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_described(case: Any) -> None:
    case.call_and_validate(checks=CHECKS)
