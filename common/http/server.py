"""The HTTP server below the application: what it answers to what never becomes a request."""

import asyncio
import resource
from collections.abc import Iterator
from typing import Any, cast

import structlog
from aiohttp import hdrs, web
from aiohttp.http_exceptions import LineTooLong
from aiohttp.http_parser import RawRequestMessage
from aiohttp.web_protocol import RequestHandler
from multidict import CIMultiDict, CIMultiDictProxy

from common import metrics
from common.context import enter_request
from common.errors import HeaderTooLargeError, MalformedError, UserStreamError
from common.http.access import UNMET_EXPECTATION
from common.http.problems import problem

log = structlog.get_logger()

IDLE_SECONDS = 75.0
"""How long a connection may wait for its next request, or for all of the head of one.

Longer than clients and proxies keep theirs (15 to 60 s), so that it is they who close: a
request is never sent into a connection that is just being closed here.
"""

LINGERING_SECONDS = 1.0
"""How long the rest of a refused body is read, so that its sender gets to see the answer."""


HEADER_BYTES = 64 * 1024
"""Longest header. Browsers send a name's cookies to all of its ports, so on localhost those of
every other program come along."""

HEAD_BYTES = 2 * HEADER_BYTES
"""Longest head of a request, all its headers together."""

RESERVED_FILES = 128
"""Open files that are not connections of clients: the broker's, the database's, mails, the log."""

MOST_CONNECTIONS = 10_000
"""Connections of clients, however many files may be open: each takes some 20 kB of memory."""

CROWDED_LOG_SECONDS = 10.0
"""Between two lines about connections that were closed for want of room."""


def connection_limit() -> int:
    """Connections of clients that this process can hold with the files it may open."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(max(files - RESERVED_FILES, files // 2), MOST_CONNECTIONS)


class Runner(web.AppRunner):
    """Runs an application on connections as they are made here."""

    __slots__ = ()

    def __init__(self, app: web.Application, **options: Any) -> None:
        # Bodies are never decompressed: a small bomb stays small.
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            keepalive_timeout=IDLE_SECONDS,
            lingering_time=LINGERING_SECONDS,
            max_field_size=HEADER_BYTES,
            **options,
        )

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        make_request = plain.request_factory

        def make_checked_request(message: RawRequestMessage, *rest: Any) -> web.BaseRequest:
            expectation = message.headers.get(hdrs.EXPECT)
            if expectation is None or expectation.lower() == "100-continue":
                return make_request(message, *rest)
            # aiohttp would refuse it before any middleware, and fail where it is not ASCII.
            headers = CIMultiDict(message.headers)
            del headers[hdrs.EXPECT]
            request = make_request(message._replace(headers=CIMultiDictProxy(headers)), *rest)
            request[UNMET_EXPECTATION] = True
            return request

        return _Server(plain.request_handler, request_factory=make_checked_request, **self._kwargs)


class _Server(web.Server):
    """Holds as many connections as there are files for; a new one takes the place of an idle one.

    So connections on which little or nothing is sent take no place from others.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._limit = connection_limit()
        self._logged_at = -CROWDED_LOG_SECONDS
        metrics.HTTP_CONNECTIONS.set_function(lambda: len(self._connections))

    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Make room where there is none."""
        super().connection_made(handler, transport)
        if len(self._connections) > self._limit:
            spare = next(self._spare(), handler)
            self._connections.pop(spare).abort()
            metrics.HTTP_CONNECTIONS_DROPPED.inc()
            self._log_drop()

    def _spare(self) -> Iterator[RequestHandler]:
        """Connections whose loss costs least, the oldest first.

        Those that wait for a request or for the rest of its head, then those whose body has not
        arrived. What has been asked is answered.
        """
        connections = cast("list[_Connection]", self.connections[:-1])
        yield from (connection for connection in connections if connection.is_waiting)
        yield from (connection for connection in connections if connection.is_uploading)

    def _log_drop(self) -> None:
        now = self._loop.time()
        if now - self._logged_at >= CROWDED_LOG_SECONDS:
            self._logged_at = now
            log.warning("http.crowded", connections=self._limit)


class _Connection(RequestHandler):
    """One connection; answers what is no HTTP with a problem, without versions and echoes."""

    __slots__ = ("_head_bytes",)

    def __init__(self, manager: web.Server, **options: Any) -> None:
        super().__init__(manager, **options)
        self._head_bytes = 0

    @property
    def is_waiting(self) -> bool:
        """Whether no request has begun: none came yet, or only a part of its head."""
        return self._current_request is None and not self._messages

    @property
    def is_uploading(self) -> bool:
        """Whether a request is waiting for its body."""
        request = self._current_request
        return request is not None and not request.content.is_eof()

    def data_received(self, data: bytes) -> None:
        """Read; a head without end is given up."""
        super().data_received(data)
        waiter = self._waiter
        if waiter is None or waiter.done():
            self._head_bytes = 0
            return
        self._head_bytes += len(data)
        if self._head_bytes > HEAD_BYTES:
            self.force_close()

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP; a client that has gone is no error of ours."""
        if isinstance(exc, ConnectionError):
            raise exc  # aiohttp closes the connection without a word
        if status != MalformedError.http_status or request.writer.output_size > 0:
            return super().handle_error(request, status, exc, message)
        enter_request({})
        log.info("http.bad_request_line", reason=type(exc).__name__)
        response = problem(_unreadable(exc))
        response.headers[hdrs.SERVER] = "UserStream"
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.force_close()
        return response


def _unreadable(error: BaseException | None) -> UserStreamError:
    if isinstance(error, LineTooLong) and error.args[1] == HEADER_BYTES:
        return HeaderTooLargeError(
            f"A header is longer than {HEADER_BYTES:,} bytes. In a browser these are mostly "
            "cookies: remove those of this address. Nothing was done."
        )
    return MalformedError(
        "This is not HTTP as it is spoken here: a request line is longer than 8,190 bytes, a "
        "method is unknown, or a character stands where it may not. Nothing was done."
    )
