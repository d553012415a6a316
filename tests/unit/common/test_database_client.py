import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.contracts.reports import UserReportQuery
from common.database_client import DatabaseClient
from common.errors import DatabaseServiceUnavailableError, NeighbourError


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
