import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from structlog.testing import capture_logs

from common.errors import (
    BrokerUnavailableError,
    FieldError,
    InvalidError,
    StaleError,
    UserStreamError,
)
from common.http.api import Api
from common.http.app import base_app
from common.readiness import Readiness
from tests.services import serving

SECRET = "postgresql://user:hunter2@10.0.0.7"

api = Api()


@api.get("/unexpected", returns={200: None})
async def unexpected(_request: web.Request) -> web.StreamResponse:
    raise LookupError(SECRET)


@api.get("/unavailable", returns={200: None}, raises=(BrokerUnavailableError,))
async def unavailable(_request: web.Request) -> web.StreamResponse:
    raise BrokerUnavailableError("Nothing was promised. Try again.")


@api.get("/invalid", returns={200: None})
async def invalid(_request: web.Request) -> web.StreamResponse:
    raise InvalidError("Correct it.", errors=(FieldError("/name", "Use text."),))


@api.get("/stale", returns={200: None})
async def stale(_request: web.Request) -> web.StreamResponse:
    raise StaleError


@api.get("/http/{status}", returns={200: None})
async def http_error(request: web.Request) -> web.StreamResponse:
    kinds: dict[str, type[web.HTTPException]] = {
        "403": web.HTTPForbidden,
        "404": web.HTTPNotFound,
        "415": web.HTTPUnsupportedMediaType,
        "417": web.HTTPExpectationFailed,
        "500": web.HTTPInternalServerError,
    }
    raise kinds[request.match_info["status"]](reason="Internals")


@api.get("/redirect", returns={303: None})
async def redirect(_request: web.Request) -> web.StreamResponse:
    raise web.HTTPSeeOther("/elsewhere")


@api.get("/half/{kind}", returns={200: "text/csv"})
async def half(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"first line\n")
    raise BrokerUnavailableError if request.match_info["kind"] == "ours" else LookupError(SECRET)


@api.get("/gone", returns={200: None})
async def gone(_request: web.Request) -> web.StreamResponse:
    raise ConnectionResetError


def a_page(error: UserStreamError) -> str:
    return f"<h1>{error.title}</h1>"


@pytest.fixture(autouse=True)
def logged() -> Iterator[list[Any]]:
    with capture_logs() as lines:
        yield lines


@pytest.fixture
async def client() -> AsyncIterator[TestClient[Any, Any]]:
    app = base_app("test", api, description="", readiness=Readiness(), problem_page=a_page)
    async with serving(app) as client:
        yield client


async def problem_at(client: TestClient[Any, Any], url: str) -> tuple[int, dict[str, Any]]:
    async with client.get(url) as answer:
        assert answer.content_type == "application/problem+json"
        document: dict[str, Any] = json.loads(await answer.text())
        assert document["status"] == answer.status
        assert document["requestId"] == answer.headers["X-Request-Id"]
        return answer.status, document


async def test_an_unexpected_error_is_a_problem_without_internals(
    client: TestClient[Any, Any], logged: list[Any]
) -> None:
    status, document = await problem_at(client, "/unexpected")

    assert (status, document["code"]) == (500, "internal_error")
    assert not any(word in str(document) for word in (SECRET, "LookupError", ".py"))
    (line,) = [line for line in logged if line["event"] == "http.failed"]
    assert line["error"] == "LookupError"
    assert line["exc_info"]


async def test_an_outage_says_when_to_come_back(client: TestClient[Any, Any]) -> None:
    status, document = await problem_at(client, "/unavailable")

    assert (status, document["code"]) == (503, "broker_unavailable")
    assert document["detail"] == "Nothing was promised. Try again."
    async with client.get("/unavailable") as answer:
        assert answer.headers["Retry-After"] == "5"


async def test_an_invalid_request_is_told_about_each_field(client: TestClient[Any, Any]) -> None:
    status, document = await problem_at(client, "/invalid")

    assert status == 422
    assert document["errors"] == [{"pointer": "/name", "detail": "Use text."}]
    assert document["type"] == "urn:userstream:problem:invalid"


