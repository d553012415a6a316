"""What never becomes a request, over a real socket."""

import asyncio
import json
import resource
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import structlog
from aiohttp import web

from common.http import server, validation
from common.http.api import Api
from common.http.app import base_app
from common.http.runtime import MOST_FILES, raise_file_limit
from common.http.server import Runner
from common.http.validation import read_bytes
from common.readiness import Readiness

NO_REQUEST = {
    "a query too long": b"GET /?" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an unknown method": b"<script> / HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "an unknown version": b"GET / HTTP/9.9\r\nHost: localhost\r\n\r\n",
    "a control character": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: <script>\x01\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a broken chunk": b"POST / HTTP/1.1\r\nHost: localhost\r\n"
    b"Transfer-Encoding: chunked\r\n\r\nZZZ\r\n",
    "a greeting in TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 100,
}


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Where a service listens that reads the body of ``POST /``."""

    async def read(request: web.Request) -> web.Response:
        return web.Response(body=await read_bytes(request))

    app = base_app("test", Api(), description="A test.", readiness=Readiness())
    app.router.add_post("/", read)
    runner = Runner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def answer_to(port: int, data: bytes) -> tuple[int, dict[str, str], dict[str, Any]]:
    """Status, headers and problem; returns when the service has closed the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    finally:
        writer.close()
    first, *lines = head.decode().split("\r\n")
    headers = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    return int(first.split(" ")[1]), headers, json.loads(body)


@pytest.mark.parametrize("kind", NO_REQUEST)
async def test_what_is_no_http_is_answered_with_a_problem_that_tells_nothing_of_us(
    kind: str, port: int
) -> None:
    with structlog.testing.capture_logs() as logs:
        status, headers, problem = await answer_to(port, NO_REQUEST[kind])

    assert status == 400
    assert headers["content-type"].startswith("application/problem+json")
    assert headers["server"] == "UserStream"
    assert problem["code"] == "malformed"
    assert problem["requestId"]
    assert "script" not in json.dumps(problem)
    assert [entry["log_level"] for entry in logs] == ["info"]


@pytest.mark.slow
async def test_a_body_that_does_not_arrive_is_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "BODY_SECONDS", 0.1)

    status, _, problem = await answer_to(
        port,
        b"POST / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{",
    )

    assert (status, problem["code"]) == (408, "too_slow")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: localhost\r\nX: "])
async def test_a_connection_that_asks_nothing_is_closed(
    begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "IDLE_SECONDS", 0.1)
    runner = Runner(web.Application())
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", runner.addresses[0][1])
        writer.write(begun)
        async with asyncio.timeout(20):
            assert await reader.read() == b""
        writer.close()
    finally:
        await runner.cleanup()


async def test_a_client_that_vanishes_while_sending_is_no_error(
    port: int, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()
    # Answered after those, on the same loop.
    status, _, _ = await answer_to(port, NO_REQUEST["two lengths"])

    assert status == 400
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


@contextmanager
def open_files(limit: int) -> Iterator[None]:
    """Let this process open so many files for a while."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


SAYING_LITTLE = {
    "nothing": b"",
    "half a head": b"POST / HTTP/1.1\r\nHost: [::1]\r\nX: ",
    "half a body": b"POST / HTTP/1.1\r\nHost: [::1]\r\nContent-Length: 9\r\n\r\n{",
    "a request, and no other": b"GET /health/live HTTP/1.1\r\nHost: [::1]\r\n\r\n",
}


@pytest.mark.parametrize("kind", SAYING_LITTLE)
async def test_connections_that_say_little_take_no_place_from_others(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "connection_limit", lambda: 20)
    app = base_app("test", Api(), description="A test.", readiness=Readiness())

    async def read(request: web.Request) -> web.Response:
        return web.Response(body=await read_bytes(request))

    app.router.add_post("/", read)
    runner = Runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    silent = []
    try:
        for _ in range(60):
            silent.append(await asyncio.open_connection("127.0.0.1", port))
            silent[-1][1].write(SAYING_LITTLE[kind])
        async with asyncio.timeout(60):
            # The first of them was closed to make room; so the server has seen them all.
            while await silent[0][0].read(1000):
                pass
        status, _, problem = await answer_to(
            port, b"GET /nothing HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n"
        )
        held = len(runner.server.connections) if runner.server else 0
    finally:
        for _, writer in silent:
            writer.close()
        await runner.cleanup()

    assert (status, problem["code"]) == (404, "not_found")
    assert held <= 20


async def test_what_has_been_asked_is_answered_however_many_connections_come(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server, "connection_limit", lambda: 10)
    go_on = asyncio.Event()

    async def wait(_request: web.Request) -> web.Response:
        await go_on.wait()
        return web.json_response({"code": "answered"})

    app = base_app("test", Api(), description="A test.", readiness=Readiness())
    app.router.add_get("/wait", wait)
    runner = Runner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    port = runner.addresses[0][1]
    asked = b"GET /wait HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n"
    waiting = [asyncio.create_task(answer_to(port, asked)) for _ in range(5)]
    idle = [await asyncio.open_connection("127.0.0.1", port) for _ in range(30)]
    try:
        async with asyncio.timeout(60):
            assert await idle[0][0].read() == b""
        go_on.set()
        answers = await asyncio.gather(*waiting)
    finally:
        for _, writer in idle:
            writer.close()
        await runner.cleanup()

    assert [(status, said["code"]) for status, _, said in answers] == [(200, "answered")] * 5


async def test_a_head_without_end_is_given_up(port: int) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET / HTTP/1.1\r\nHost: [::1]\r\n")
    async with asyncio.timeout(60):
        with suppress(ConnectionError):
            for number in range(100):
                writer.write(b"X-%d: " % number + b"a" * 5_000 + b"\r\n")
                await writer.drain()
            assert await reader.read() == b""
    writer.close()


def test_there_is_room_for_what_is_no_connection_of_a_client() -> None:
    with open_files(1024):
        assert server.connection_limit() == 1024 - server.RESERVED_FILES
    with open_files(100):
        assert server.connection_limit() == 50


def test_a_service_opens_as_many_files_as_it_may() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with open_files(256):
        raise_file_limit()
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)

    assert soft == (MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES))
