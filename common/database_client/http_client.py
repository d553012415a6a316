"""HTTP from one service to another: requests over connections that stay open.

It reads what our servers and most proxies before them answer, and nothing else: HTTP/1.1, a body
with ``Content-Length`` or in chunks. aiohttp's client can do far more, which costs a lone
registration on a quiet system a tenth of its way: ``docs/adr/0022-lean-http-client.md``.
"""

import asyncio
import base64
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple, Self, cast

from aiohappyeyeballs import start_connection
from httptools import HttpParserError, HttpResponseParser
from yarl import URL

HEAD_LIMIT = 64 * 1024
"""Bytes that may come without a byte of the body: of a head, of a chunk's size, of trailers."""

BODY_LIMIT = 64 * 1024 * 1024
"""Bytes of an answer's body; most have some hundred, a page of the largest mails half of it."""

IDLE_SECONDS = 15.0
"""After this long without a request a connection is not used again.

Shorter than servers and proxies keep theirs, so that no request runs into their closing it.
"""

NEXT_ADDRESS_SECONDS = 0.25
"""Until the next address of a name is tried as well (RFC 8305, 8)."""

_IDEMPOTENT = ("GET", "PUT", "DELETE")
_NO_BODY = (204, 304)


class Answer(NamedTuple):
    """What a server said."""

    status: int
    content_type: str
    """Without parameters, in lower case; empty if there is none."""
    body: bytes
    stays_open: bool
    """Whether the connection can take another request."""


class MalformedAnswerError(ConnectionError):
    """What came is no answer that is understood here; the connection is of no further use."""


class AnswerReader:
    """Makes answers out of the bytes of a connection, one after the other."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._answer: Answer | None = None
        self._without_body = 0

    def feed(self, data: bytes) -> Answer | None:
        """Take the next bytes; return the answer as soon as it is whole.

        Raises:
            MalformedAnswerError: There never will be one, or more came than one.
        """
        self._without_body += len(data)
        try:
            self._parser.feed_data(data)
        except HttpParserError as error:
            raise MalformedAnswerError(str(error.__context__ or error)) from error
        answer, self._answer = self._answer, None
        if answer is not None:
            self._without_body = 0
        elif self._without_body > HEAD_LIMIT:
            raise MalformedAnswerError("the head, the trailers or a chunk's size are too long")
        return answer

    # Called by the parser:

    def on_message_begin(self) -> None:
        """Forget the last answer; refuse another one in the same bytes."""
        if self._answer is not None:
            raise MalformedAnswerError("more than an answer")
        self._content_type, self._is_delimited = "", False
        self._chunks: list[bytes] = []
        self._body_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep the media type; refuse a body that is too long or encoded."""
        name = name.lower()
        if name == b"content-type":
            self._content_type = value.partition(b";")[0].strip().lower().decode("latin-1")
        elif name == b"content-length":
            self._is_delimited = True
            self._limit(int(value))
        elif name == b"transfer-encoding":
            self._is_delimited = True
            if value.lower() != b"chunked":
                raise MalformedAnswerError("a transfer coding that is not supported")

    def on_headers_complete(self) -> None:
        """Refuse interim answers, which no request asks for, and bodies that end by closing."""
        status = self._parser.get_status_code()
        if not 200 <= status < 600:  # noqa: PLR2004
            raise MalformedAnswerError("an interim answer or an unknown status")
        if not self._is_delimited and status not in _NO_BODY:
            raise MalformedAnswerError("an answer without a length")

    def on_body(self, data: bytes) -> None:
        """Keep a part of the body."""
        self._without_body = 0
        self._body_bytes += len(data)
        self._limit(self._body_bytes)
        self._chunks.append(data)

    def on_message_complete(self) -> None:
        """Put the answer together."""
        self._answer = Answer(
            status=self._parser.get_status_code(),
            content_type=self._content_type,
            body=b"".join(self._chunks),
            stays_open=self._parser.should_keep_alive(),
        )

    def _limit(self, body_bytes: int) -> None:
        if body_bytes > BODY_LIMIT:
            raise MalformedAnswerError(f"a body of more than {BODY_LIMIT} bytes")


