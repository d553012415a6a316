"""The HTTP server below the application: what it answers to what never becomes a request."""

import asyncio
from typing import Any

import structlog
from aiohttp import hdrs, web
from aiohttp.web_protocol import RequestHandler

from common.context import enter_request
from common.errors import MalformedError
from common.http.problems import problem

log = structlog.get_logger()

IDLE_SECONDS = 75.0
"""How long a connection may wait for its next request, or for all of the head of one.

Longer than clients and proxies keep theirs (15 to 60 s), so that it is they who close: a
request is never sent into a connection that is just being closed here.
"""

LINGERING_SECONDS = 1.0
"""How long the rest of a refused body is read, so that its sender gets to see the answer."""


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
            **options,
        )

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        return _Server(plain.request_handler, request_factory=plain.request_factory, **self._kwargs)


class _Server(web.Server):
    def __call__(self) -> RequestHandler:
        return _Connection(self, loop=asyncio.get_running_loop(), **self._kwargs)


class _Connection(RequestHandler):
    """One connection; tells its failures as problems, without versions and without echoes."""

    __slots__ = ()

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
        log.info("http.unreadable", reason=type(exc).__name__)
        response = problem(
            MalformedError(
                "This is not HTTP as it is spoken here: a request line or header is longer than "
                "8,190 bytes, a method is unknown, or a character stands where it may not. "
                "Nothing was done."
            )
        )
        response.headers[hdrs.SERVER] = "UserStream"
        response.headers[hdrs.CACHE_CONTROL] = "no-store"
        response.headers["X-Content-Type-Options"] = "nosniff"
        response.force_close()
        return response
