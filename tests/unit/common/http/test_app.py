"""What every answer is followed by: a count and a line, under the id of its request."""

import asyncio
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.test_utils import TestClient
from prometheus_client import REGISTRY

from common.context import current_ids
from common.http.api import Api
from common.http.app import base_app
from common.readiness import Readiness
from tests.polling import until
from tests.services import serving

api = Api()


@api.get("/things/{name}", returns={200: "text/plain"})
async def show(_request: web.Request, **_: object) -> web.Response:
    """A thing."""
    return web.Response(text="here")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What is logged, each line with the ids it would carry."""
    written: list[dict[str, Any]] = []

    def keep(_logger: object, _method: str, event: Any) -> Any:
        written.append({**event, **current_ids()})
        raise structlog.DropEvent

    monkeypatch.setattr("common.http.app.log", structlog.wrap_logger(None, processors=[keep]))
    return written


def counted() -> float:
    labels = {"method": "GET", "route": "/things/{name}", "status": "200"}
    return REGISTRY.get_sample_value("userstream_http_requests_total", labels) or 0


def a_service() -> web.Application:
    return base_app("test", api, description="", readiness=Readiness())


async def ask(client: TestClient[Any, Any], name: str) -> None:
    async with client.get(f"/things/{name}", headers={"X-Request-Id": name}) as answer:
        assert await answer.text() == "here"


async def test_an_answer_is_counted_and_logged_under_its_request(
    lines: list[dict[str, Any]],
) -> None:
    before = counted()
    async with serving(a_service()) as client:
        await asyncio.gather(ask(client, "a"), ask(client, "b"))
        await ask(client, "c")
        await until(lambda: len(lines) == 3)

    assert {line["request_id"] for line in lines} == {"a", "b", "c"}
    assert {(line["event"], line["route"], line["status"]) for line in lines} == {
        ("http.answered", "/things/{name}", 200)
    }
    assert counted() == before + 3


async def test_the_trace_of_a_client_is_in_its_lines(lines: list[dict[str, Any]]) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"
    headers = {"traceparent": f"00-{trace}-b7ad6b7169203331-01"}
    async with serving(a_service()) as client:
        for path in ("/things/a", "/nothing"):
            async with client.get(path, headers=headers) as answer:
                await answer.read()
        await until(lambda: len(lines) == 2)

    assert [line["trace_id"] for line in lines] == [trace, trace]


async def test_the_last_answers_are_logged_before_the_service_ends(
    lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.http.app.ACCESS_LOG_DELAY_SECONDS", 0.2)
    async with serving(a_service()) as client:
        await ask(client, "a")
        at_the_end = len(lines)

    assert (at_the_end, len(lines)) == (0, 1)