class Connection(asyncio.Protocol):
    """A connection to a server, for one request at a time; of no use once it was lost."""

    def __init__(self) -> None:
        self.heard = False
        """Whether anything came since the last request."""
        self._reader = AnswerReader()
        self._lasts = True
        self._waiting: asyncio.Future[Answer] | None = None

    @property
    def usable(self) -> bool:
        """Whether another request can be sent, as far as can be told without sending one."""
        return self._lasts and not self._transport.is_closing()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the request in flight."""
        self._give_up(exc or ConnectionResetError("closed by the server"))

    def data_received(self, data: bytes) -> None:
        """Hand over the answer as soon as it is whole."""
        if (waiting := self._waiting) is None:
            self._break(MalformedAnswerError("an answer to no request"))
            return
        self.heard = True
        try:
            answer = self._reader.feed(data)
        except MalformedAnswerError as error:
            self._break(error)
            return
        if answer is None:
            return
        self._waiting = None
        if not answer.stays_open:
            self._transport.close()
        if not waiting.done():
            waiting.set_result(answer)

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request; a caller that stops waiting for its answer has to ``abort``.

        Returns:
            The answer to come; raises OSError if none will.
        """
        self.heard = False
        self._waiting = asyncio.get_running_loop().create_future()
        if self.usable:
            self._transport.write(request)
        else:
            self._give_up(ConnectionResetError("closed by the server"))
        return self._waiting

    def abort(self) -> None:
        """Close without a word: an answer that still comes must not be taken for another's."""
        self._lasts = False
        self._transport.abort()

    def _break(self, error: MalformedAnswerError) -> None:
        self._give_up(error)
        self._transport.abort()

    def _give_up(self, error: Exception) -> None:
        self._lasts = False
        if self._waiting and not self._waiting.done():
            self._waiting.set_exception(error)


class HttpClient:
    """Requests to one server; connections are used again, the last one first."""

    def __init__(self, url: URL) -> None:
        self._host, self._port = url.raw_host or "", url.port or 80
        self._tls = ssl.create_default_context() if url.scheme == "https" else None
        self._prefix = url.raw_path.rstrip("/") + "/"
        self._head = f"Host: {url.host_port_subcomponent}\r\nAccept: application/json\r\n"
        if url.user is not None:
            login = base64.b64encode(f"{url.user}:{url.password or ''}".encode()).decode()
            self._head += f"Authorization: Basic {login}\r\n"
        self._idle: list[tuple[Connection, float]] = []
        self._busy: set[Connection] = set()
        self._closed = False

    @classmethod
    @asynccontextmanager
    async def open(cls, url: URL) -> AsyncIterator[Self]:
        """A client of the server at ``url``; nothing is connected yet."""
        client = cls(url)
        try:
            yield client
        finally:
            client._closed = True
            client._drop_idle()
            for connection in client._busy:
                connection.abort()

    async def request(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None,
        headers: Mapping[str, str],
        seconds: float,
    ) -> Answer:
        """Make a request; a body is JSON.

        If a connection that was used before is lost without a word, a request that is the same
        when made twice (RFC 9110, 9.2.2) is made once more on a new one. Nothing else is.

        Args:
            method: GET, POST, ...
            path: Below the client's address, encoded, with its query.
            body: None where the method has none.
            headers: Beyond those that go with every request; they end where they end.
            seconds: Longest time for all of it.

        Raises:
            MalformedAnswerError: What came is not understood.
            TimeoutError: It took longer.
            OSError: There is no connection, or it was lost.
        """
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if body is not None:
            lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}{lines}\r\n"
        request = head.encode() + (body or b"")
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(request, twice=method in _IDEMPOTENT)
        except TimeoutError:
            self._drop_idle()  # they lead where this one led
            raise

    async def _exchange(self, request: bytes, *, twice: bool) -> Answer:
        connection = self._take_idle()
        was_used = connection is not None
        connection = connection or await self._connect()
        self._busy.add(connection)
        try:
            answer = await connection.send(request)
        except ConnectionError:
            if not (was_used and twice) or connection.heard or self._closed:
                raise
        except BaseException:
            connection.abort()
            raise
        else:
            if connection.usable:
                self._idle.append((connection, _now()))
            return answer
        finally:
            self._busy.discard(connection)
        self._drop_idle()
        return await self._exchange(request, twice=False)

    def _take_idle(self) -> Connection | None:
        """The connection that was used last, unless even that was long ago."""
        while self._idle:
            connection, since = self._idle.pop()
            if _now() - since > IDLE_SECONDS:
                connection.abort()
                self._drop_idle()
            elif connection.usable:
                return connection
        return None

    async def _connect(self) -> Connection:
        if self._closed:
            raise ConnectionAbortedError("the client was closed")
        loop = asyncio.get_running_loop()
        # Not one address after the other: the first of several may swallow all that is sent.
        found = await loop.getaddrinfo(self._host, self._port, type=socket.SOCK_STREAM)
        connected = await start_connection(found, happy_eyeballs_delay=NEXT_ADDRESS_SECONDS)
        _, made = await loop.create_connection(
            Connection,
            sock=connected,
            ssl=self._tls,
            server_hostname=self._host if self._tls else None,
        )
        if self._closed:
            made.abort()
            raise ConnectionAbortedError("the client was closed")
        return made

    def _drop_idle(self) -> None:
        while self._idle:
            self._idle.pop()[0].abort()


def _now() -> float:
    return asyncio.get_running_loop().time()
