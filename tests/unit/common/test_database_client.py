import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.contracts.reports import UserReportQuery
from common.database_client import DatabaseClient
from common.errors import (
    DatabaseServiceUnavailableError,
    InvalidError,
    NeighbourError,
    NotFoundError,
)


async def break_off(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"ID,Name\n")
    assert request.transport is not None
    request.transport.abort()
    await asyncio.sleep(0)
    return response


@asynccontextmanager
async def a_client(
    report: Callable[[web.Request], Awaitable[web.StreamResponse]], *, ready: bool
) -> AsyncIterator[DatabaseClient]:
    async def readiness(_request: web.Request) -> web.Response:
        return web.Response(status=200 if ready else 503)

    app = web.Application()
    app.router.add_get("/api/users/report", report)
    app.router.add_get("/health/ready", readiness)
    async with TestServer(app) as server, DatabaseClient.open(str(server.make_url("/"))) as client:
        yield client


@pytest.mark.parametrize(
    ("ready", "error"), [(True, NeighbourError), (False, DatabaseServiceUnavailableError)]
)
async def test_a_stream_that_breaks_off_is_an_outage_only_if_the_neighbour_is_away(
    *, ready: bool, error: type[Exception]
) -> None:
    async with a_client(break_off, ready=ready) as client:
        with pytest.raises(error, match="broke off"):
            async for _ in client.stream_users(UserReportQuery()):
                pass


PROBLEM = "application/problem+json"


@pytest.mark.parametrize(
    ("status", "content_type", "text", "error", "words"),
    [
        (404, PROBLEM, '{"code": "not_found", "detail": "No such."}', NotFoundError, "No such"),
        (422, PROBLEM, '{"code": "invalid"}', InvalidError, None),
        (404, "text/html", "<h1>404</h1>", NeighbourError, "404"),
        (401, PROBLEM, '{"code": "not_found"}', NeighbourError, "401"),
        (422, PROBLEM, '{"code": "of the future"}', NeighbourError, "422"),
        (422, PROBLEM, "no JSON", NeighbourError, "422"),
        (422, PROBLEM, "[]", NeighbourError, "422"),
        (503, PROBLEM, '{"detail": "Away."}', DatabaseServiceUnavailableError, "Away"),
        (503, "text/html", "", DatabaseServiceUnavailableError, None),
        (502, "text/html", "<h1>502</h1>", NeighbourError, "502"),
        (500, PROBLEM, '{"code": "not_found"}', NeighbourError, "500"),
        (307, "text/plain", "", NeighbourError, "DATABASE_SERVICE_URL"),
        (200, "text/html", "<h1>Welcome</h1>", NeighbourError, "unexpected"),
        (200, "application/json", "{}", NeighbourError, "unexpected"),
    ],
)
async def test_what_the_neighbour_answers_decides_what_is_raised(
    status: int, content_type: str, text: str, error: type[Exception], words: str | None
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        headers = {"Location": "/elsewhere"} if status == 307 else {}
        return web.Response(status=status, text=text, content_type=content_type, headers=headers)

    app = web.Application()
    app.router.add_get("/api/registrations/{id}", answer)
    app.router.add_get("/api/users/report", answer)
    async with TestServer(app) as server, DatabaseClient.open(str(server.make_url("/"))) as client:
        with pytest.raises(error, match=words) as raised:
            await client.select_journey(uuid4())
        assert type(raised.value) is error
        if status != 200:
            with pytest.raises(error, match=words):
                async for _ in client.stream_users(UserReportQuery()):
                    pass


async def test_what_is_no_http_counts_against_the_neighbour_and_is_no_outage() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, DatabaseClient.open(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(NeighbourError, match="unexpected"):
            await client.select_journey(uuid4())
