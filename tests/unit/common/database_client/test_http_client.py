"""The client between services: every answer understood whole, and never another one's."""

import asyncio
import json
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from itertools import pairwise
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from common.database_client.http_client import (
    BODY_LIMIT,
    HEAD_LIMIT,
    Answer,
    AnswerReader,
    HttpClient,
    MalformedAnswerError,
)
from tests.certificates import certificate
from tests.polling import PATIENCE_SECONDS, until

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def chunked(body: bytes, size: int, trailers: bytes = b"") -> bytes:
    chunks = [body[at : at + size] for at in range(0, len(body), size)]
    text = b"".join(b"%x;a=b\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    return text + b"0\r\n" + trailers + b"\r\n"


# -- one answer ------------------------------------------------------------------------------


@given(
    status=st.integers(200, 599),
    body=st.binary(max_size=300),
    size=st.none() | st.integers(1, 100),
    trailers=st.sampled_from([b"", b"X: y\r\n"]),
    data=st.data(),
)
def test_an_answer_is_there_when_it_is_whole_and_not_before(
    status: int, body: bytes, size: int | None, trailers: bytes, data: st.DataObject
) -> None:
    head = b"HTTP/1.1 %d Any Reason\r\ncontent-TYPE: Application/JSON; charset=utf-8\r\n" % status
    if size is None:
        text = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    else:
        text = head + b"Transfer-Encoding: chunked\r\n\r\n" + chunked(body, size, trailers)
    cuts = sorted(data.draw(st.sets(st.integers(1, len(text) - 1), max_size=5)))
    parts = [text[start:end] for start, end in pairwise([0, *cuts, len(text)])]
    reader = AnswerReader()

    for _ in range(2):  # on one connection
        assert [reader.feed(part) for part in parts[:-1]] == [None] * (len(parts) - 1)
        assert reader.feed(parts[-1]) == Answer(status, "application/json", body, stays_open=True)
    with pytest.raises(MalformedAnswerError):
        reader.feed(text + b"x")


@given(st.binary(max_size=400) | st.binary(max_size=200).map(lambda rest: OK[:-2] + rest))
def test_whatever_comes_is_an_answer_or_said_to_be_none(received: bytes) -> None:
    with suppress(MalformedAnswerError):
        answer = AnswerReader().feed(received)
        assert answer is None or received.endswith(answer.body)


@pytest.mark.parametrize(
    ("head", "stays_open"),
    [
        (b"HTTP/1.1 204 No Content\r\n", True),
        (b"HTTP/1.1 304\r\nServer: x\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, close\r\n", False),
        (b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\nConnection: x\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n", False),
    ],
)
def test_an_answer_without_a_body(head: bytes, stays_open: bool) -> None:  # noqa: FBT001
    answer = AnswerReader().feed(head + b"\r\n")

    assert isinstance(answer, Answer)
    assert (answer.body, answer.stays_open) == (b"", stays_open)


@pytest.mark.parametrize(
    "received",
    [
        OK + OK,
        b"HTTP/2 200 OK\r\n\r\n",
        b"220 mail.example.org ESMTP\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nno colon\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n: x\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nX: a\r\n Content-Length: 1\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nContent-Length : 1\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length : 5\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding : chunked\r\nContent-Length: 1\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\nContent-Length: 1\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 1\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n1",
        b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (BODY_LIMIT + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + 2 * (b"%x\r\n%b\r\n" % (BODY_LIMIT // 2 + 1, bytes(BODY_LIMIT // 2 + 1))),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\n1",
        b"HTTP/1.1 204 No Content\r\nContent-Length: 1\r\n\r\n1",
        b"HTTP/1.1 101 Switching\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nz\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"1" * (HEAD_LIMIT + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"1" * (HEAD_LIMIT + 1),
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_LIMIT,
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_LIMIT + b"\r\n\r\n",
    ],
)
def test_what_is_no_answer(received: bytes) -> None:
    with pytest.raises(MalformedAnswerError):
        AnswerReader().feed(received)


def test_a_connection_may_bring_any_number_of_answers() -> None:
    reader, answer = AnswerReader(), b"HTTP/1.1 204 No Content\r\n\r\n"

    for _ in range(HEAD_LIMIT // len(answer) + 1):
        assert reader.feed(answer[:-1]) is None
        assert reader.feed(answer[-1:])


# -- against a real server -------------------------------------------------------------------


@pytest.fixture
async def url() -> AsyncIterator[URL]:
    """A server that says what it was asked, by which connection, and how to answer."""

    async def tell(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        told = {
            "method": request.method,
            "path": request.path_qs,
            "headers": dict(request.headers),
            "body": (await request.read()).decode(),
            "port": request.transport.get_extra_info("peername")[1],
        }
        response = web.json_response(told, status=int(request.query.get("status", "200")))
        if "chunked" in request.query:
            response.enable_chunked_encoding()
        if "close" in request.query:
            response.force_close()
        return response

    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", tell)
    async with TestServer(app) as server:
        yield server.make_url("/below/")


async def ask(
    client: HttpClient, path: str, *, method: str = "GET", body: bytes | None = None
) -> dict[str, Any]:
    answer = await client.request(
        method, path, body=body, headers={"X-Any": "abc"}, seconds=PATIENCE_SECONDS
    )
    assert answer.content_type == "application/json"
    told: dict[str, Any] = json.loads(answer.body) | {"status": answer.status}
    return told


async def test_a_request_arrives_as_it_was_made(url: URL) -> None:
    async with HttpClient.open(url.with_user("ada").with_password("s:cret")) as client:
        told = await ask(
            client, "api/users?status=409&x=a%20b", method="PUT", body=b'{"a": "\xc3\xa9"}'
        )
        bare = await ask(client, "")

    assert told["status"] == 409
    assert (told["method"], told["path"]) == ("PUT", "/below/api/users?status=409&x=a%20b")
    assert told["body"] == '{"a": "é"}'
    assert told["headers"] == {
        "Host": f"{url.host}:{url.port}",
        "Accept": "application/json",
        "Authorization": "Basic YWRhOnM6Y3JldA==",
        "X-Any": "abc",
        "Content-Type": "application/json",
        "Content-Length": "11",
    }
    assert (bare["method"], bare["path"], bare["body"]) == ("GET", "/below/", "")
    assert "Content-Length" not in bare["headers"]


async def test_a_connection_is_used_again_unless_the_server_closes_it(url: URL) -> None:
    async with HttpClient.open(url) as client:
        ports = [
            (await ask(client, path))["port"]
            for path in ("a", "b?chunked=1", "c?close=1", "d", "e")
        ]

    first, second = ports[0], ports[3]
    assert ports == [first, first, first, second, second]
    assert first != second


async def test_a_connection_that_the_server_will_close_is_not_used_again() -> None:
    requests: list[int] = []

    async def stay_open(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = max(requests, default=0) + 1
        with suppress(asyncio.IncompleteReadError):
            while await reader.readuntil(b"\r\n\r\n"):
                requests.append(connection)
                writer.write(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    async with a_client_of(stay_open) as client:
        await get(client)
        await get(client)

    assert requests == [1, 2]


async def test_requests_at_the_same_time_have_connections_of_their_own(url: URL) -> None:
    async with HttpClient.open(url) as client:
        paths = [f"r{number}" for number in range(20)]
        told = await asyncio.gather(*(ask(client, path) for path in paths))
        again = await ask(client, "again")

    assert [each["path"] for each in told] == [f"/below/{path}" for path in paths]
    assert len({each["port"] for each in told}) == 20
    assert again["port"] in {each["port"] for each in told}


# -- against servers that behave oddly -------------------------------------------------------


@asynccontextmanager
async def a_client_of(
    serve: Script, tls: ssl.SSLContext | None = None
) -> AsyncIterator[HttpClient]:
    async def closing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(closing, "127.0.0.1", 0, ssl=tls)
    port = server.sockets[0].getsockname()[1]
    scheme = "https" if tls else "http"
    try:
        async with HttpClient.open(URL(f"{scheme}://localhost:{port}")) as client:
            yield client
    finally:
        server.close()


async def get(
    client: HttpClient, *, seconds: float = PATIENCE_SECONDS, method: str = "GET"
) -> bytes:
    return (await client.request(method, "", body=None, headers={}, seconds=seconds)).body


async def test_who_stops_waiting_leaves_no_answer_to_others() -> None:
    asked = ended = 0
    is_late = asyncio.Event()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked, ended
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                asked += 1
                if asked <= 2:
                    await is_late.wait()
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % asked)
        ended += 1

    async with a_client_of(answer) as client:
        with pytest.raises(TimeoutError):
            await get(client, seconds=0.1)
        cancelled = asyncio.create_task(get(client))
        await until(lambda: asked == 2)
        cancelled.cancel()
        await asyncio.wait([cancelled])
        is_late.set()

        assert [await get(client), await get(client)] == [b"3", b"4"]
        await until(lambda: ended == 2, "closing both connections")


@pytest.mark.parametrize("answer", [b"", OK[:-1], b"HTTP/1.1 200 OK\r\nContent-Le"])
async def test_a_lost_connection_is_an_error_and_is_not_asked_again(answer: bytes) -> None:
    asked = 0

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        await reader.readuntil(b"\r\n\r\n")
        asked += 1
        writer.write(answer)

    async with a_client_of(hang_up) as client:
        with pytest.raises(ConnectionError):
            await get(client)

    assert asked == 1


async def test_nonsense_is_an_error_and_ends_the_connection() -> None:
    ended = asyncio.Event()

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.org ESMTP\r\n\r\n")
        with suppress(ConnectionError):
            while await reader.read(1024):
                pass
        ended.set()

    async with a_client_of(talk) as client, asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(MalformedAnswerError):
            await get(client)
        await ended.wait()


@pytest.mark.parametrize(("method", "again"), [("GET", True), ("POST", False)])
async def test_what_is_lost_with_an_old_connection_is_asked_again_if_that_is_safe(
    method: str,
    again: bool,  # noqa: FBT001
) -> None:
    asked: list[int] = []
    connections = 0

    async def hang_up_at_the_second(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        nonlocal connections
        connections += 1
        with suppress(asyncio.IncompleteReadError):
            for number in (1, 2):
                await reader.readuntil(b"\r\n\r\n")
                asked.append(connections)
                if number == 1:
                    writer.write(OK)

    async with a_client_of(hang_up_at_the_second) as client:
        await get(client)
        if again:
            assert await get(client, method=method) == b"ok"
        else:
            with pytest.raises(ConnectionError):
                await get(client, method=method)

    assert asked == ([1, 1, 2] if again else [1, 1])


async def test_a_connection_that_was_idle_for_long_is_not_used_again(
    url: URL, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with HttpClient.open(url) as client:
        told = await asyncio.gather(ask(client, "a"), ask(client, "b"))
        monkeypatch.setattr("common.database_client.http_client.IDLE_SECONDS", -1.0)
        later = (await ask(client, "c"))["port"]
        monkeypatch.undo()
        again = (await ask(client, "d"))["port"]

    assert later not in {each["port"] for each in told}
    assert again == later


async def test_a_connection_that_is_being_closed_is_not_used_again(url: URL) -> None:
    async with HttpClient.open(url) as client:
        first = (await ask(client, "a"))["port"]
        (connection, _), *_others = client._idle
        connection._transport.close()  # as when the server's farewell was read in this turn

        assert (await ask(client, "b", method="POST", body=b"{}"))["port"] != first


async def test_a_time_out_casts_doubt_on_all_connections() -> None:
    silent = asyncio.Event()
    connections = 0

    async def answer_at_first(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        is_new = silent.is_set()
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                if is_new or not silent.is_set():
                    await asyncio.sleep(0)
                    writer.write(OK)

    async with a_client_of(answer_at_first) as client:
        await asyncio.gather(*(get(client) for _ in range(3)))
        before = connections
        silent.set()
        with pytest.raises(TimeoutError):
            await get(client, seconds=0.1)

        assert await get(client) == b"ok"
        assert connections == before + 1


async def test_a_closed_client_leaves_nothing_open_and_makes_nothing_new() -> None:
    ended = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal ended
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(OK)
            await reader.readuntil(b"\r\n\r\n")
            await reader.read()  # no answer: the client waits
        ended += 1

    async with a_client_of(answer) as client:
        await asyncio.gather(get(client), get(client))
        waiting = asyncio.create_task(get(client))
        await asyncio.sleep(0)
    with pytest.raises(ConnectionError):
        await waiting
    with pytest.raises(ConnectionAbortedError):
        await get(client)
    await until(lambda: ended == 2, "closing both connections")


async def test_what_an_idle_connection_says_is_taken_for_no_answer() -> None:
    talked = asyncio.Event()

    async def talk_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await asyncio.sleep(0.05)  # the client has it, and thinks that this is all
        writer.write(OK.replace(b"ok", b"no"))
        talked.set()
        with suppress(ConnectionError):
            await reader.read()

    async with a_client_of(talk_on) as client:
        assert await get(client) == b"ok"
        await talked.wait()
        await asyncio.sleep(0.05)
        assert await get(client) == b"ok"


async def test_nobody_there_is_an_error() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        async with HttpClient.open(URL(f"http://127.0.0.1:{silent.getsockname()[1]}")) as client:
            with pytest.raises(ConnectionRefusedError):
                await get(client)


async def test_tls_is_spoken_and_the_certificate_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await reader.read()

    shown = certificate("DNS:localhost")
    async with a_client_of(answer, shown.for_server()) as client:
        with pytest.raises(ssl.SSLCertVerificationError):
            await get(client)
    of_another = certificate("DNS:example.org")
    monkeypatch.setenv("SSL_CERT_FILE", str(of_another.certificate))
    async with a_client_of(answer, of_another.for_server()) as client:
        with pytest.raises(ssl.SSLCertVerificationError, match="Hostname mismatch"):
            await get(client)
    monkeypatch.setenv("SSL_CERT_FILE", str(shown.certificate))
    async with a_client_of(answer, shown.for_server()) as client:
        assert await get(client) == b"ok"
