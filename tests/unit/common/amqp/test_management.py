"""The client of the management API, against one that hangs or says no."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from common.amqp import management
from common.amqp.management import ManagementApi
from common.errors import BrokerUnavailableError

ANSWERS = {
    "/api/queues/%2F": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
    "/behind/api/overview": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}",
    "/api/denied": b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 2\r\n\r\n{}",
    "/api/gone": b"HTTP/1.1 404 Not Found\r\nContent-Length: 2\r\n\r\n{}",
    "/api/broken": b"HTTP/1.1 500 Oops\r\nContent-Length: 13\r\n\r\n" + b'{"e": "oops"}',
    "/api/page": b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>",
}
"""Whole answers by path; any other path gets none."""


@pytest.fixture
async def url() -> AsyncIterator[str]:
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        request = await reader.readuntil(b"\r\n\r\n")
        path = request.split()[1].decode()
        if path in ANSWERS:
            assert b"Authorization: Basic bWU6YS9i\r\n" in request  # me:a/b
            writer.write(ANSWERS[path])

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    yield f"http://me:a%2Fb@127.0.0.1:{server.sockets[0].getsockname()[1]}"
    for writer in writers:
        writer.close()
    server.close()


async def test_rows_are_read_from_the_projects_vhost(url: str) -> None:
    assert await ManagementApi(url).select("queues") == [[]]


async def test_an_api_may_stand_below_a_path(url: str) -> None:
    api = ManagementApi(f"{url}/behind/")

    assert await asyncio.to_thread(api.call, "GET", "/api/overview") == {}


async def test_a_service_does_not_wait_for_one_that_hangs(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(management, "SERVICE_SECONDS", 0.1)

    with pytest.raises(BrokerUnavailableError):
        await asyncio.wait_for(ManagementApi(url).select("bindings"), timeout=5)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/api/denied", "refuses the user me"),
        ("/api/gone", "404"),
        ("/api/broken", "500 .*oops"),
        ("/api/page", "no JSON"),
    ],
)
async def test_an_answer_that_says_no_is_an_error_in_words(url: str, path: str, words: str) -> None:
    with pytest.raises(BrokerUnavailableError, match=words):
        await asyncio.to_thread(ManagementApi(url).call, "GET", path)


@pytest.mark.parametrize("path", ["/api/denied", "/api/gone"])
async def test_what_may_be_hidden_or_missing_is_none_where_that_is_expected(
    url: str, path: str
) -> None:
    api = ManagementApi(url)

    assert await asyncio.to_thread(lambda: api.call("GET", path, or_none=True)) is None


@pytest.mark.parametrize("url", ["ftp://host", "http://", "http://host:seven", "host:15672"])
def test_an_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(BrokerUnavailableError, match="should look like"):
        ManagementApi(url)
