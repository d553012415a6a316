import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from uuid import uuid4

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from common.contracts.reports import UserReportQuery
from common.database_client.client import DatabaseClient
from common.errors import (
    DatabaseServiceUnavailableError,
    InvalidError,
    NotFoundError,
    RowLockedError,
    UpstreamError,
    UpstreamTimeoutError,
)
from tests.polling import until


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
    ("ready", "error"), [(True, UpstreamError), (False, DatabaseServiceUnavailableError)]
)
async def test_a_stream_that_breaks_off_is_an_outage_only_if_database_service_is_away(
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
        (404, "text/html", "<h1>404</h1>", UpstreamError, "404"),
        (401, PROBLEM, '{"code": "not_found"}', UpstreamError, "401"),
        (422, PROBLEM, '{"code": "of the future"}', UpstreamError, "422"),
        (422, PROBLEM, "no JSON", UpstreamError, "422"),
        (422, PROBLEM, "[]", UpstreamError, "422"),
        (503, PROBLEM, '{"detail": "Away."}', DatabaseServiceUnavailableError, "Away"),
        (
            503,
            PROBLEM,
            '{"code": "row_locked", "detail": "LockedQueue."}',
            RowLockedError,
            "LockedQueue",
        ),
        (503, "text/html", "", DatabaseServiceUnavailableError, None),
        (502, "text/html", "<h1>502</h1>", UpstreamError, "502"),
        (500, PROBLEM, '{"code": "not_found"}', UpstreamError, "500"),
        (307, "text/plain", "", UpstreamError, "DATABASE_SERVICE_URL"),
        (200, "text/html", "<h1>Welcome</h1>", UpstreamError, "unexpected"),
        (200, "application/json", "{}", UpstreamError, "unexpected"),
    ],
)
async def test_what_database_service_answers_decides_what_is_raised(
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


async def test_what_is_no_http_counts_against_database_service_and_is_no_outage() -> None:
    async def talk(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _reader.readuntil(b"\r\n\r\n")
        writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server, DatabaseClient.open(f"http://127.0.0.1:{port}") as client:
        with pytest.raises(UpstreamError, match="unexpected"):
            await client.select_journey(uuid4())


class Frozen:
    """A database_service that answers while it is thawed; counts what it was asked beside that."""

    def __init__(self) -> None:
        self.thawed = asyncio.Event()
        self.requests = 0
        self.ready = 200

    async def answer(self, request: web.Request) -> web.Response:
        if request.path != "/health/ready":
            self.requests += 1
        await self.thawed.wait()
        if request.path == "/health/ready":
            return web.Response(status=self.ready)
        if self.ready != 200:
            return web.json_response({"code": "database_unavailable"}, status=503)
        return web.json_response({"registrationId": str(uuid4()), "status": "pending"})


@pytest.fixture
async def frozen(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[Frozen, DatabaseClient]]:
    monkeypatch.setattr("common.database_client.client.REQUEST_SECONDS", 0.2)
    monkeypatch.setattr("common.database_client.client.READINESS_SECONDS", 0.2)
    service = Frozen()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", service.answer)
    async with TestServer(app) as server, DatabaseClient.open(str(server.make_url("/"))) as client:
        yield service, client
        service.thawed.set()


async def test_a_frozen_service_costs_the_first_caller_a_time_out_and_no_other(
    frozen: tuple[Frozen, DatabaseClient],
) -> None:
    service, client = frozen
    for _ in range(30):
        with pytest.raises(DatabaseServiceUnavailableError):
            await client.select_journey(uuid4())
    with pytest.raises(DatabaseServiceUnavailableError):
        await client.check()
    with pytest.raises(DatabaseServiceUnavailableError):
        async for _ in client.stream_users(UserReportQuery()):
            pass

    assert service.requests == 1  # who does not ask, does not wait

    service.thawed.set()
    await until(lambda: client.circuit.is_closed, "closing the circuit")
    await client.select_journey(uuid4())
    await client.check()


async def test_one_slow_answer_of_a_service_that_is_ready_opens_no_circuit(
    frozen: tuple[Frozen, DatabaseClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, client = frozen

    async def ready() -> bool:
        return True

    monkeypatch.setattr(client, "_is_ready", ready)
    with pytest.raises(UpstreamTimeoutError):
        await client.select_journey(uuid4())

    assert client.circuit.is_closed


async def test_a_service_that_cannot_work_opens_the_circuit_until_it_can(
    frozen: tuple[Frozen, DatabaseClient],
) -> None:
    service, client = frozen
    service.thawed.set()
    service.ready = 503
    for _ in range(10):
        with pytest.raises(DatabaseServiceUnavailableError):
            await client.select_journey(uuid4())
    assert service.requests == 1

    service.ready = 200
    await until(lambda: client.circuit.is_closed, "closing the circuit")
    await client.select_journey(uuid4())


async def test_a_refused_connection_opens_the_circuit() -> None:
    async with DatabaseClient.open("http://127.0.0.1:9") as client:
        with pytest.raises(DatabaseServiceUnavailableError):
            await client.select_journey(uuid4())

        assert not client.circuit.is_closed
