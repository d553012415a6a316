"""Each service's own description of its HTTP is valid, whole and true."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from openapi_spec_validator import OpenAPIV31SpecValidator

from common.http.api import Operation
from common.http.validation import validate, validate_json
from tests.services import SERVICES, api_of, build, serving

EVERY_SERVICE = pytest.mark.parametrize("service", SERVICES)

OPERATIONS = [
    pytest.param(service, operation, id=f"{service} {operation.method} {operation.url}")
    for service in SERVICES
    for operation in api_of(service).operations
]
EVERY_OPERATION = pytest.mark.parametrize(("service", "operation"), OPERATIONS)


_SERVED: dict[str, str] = {}
"""The text of each service's document, read once."""


async def document_of(service: str) -> dict[str, Any]:
    """The document as the service serves it."""
    if service not in _SERVED:
        async with serving(build(service)) as client, client.get("/openapi.json") as answer:
            assert answer.content_type == "application/json"
            _SERVED[service] = await answer.text()
    document: dict[str, Any] = json.loads(_SERVED[service])
    return document


@pytest.fixture
async def document(service: str) -> dict[str, Any]:
    return await document_of(service)


@pytest.fixture
def described(document: dict[str, Any], operation: Operation) -> dict[str, Any]:
    """What the document says of one operation."""
    said: dict[str, Any] = document["paths"][operation.url][operation.method.lower()]
    return said


@EVERY_SERVICE
async def test_the_document_is_valid(document: dict[str, Any]) -> None:
    errors = OpenAPIV31SpecValidator(document).iter_errors()

    # The validator's regular expressions know no \p{L}: they lack the flag ``u``.
    told = [
        f"{list(error.path)}: {error.message}" for error in errors if "p{L}" not in error.message
    ]
    assert told == []


@EVERY_SERVICE
async def test_every_operation_has_an_id_of_its_own_and_is_summed_up(
    document: dict[str, Any],
) -> None:
    operations = [entry for path in document["paths"].values() for entry in path.values()]
    ids = [entry["operationId"] for entry in operations]

    assert sorted(ids) == sorted(set(ids))
    assert all(entry["summary"] for entry in operations)
    assert not any(entry["summary"].endswith(".") for entry in operations)


@EVERY_SERVICE
async def test_patterns_mean_the_same_to_everybody(document: dict[str, Any]) -> None:
    r"""Our regular expressions match any alphabet with ``\w``, those of JSON Schema ASCII."""
    patterns = [*_patterns(document)]

    assert patterns
    assert not [pattern for pattern in patterns if re.search(r"\\[wdsb]", pattern, re.IGNORECASE)]


def _patterns(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(pattern := part.get("pattern"), str):
            yield pattern
        part = [*part.values()]
    if isinstance(part, list):
        for inner in part:
            yield from _patterns(inner)


@EVERY_SERVICE
async def test_no_schema_is_left_over(document: dict[str, Any]) -> None:
    text = json.dumps(document)

    for name in document["components"]["schemas"]:
        reference = f'"#/components/schemas/{name}"'
        assert reference in text or name == "Problem", f"nothing uses {name}"


@EVERY_OPERATION
async def test_every_error_is_documented(described: dict[str, Any], operation: Operation) -> None:
    responses = described["responses"]

    for error in operation.options.get("raises", ()):
        response = responses[str(error.http_status)]
        assert f"`{error.code}`" in response["description"]
        assert "application/problem+json" in response["content"]
    if operation.options.get("body") or operation.options.get("form"):
        assert responses.keys() >= {"400", "413", "415", "422"}
    elif operation.options.get("path") or operation.options.get("query"):
        assert "422" in responses


@EVERY_OPERATION
async def test_every_body_is_shown_by_an_example_that_is_accepted(
    described: dict[str, Any], operation: Operation
) -> None:
    """Without one, the page starts with text made from the patterns, which gets a 422."""
    options = operation.options
    model = options.get("body") or options.get("form") or options.get("html_form")
    if model is None:
        return

    [content] = described["requestBody"]["content"].values()

    assert "example" in content, f"give {model.__name__} a sample"
    if "body" in options:
        assert validate_json(model, json.dumps(content["example"]).encode())
    else:
        assert validate(model, content["example"])


@EVERY_OPERATION
async def test_every_placeholder_is_documented_and_nothing_else(
    described: dict[str, Any], operation: Operation
) -> None:
    documented = {p["name"] for p in described["parameters"] if p["in"] == "path"}

    assert all(f"{{{name}}}" in operation.url for name in documented)
    assert operation.url.count("{") == len(documented)


@EVERY_OPERATION
async def test_a_write_to_the_broker_or_database_may_fail_with_503(
    described: dict[str, Any], operation: Operation
) -> None:
    if operation.method in ("POST", "PUT", "DELETE"):
        assert "503" in described["responses"]


async def test_operations_stay_where_programs_expect_them() -> None:
    served = {
        service: {
            f"{method.upper()} {url}"
            for url, methods in (await document_of(service))["paths"].items()
            for method in methods
        }
        for service in SERVICES
    }

    assert served["frontend"] >= {
        "GET /",
        "POST /",
        "GET /registrations/{registration_id}",
        "GET /registrations/{registration_id}/events",
        "POST /api/registrations",
        "POST /api/submit",
        "GET /api/registrations/{registration_id}",
    }
    assert served["sender"] >= {
        "POST /api/notifications/send",
        "GET /api/notifications/{notification_id}",
        "POST /api/notifications/{notification_id}/resend",
        "POST /api/notifications/resend",
        "POST /api/bounces",
        "GET /api/templates/{name}/preview",
    }
    assert served["database_service"] >= {
        "POST /api/users",
        "GET /api/users",
        "GET /api/users/{user_id}",
        "PUT /api/users/{user_id}",
        "DELETE /api/users/{user_id}",
        "GET /api/users/email/{email}",
        "GET /api/users/report",
        "POST /api/registrations/bulk",
        "GET /api/registrations/{registration_id}",
        "POST /api/notifications/claims",
        "PUT /api/notifications/{notification_id}",
        "GET /api/notifications",
        "POST /api/notifications/resends",
        "POST /api/bounces",
        "GET /api/suppressions",
        "GET /api/suppressions/{address}",
        "DELETE /api/suppressions/{address}",
        "POST /api/reports",
        "GET /api/reports",
        "GET /api/reports/{report_id}",
        "PUT /api/reports/{report_id}",
    }
    assert served["report_generator"] >= {
        "POST /api/reports/generate",
        "GET /api/reports",
        "GET /api/reports/{report_id}/status",
        "GET /api/reports/{report_id}/download",
    }
    assert served["queue_receiver"] >= {
        "GET /dead-letters",
        "GET /api/dead-letters",
        "GET /api/dead-letters/{id}",
        "GET /api/dead-letters/discards",
        "POST /api/dead-letters/redrive",
        "GET /api/dead-letters/redrives/{redrive_id}",
        "POST /api/dead-letters/dry-run",
        "POST /api/dead-letters/{id}/resend",
        "POST /api/dead-letters/discard",
        "POST /api/dead-letters/{id}/discard",
    }
