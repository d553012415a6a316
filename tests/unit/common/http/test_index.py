"""The root of a service: a page for a person, JSON for a program, and what they link."""

import re
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient
from pydantic import BaseModel

from common.http.api import Api
from common.http.app import base_app
from common.readiness import Readiness
from tests.services import serving

BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


class Kind(BaseModel):
    """What a page below another one must be told."""

    kind: str


def a_service(*, has_page: bool = False) -> web.Application:
    api = Api()

    @api.get("/inbox", returns={200: "text/html"}, summary="What <waits>")
    async def inbox(_request: web.Request) -> web.Response:
        return web.Response(text="here")

    @api.get("/inbox/discard", query=Kind, returns={200: "text/html"})
    async def discard(_request: web.Request, *, query: Kind) -> web.Response:
        """What would be discarded."""
        return web.Response(text=query.kind)

    @api.get("/inbox/{name}", returns={200: "text/html"})
    async def inbox_entry(_request: web.Request) -> web.Response:
        """One."""
        return web.Response(text="here")

    if has_page:

        @api.get("/", returns={200: "text/html"})
        async def form(_request: web.Request) -> web.Response:
            """The form."""
            return web.Response(text="its own")

    return base_app("sender", api, description="Sends & tells.", readiness=Readiness())


async def everything_linked(client: TestClient[Any, Any], links: list[str]) -> None:
    assert {"/health", "/api-docs", "/metrics", "/openapi.json", "/inbox"} == set(links)
    for link in links:
        async with client.get(link) as answer:
            assert answer.status == 200, link


async def test_a_browser_gets_a_page_that_links_what_there_is() -> None:
    async with serving(a_service()) as client, client.get("/", headers=BROWSER) as answer:
        text = await answer.text()

        assert answer.status == 200
        assert answer.content_type == "text/html"
        assert "<h1>sender</h1>" in text
        assert "Sends &amp; tells." in text
        assert "What &lt;waits&gt;" in text
        assert "style-src 'sha256-" in answer.headers["Content-Security-Policy"]
        await everything_linked(client, re.findall(r'href="([^"]+)"', text))


@pytest.mark.parametrize("accept", ["*/*", "application/json", None])
async def test_a_program_gets_the_same_as_json(accept: str | None) -> None:
    headers = {"Accept": accept} if accept else {}
    async with serving(a_service()) as client, client.get("/", headers=headers) as answer:
        said = await answer.json()

        assert said["service"] == "sender"
        assert answer.headers["Vary"] == "Accept"
        await everything_linked(client, list(said["links"]))


async def test_a_page_of_the_services_own_stays() -> None:
    app = a_service(has_page=True)
    async with serving(app) as client, client.get("/", headers=BROWSER) as answer:
        assert await answer.text() == "its own"


async def test_the_root_takes_no_other_method() -> None:
    async with serving(a_service()) as client, client.post("/", json={}) as answer:
        assert answer.status == 405