async def test_an_error_without_words_has_a_title_and_a_status(
    client: TestClient[Any, Any],
) -> None:
    status, document = await problem_at(client, "/stale")

    assert (status, document["title"]) == (412, "Changed since it was read")
    assert "errors" not in document


@pytest.mark.parametrize(
    ("raised", "status", "code"),
    [
        (403, 400, "malformed"),
        (404, 404, "not_found"),
        (415, 415, "unsupported_media_type"),
        (417, 400, "malformed"),
        (500, 500, "internal_error"),
    ],
)
async def test_aiohttps_own_refusals_are_said_in_our_words(
    client: TestClient[Any, Any], raised: int, status: int, code: str
) -> None:
    answered, document = await problem_at(client, f"/http/{raised}")

    assert (answered, document["code"]) == (status, code)
    assert "Internals" not in str(document)


async def test_a_method_that_a_path_does_not_take_is_told_which_it_does(
    client: TestClient[Any, Any],
) -> None:
    async with client.delete("/stale") as answer:
        document = json.loads(await answer.text())

    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"
    assert document["detail"] == "Allowed here: GET, HEAD."


async def test_a_redirect_is_an_answer(client: TestClient[Any, Any]) -> None:
    async with client.get("/redirect", allow_redirects=False) as answer:
        assert (answer.status, answer.headers["Location"]) == (303, "/elsewhere")


async def test_a_browser_gets_a_page_and_a_program_a_document(
    client: TestClient[Any, Any],
) -> None:
    accept = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}

    async with client.get("/unavailable", headers=accept) as answer:
        assert answer.content_type == "text/html"
        assert await answer.text() == f"<h1>{BrokerUnavailableError.title}</h1>"
        assert answer.headers["Retry-After"] == "5"
    async with client.get("/unavailable", headers={"Accept": "*/*"}) as answer:
        assert answer.content_type == "application/problem+json"


@pytest.mark.parametrize("kind", ["ours", "other"])
async def test_half_an_answer_ends_in_a_broken_connection(
    client: TestClient[Any, Any], kind: str, logged: list[Any]
) -> None:
    async with client.get(f"/half/{kind}") as answer:
        assert answer.status == 200
        # A clean end would pass half a report for the whole.
        with pytest.raises(aiohttp.ClientError):
            await answer.read()

    assert "http.stream_broken" in [line["event"] for line in logged]


async def test_a_client_that_has_gone_is_no_failure(
    client: TestClient[Any, Any], logged: list[Any]
) -> None:
    with pytest.raises(aiohttp.ClientError):
        async with client.get("/gone") as answer:
            answer.raise_for_status()

    assert "http.failed" not in [line["event"] for line in logged]


async def test_every_answer_carries_the_headers_of_safety(client: TestClient[Any, Any]) -> None:
    for url in ("/health", "/unexpected", "/nothing", "/api-docs", "/metrics"):
        async with client.get(url, headers={"X-Request-Id": "r-1"}) as answer:
            assert answer.headers["X-Content-Type-Options"] == "nosniff"
            assert answer.headers["Cache-Control"] == "no-store"
            assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
            assert answer.headers["Server"] == "UserStream"
            assert answer.headers["X-Request-Id"] == "r-1"


async def test_an_odd_request_id_is_not_sent_back(client: TestClient[Any, Any]) -> None:
    async with client.get("/health", headers={"X-Request-Id": "<script>"}) as answer:
        assert len(answer.headers["X-Request-Id"]) == 32


async def test_requests_at_the_same_time_keep_their_own_ids(
    client: TestClient[Any, Any],
) -> None:
    async def ask(request_id: str) -> str:
        async with client.get("/stale", headers={"X-Request-Id": request_id}) as answer:
            return str(json.loads(await answer.text())["requestId"])

    ids = [f"r-{number}" for number in range(20)]

    assert await asyncio.gather(*map(ask, ids)) == ids
