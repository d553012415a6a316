"""HTTP from one service to another: requests over connections that stay open.

It reads what our servers and the proxies before them answer, and nothing else: HTTP/1.1, a
body with ``Content-Length`` or in chunks. aiohttp's client can do far more, which costs a lone
registration on a quiet system a tenth of its way: ``docs/adr/0022-lean-http-client.md``.
"""

import asyncio
import base64
import re
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import NamedTuple, Self, cast

from yarl import URL

HEAD_LIMIT = 64 * 1024
"""Bytes of an answer's head."""

BODY_LIMIT = 8 * 1024 * 1024
"""Bytes of an answer's body; the largest of ours, about 500 items, has some 100 kB."""

_STATUS_LINE = re.compile(rb"HTTP/1\.[01] ([1-5]\d\d)(?: [^\r\n]*)?")
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


def read_answer(received: bytes) -> Answer | None:
    """The answer in the bytes that came until now, or None if it is not whole yet.

    Raises:
        MalformedAnswerError: There never will be one.
    """
    end = received.find(b"\r\n\r\n")
    if end > HEAD_LIMIT or (end < 0 and len(received) > HEAD_LIMIT):
        raise MalformedAnswerError("the head of an answer is too long")
    if end < 0:
        return None
    status_line, *lines = received[:end].split(b"\r\n")
    if not (said := _STATUS_LINE.fullmatch(status_line)):
        raise MalformedAnswerError("an answer does not begin as HTTP/1.1 does")
    status, headers = int(said[1]), _headers(lines)
    if status < 200:  # noqa: PLR2004 - of which none is ever asked for here
        raise MalformedAnswerError("an interim answer")
    body = _read_body(status, headers, received[end + 4 :])
    if body is None:
        return None
    return Answer(
        status=status,
        content_type=_content_type(headers.get(b"content-type", b"")),
        body=body,
        stays_open=status_line.startswith(b"HTTP/1.1")
        and headers.get(b"connection", b"").lower() != b"close",
    )


def _content_type(value: bytes) -> str:
    return value.partition(b";")[0].strip().lower().decode("latin-1")


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    headers: dict[bytes, bytes] = {}
    for line in lines:
        name, colon, value = line.partition(b":")
        if not colon:
            raise MalformedAnswerError("a header without a colon")
        headers[name.lower()] = value.strip()
    return headers


def _read_body(status: int, headers: Mapping[bytes, bytes], received: bytes) -> bytes | None:
    """The body, or None if it is not whole yet."""
    if b"transfer-encoding" in headers:
        if headers[b"transfer-encoding"].lower() != b"chunked":
            raise MalformedAnswerError("a transfer coding that is not spoken here")
        return _read_chunks(received)
    length = headers.get(b"content-length", b"0" if status in _NO_BODY else b"")
    if not _DECIMAL.fullmatch(length) or int(length) > BODY_LIMIT:
        raise MalformedAnswerError("an answer that does not say how long it is, or too long")
    if len(received) > int(length):
        raise MalformedAnswerError("more than an answer")
    return received if len(received) == int(length) else None


def _read_chunks(received: bytes) -> bytes | None:
    chunks: list[bytes] = []
    at = 0
    while (end := received.find(b"\r\n", at)) >= 0:
        size_text = received[at:end].partition(b";")[0].strip()
        if not _HEXADECIMAL.fullmatch(size_text) or (size := int(size_text, 16)) > BODY_LIMIT:
            raise MalformedAnswerError("a chunk that does not say how long it is, or too long")
        at = end + 2 + size + 2
        if not size:
            return _without_trailers(received[end:], b"".join(chunks))
        if len(received) < at:
            return None
        if received[at - 2 : at] != b"\r\n":
            raise MalformedAnswerError("a chunk of another length than it says")
        chunks.append(received[end + 2 : at - 2])
    if len(received) - at > HEAD_LIMIT:
        raise MalformedAnswerError("a chunk that does not say how long it is")
    return None


def _without_trailers(rest: bytes, body: bytes) -> bytes | None:
    """The body, once what may follow its last chunk is there."""
    end = rest.find(b"\r\n\r\n")
    if end < 0:
        if len(rest) > HEAD_LIMIT:
            raise MalformedAnswerError("the trailers of an answer are too long")
        return None
    if len(rest) > end + 4:
        raise MalformedAnswerError("more than an answer")
    return body


class Connection(asyncio.Protocol):
    """A connection to a server, for one request at a time; of no use once it was lost."""

    def __init__(self) -> None:
        self.usable = True
        self._received = b""
        self._waiting: asyncio.Future[Answer] | None = None

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
        self._received = self._received + data if self._received else data
        try:
            answer = read_answer(self._received)
        except MalformedAnswerError as error:
            self._break(error)
            return
        if answer is None:
            return
        self._received, self._waiting = b"", None
        self.usable = answer.stays_open
        if not self.usable:
            self._transport.close()
        if not waiting.done():
            waiting.set_result(answer)

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """Send a request; whoever stops waiting for its answer has to ``abort``.

        Returns:
            The answer to come; raises OSError if none will.
        """
        self._waiting = asyncio.get_running_loop().create_future()
        if self.usable:
            self._transport.write(request)
        else:
            self._give_up(ConnectionResetError("closed by the server"))
        return self._waiting

    def abort(self) -> None:
        """Close without a word: an answer that still comes must not be taken for another's."""
        self.usable = False
        self._transport.abort()

    def _break(self, error: MalformedAnswerError) -> None:
        self._give_up(error)
        self._transport.abort()

    def _give_up(self, error: Exception) -> None:
        self.usable = False
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
        self._idle: list[Connection] = []
        self._busy: set[Connection] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: URL) -> AsyncIterator[Self]:
        """A client of the server at ``url``; nothing is connected yet."""
        client = cls(url)
        try:
            yield client
        finally:
            for connection in (*client._idle, *client._busy):
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

        It is made once: if the connection is lost meanwhile, nobody knows whether it was heard.

        Args:
            method: GET, POST, ...
            path: Below the client's address, encoded, with its query.
            body: None where the method has none.
            headers: Beyond those that go with every request; they end where they end.
            seconds: Longest time for all of it.

        Raises:
            TimeoutError: It took longer.
            OSError: There is no connection, or no answer that is understood.
        """
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        if body is not None:
            lines += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        head = f"{method} {self._prefix}{path} HTTP/1.1\r\n{self._head}{lines}\r\n"
        async with asyncio.timeout(seconds):
            return await self._exchange(head.encode() + (body or b""))

    async def _exchange(self, request: bytes) -> Answer:
        connection = await self._take()
        self._busy.add(connection)
        try:
            answer = await connection.send(request)
        except BaseException:
            connection.abort()
            raise
        finally:
            self._busy.discard(connection)
        if connection.usable:
            self._idle.append(connection)
        return answer

    async def _take(self) -> Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(Connection, self._host, self._port, ssl=self._tls)
        return made
