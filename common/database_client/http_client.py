"""HTTP from one service to another: requests over connections that stay open.

It reads what our servers and most proxies before them answer, and nothing else: HTTP/1.1, a body
with ``Content-Length`` or in chunks. aiohttp's client can do far more, which costs a lone
registration on a quiet system a tenth of its way: ``docs/adr/0022-lean-http-client.md``.
"""

import asyncio
import base64
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple, Self, cast

from aiohappyeyeballs import start_connection
from yarl import URL

HEAD_LIMIT = 64 * 1024
"""Bytes of an answer's head."""

BODY_LIMIT = 64 * 1024 * 1024
"""Bytes of an answer's body; most have some hundred, a page of the largest mails half of it."""

IDLE_SECONDS = 15.0
"""After this long without a request a connection is not used again.

Shorter than servers and proxies keep theirs, so that no request runs into their closing it.
"""

NEXT_ADDRESS_SECONDS = 0.25
"""Until the next address of a name is tried as well (RFC 8305, 8)."""

_IDEMPOTENT = ("GET", "PUT", "DELETE")

_HEAD = re.compile(
    rb"(HTTP/1\.[01]) ([1-5]\d\d)(?: [^\r\n]*)?"
    rb"((?:\r\n[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\n]*)*)"
)
"""A status line and headers; not one whose name has a blank, which others may read differently."""

_SPOKEN = re.compile(
    rb"\r\n(content-length|content-type|transfer-encoding|connection):([^\r\n]*)", re.IGNORECASE
)
"""The headers that say something here; of those of our servers a third."""
_DECIMAL = re.compile(rb"\d{1,12}")
_HEXADECIMAL = re.compile(rb"[0-9A-Fa-f]{1,8}")
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


def read_answer(received: bytes | bytearray) -> Answer | int:
    """The answer in the bytes that came until now, or how many it takes at least.

    Raises:
        MalformedAnswerError: There never will be one.
    """
    end = received.find(b"\r\n\r\n")
    if end > HEAD_LIMIT or (end < 0 and len(received) > HEAD_LIMIT):
        raise MalformedAnswerError("the head of an answer is too long")
    if end < 0:
        return len(received) + 1
    if not (head := _HEAD.fullmatch(received, 0, end)):
        raise MalformedAnswerError("the head of an answer is not understood")
    version, code, lines = head.groups()
    status, headers = int(code), _headers(lines)
    if status < 200:  # noqa: PLR2004 - of which none is ever asked for here
        raise MalformedAnswerError("an interim answer")
    body = _read_body(status, headers, received, end + 4)
    if isinstance(body, int):
        return body
    closing = b"close" in re.split(rb"[\s,]+", headers.get(b"connection", b"").lower())
    return Answer(
        status=status,
        content_type=_content_type(headers.get(b"content-type", b"")),
        body=body,
        stays_open=version == b"HTTP/1.1" and not closing,
    )


def _content_type(value: bytes) -> str:
    return value.partition(b";")[0].strip().lower().decode("latin-1")


def _headers(lines: bytes) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for spelling, rest in _SPOKEN.findall(lines):
        name, value = spelling.lower(), rest.strip()
        if name == b"content-length" and headers.get(name, value) != value:
            raise MalformedAnswerError("an answer of two lengths")
        if name != b"content-length" and name in headers:
            value = headers[name] + b", " + value  # RFC 9110, 5.3
        headers[name] = value
    return headers


def _read_body(
    status: int, headers: Mapping[bytes, bytes], received: bytes | bytearray, start: int
) -> bytes | int:
    """The body from ``start`` on, or how many bytes the whole answer takes at least."""
    if b"transfer-encoding" in headers:
        if headers[b"transfer-encoding"].lower() != b"chunked":
            raise MalformedAnswerError("a transfer coding that is not spoken here")
        return _read_chunks(received, start)
    length = headers.get(b"content-length", b"0" if status in _NO_BODY else b"")
    if not _DECIMAL.fullmatch(length) or int(length) > BODY_LIMIT:
        raise MalformedAnswerError("an answer that does not say how long it is, or too long")
    end = start + int(length)
    return bytes(received[start:end]) if _is_whole(received, end) else end


def _read_chunks(received: bytes | bytearray, start: int) -> bytes | int:
    chunks: list[tuple[int, int]] = []
    at, total = start, 0
    while (line_end := received.find(b"\r\n", at)) >= 0:
        size_text = bytes(received[at:line_end]).partition(b";")[0].strip()
        size = int(size_text, 16) if _HEXADECIMAL.fullmatch(size_text) else BODY_LIMIT + 1
        total += size
        if total > BODY_LIMIT:
            raise MalformedAnswerError("a chunk that does not say how long it is, or too long")
        if size == 0:
            end = _end_of_trailers(received, line_end)
            body = (received[first:last] for first, last in chunks)
            return b"".join(body) if _is_whole(received, end) else end
        at = line_end + 2 + size + 2
        if len(received) < at:
            return at
        if received[at - 2 : at] != b"\r\n":
            raise MalformedAnswerError("a chunk of another length than it says")
        chunks.append((line_end + 2, at - 2))
    if len(received) - at > HEAD_LIMIT:
        raise MalformedAnswerError("a chunk that does not say how long it is")
    return len(received) + 1


def _end_of_trailers(received: bytes | bytearray, start: int) -> int:
    """Where an answer ends whose last chunk has been; past the bytes that are there, if later."""
    end = received.find(b"\r\n\r\n", start)
    if end < 0 and len(received) - start > HEAD_LIMIT:
        raise MalformedAnswerError("the trailers of an answer are too long")
    return len(received) + 1 if end < 0 else end + 4


def _is_whole(received: bytes | bytearray, end: int) -> bool:
    if len(received) > end:
        raise MalformedAnswerError("more than an answer")
    return len(received) == end


class Connection(asyncio.Protocol):
    """A connection to a server, for one request at a time; of no use once it was lost."""

    def __init__(self) -> None:
        self.heard = False
        """Whether anything came since the last request."""
        self._received = bytearray()
        self._needed = 0
        self._lasts = True
        self._waiting: asyncio.Future[Answer] | None = None

    @property
    def usable(self) -> bool:
        """Whether another request can be sent, as far as can be told without sending one."""
        return self._lasts and not self._transport.is_closing()

    @property
    def waits(self) -> bool:
        """Whether an answer is to come."""
        return self._waiting is not None and not self._waiting.done()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.WriteTransport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell whoever waits."""
        self._give_up(exc or ConnectionResetError("closed by the server"))

    def data_received(self, data: bytes) -> None:
        """Hand over the answer as soon as it is whole."""
        if (waiting := self._waiting) is None:
            self._break(MalformedAnswerError("an answer that nobody asked for"))
            return
        self.heard = True
        self._received += data
        if len(self._received) < self._needed:
            return
        try:
            answer = read_answer(self._received)
        except MalformedAnswerError as error:
            self._break(error)
            return
        if isinstance(answer, int):
            self._needed = answer
            return
        self._received, self._needed, self._waiting = bytearray(), 0, None
        if not answer.stays_open:
            self._transport.close()
        if not waiting.done():
            waiting.set_result(answer)

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request; whoever stops waiting for its answer has to ``abort``.

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
