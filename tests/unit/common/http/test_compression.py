"""Which answers are compressed, and for whom."""

import gzip
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, make_mocked_request
from multidict import CIMultiDict

from common.errors import ConflictError
from common.http.api import Api
from common.http.app import base_app
from common.http.compression import accepts_gzip
from common.readiness import Readiness
from tests.services import serving

LARGE = {"text": "again and again. " * 500}
GZIP = {"Accept-Encoding": "gzip"}

api = Api()


@api.get("/large", returns={200: "application/json"})
async def large(_request: web.Request) -> web.Response:
    """Much JSON."""
    return web.json_response(LARGE)


@api.get("/huge", returns={200: "text/csv"})
async def huge(_request: web.Request) -> web.Response:
    """So much that a thread compresses it."""
    return web.Response(text="1,2,3\n" * 50_000, content_type="text/csv")


@api.get("/small", returns={200: "application/json"})
async def small(_request: web.Request) -> web.Response:
    """Little JSON."""
    return web.json_response({"text": "x" * 900})


@api.get("/picture", returns={200: "image/png"})
async def picture(_request: web.Request) -> web.Response:
    """Compressed already."""
    return web.Response(body=b"x" * 5_000, content_type="image/png")


@api.get("/refusal", returns={200: None})
async def refusal(_request: web.Request) -> web.Response:
    """A long problem."""
    raise ConflictError("No. " * 1_000)


@api.get("/events", returns={200: "text/event-stream"})
async def events(request: web.Request) -> web.StreamResponse:
    """A stream."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
    await response.prepare(request)
    await response.write(b"data: x\n\n" * 500)
    return response


@api.post("/form", returns={200: "text/html"})
async def form(_request: web.Request) -> web.Response:
    """A page that shows what was typed."""
    return web.Response(text="typed " * 1_000, content_type="text/html")


@pytest.fixture
async def client(tmp_path: Path) -> AsyncIterator[TestClient[Any, Any]]:
    app = base_app("test", api, description="", readiness=Readiness())
    (tmp_path / "site.css").write_text("a { color: red; }\n" * 500)

    async def file(_request: web.Request) -> web.StreamResponse:
        return web.FileResponse(tmp_path / "site.css")

    app.router.add_get("/file", file)
    async with serving(app) as client:
        yield client


@pytest.mark.parametrize("path", ["/large", "/huge", "/refusal", "/file", "/openapi.json"])
async def test_large_texts_are_compressed_for_whoever_asks(
    client: TestClient[Any, Any], path: str
) -> None:
    async with client.get(path) as plain:
        body = await plain.read()
    async with client.get(path, headers=GZIP) as answer:
        compressed = await answer.read()

    assert "Content-Encoding" not in plain.headers
    assert answer.headers["Content-Encoding"] == "gzip"
    unpacked = gzip.decompress(compressed)
    if path == "/refusal":  # each with the id of its own request
        unpacked, body = (json.loads(text)["detail"].encode() for text in (unpacked, body))
    assert unpacked == body
    assert len(compressed) < len(body) / 2
    assert plain.status == answer.status
    for each in (plain, answer):
        assert "Accept-Encoding" in each.headers["Vary"]


@pytest.mark.parametrize("path", ["/small", "/picture", "/events"])
async def test_what_gains_nothing_or_must_not_wait_stays_as_it_is(
    client: TestClient[Any, Any], path: str
) -> None:
    async with client.get(path, headers=GZIP) as answer:
        assert "Content-Encoding" not in answer.headers
        assert await answer.read()


async def test_a_page_that_answers_a_form_stays_as_it_is(client: TestClient[Any, Any]) -> None:
    async with client.post("/form", headers=GZIP) as answer:
        assert "Content-Encoding" not in answer.headers


async def test_a_file_keeps_its_parts_and_is_known_again(client: TestClient[Any, Any]) -> None:
    async with client.get("/file", headers=GZIP) as whole:
        tag = whole.headers["ETag"]
    async with client.get("/file", headers={**GZIP, "Range": "bytes=0-9"}) as part:
        assert part.status == 206
        assert await part.read() == b"a { color:"
        assert part.headers["Content-Range"].startswith("bytes 0-9/")
    async with client.get("/file", headers={**GZIP, "If-None-Match": tag}) as known:
        assert known.status == 304

    assert tag.startswith("W/")  # the same content, other bytes


async def test_only_the_head_is_asked_for(client: TestClient[Any, Any]) -> None:
    async with client.head("/large", headers=GZIP) as answer:
        assert answer.status == 200
        assert await answer.read() == b""


@pytest.mark.parametrize(
    ("given", "accepted"),
    [
        (None, False), ("", False), ("identity", False), ("br, deflate", False),
        ("gzip", True), ("GZIP", True), ("x-gzip", True), ("br, gzip;q=0.5", True), ("*", True),
        ("gzip, deflate, br, zstd", True), ("gzip;q=0", False), ("gzip; q=0.000", False),
        ("*, gzip;q=0", False), ("*;q=0", False), ("identity, gzip;q=0.5", False),
        ("gzip;q=nonsense", False), ("gzipped", False), ("gzip;level=1", True),
    ],
)  # fmt: skip
def test_a_client_says_what_it_reads(given: str | None, *, accepted: bool) -> None:
    headers = CIMultiDict({"Accept-Encoding": given} if given is not None else {})

    assert accepts_gzip(make_mocked_request("GET", "/", headers=headers)) is accepted
