"""Builds the mail catcher. The only place where its parts meet."""

import asyncio
import errno
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from common.errors import UserStreamError
from common.http.access import Access
from common.http.server import Runner
from tools.mailcatcher import api, pages
from tools.mailcatcher.settings import Settings
from tools.mailcatcher.smtp import CatchingSMTP, MailHandler
from tools.mailcatcher.store import MailStore

REQUEST_LIMIT = 16 * 1024 * 1024
"""Bytes of a request's body: room for a list of all ids to delete."""

SHUTDOWN_GRACE = 2.0
"""Seconds open requests get to end."""


class PortTakenError(Exception):
    """Another program listens where the settings say; starting again will not help."""


def build_web(store: MailStore, settings: Settings) -> web.Application:
    """The page and the API, not yet started."""
    app = web.Application(
        client_max_size=REQUEST_LIMIT,
        middlewares=[_refusing(Access(allowed_hosts=settings.allowed_hosts))],
    )
    app[api.STORE] = store
    app[pages.LISTENERS] = set()
    app[pages.TEMPLATES] = pages.load_templates(
        smtp_host=str(settings.bind_address), smtp_port=settings.mailcatcher_smtp_port
    )
    app.add_routes(api.routes)
    app.add_routes(pages.routes)
    app.router.add_get("/static/{name}", _static_file)
    app.on_response_prepare.append(pages.set_security_headers)
    app.on_shutdown.append(pages.end_streams)
    return app


STATIC = {path.name: path for path in (Path(__file__).parent / "static").iterdir()}


async def _static_file(request: web.Request) -> web.StreamResponse:
    """A file of the page; aiohttp's own route fails on names that no file system takes."""
    if path := STATIC.get(request.match_info["name"]):
        return web.FileResponse(path)
    raise web.HTTPNotFound


def _refusing(access: Access) -> Middleware:
    """Refuse foreign names and pages as the services do, in plain text as Mailpit speaks."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            access.check(request)
            return await handler(request)
        except UserStreamError as error:
            return web.Response(status=error.http_status, text=error.detail)

    return middleware


@asynccontextmanager
async def catching(settings: Settings) -> AsyncIterator[MailStore]:
    """Receive mails and show them, for as long as the context is open.

    Raises:
        PortTakenError: One of the two ports is in use.
        OSError: The folder of the mails cannot be made or written.
    """
    store = MailStore(settings.mailcatcher_dir, keep=settings.mailcatcher_keep)
    store.open()
    async with _receiving(store, settings), _showing(store, settings):
        yield store


@asynccontextmanager
async def _receiving(store: MailStore, settings: Settings) -> AsyncIterator[None]:
    loop = asyncio.get_running_loop()
    handler = MailHandler(store)
    host, port = str(settings.bind_address), settings.mailcatcher_smtp_port
    with _naming_the_port(port, "MAILCATCHER_SMTP_PORT"):
        server = await loop.create_server(lambda: CatchingSMTP(handler, loop=loop), host, port)
    try:
        yield
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def _showing(store: MailStore, settings: Settings) -> AsyncIterator[None]:
    runner = Runner(build_web(store, settings), shutdown_timeout=SHUTDOWN_GRACE)
    await runner.setup()
    host, port = str(settings.bind_address), settings.mailcatcher_web_port
    try:
        with _naming_the_port(port, "MAILCATCHER_WEB_PORT"):
            await web.TCPSite(runner, host, port).start()
        yield
    finally:
        await runner.cleanup()


@contextmanager
def _naming_the_port(port: int, setting: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise PortTakenError(
            f"port {port} is in use: stop what listens there, or set {setting} to a free port"
        ) from error
