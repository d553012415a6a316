"""What never becomes a request, over a real socket."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import structlog
from aiohttp import web

from common.http import server, validation
from common.http.api import Api
from common.http.app import base_app
from common.http.health import Readiness
from common.http.server import Runner
from common.http.validation import read_bytes

NO_REQUEST = {
    "a query too long": b"GET /?" + b"a" * 9_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
    "a header too long": b"GET / HTTP/1.1\r\nHost: x\r\nX: " + b"a" * 9_000 + b"\r\n\r\n",
    "an unknown method": b"<script> / HTTP/1.1\r\nHost: x\r\n\r\n",
    "an unknown version": b"GET / HTTP/9.9\r\nHost: x\r\n\r\n",
    "a control character": b"GET / HTTP/1.1\r\nHost: x\r\nX: <script>\x01\r\n\r\n",
    "two lengths": b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a broken chunk": b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
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


async def test_a_body_that_does_not_arrive_is_given_up(
    port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "BODY_SECONDS", 0.1)

    status, _, problem = await answer_to(
        port, b"POST / HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{"
    )

    assert (status, problem["code"]) == (408, "too_slow")


@pytest.mark.parametrize("begun", [b"", b"GET / HTTP/1.1\r\nHost: x\r\nX: "])
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
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        await writer.drain()
        writer.transport.abort()
    # Answered after those, on the same loop.
    status, _, _ = await answer_to(port, NO_REQUEST["two lengths"])

    assert status == 400
    assert not [record for record in caplog.records if record.levelname == "ERROR"]
