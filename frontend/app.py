"""Builds the frontend. The only place where its parts meet."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from aiohttp import web

from common.database_client import DatabaseClient
from common.errors import UserStreamError
from common.http.app import base_app
from common.http.health import Readiness
from common.messaging import open_publisher
from frontend.events import Watchers
from frontend.files import keep_whole_files, static_file
from frontend.identity import Identities
from frontend.pages import render_problem
from frontend.routes import BASE_URL, DATABASE, IDENTITIES, PUBLISHER, WATCHERS, api
from frontend.settings import Settings

SERVICE = "frontend"


def build_app(settings: Settings) -> web.Application:
    """The frontend, not yet started: nothing connects before the loop runs."""
    readiness = Readiness()

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app[DATABASE] = await stack.enter_async_context(
                DatabaseClient.open(settings.database_service_url)
            )
            app[PUBLISHER] = await stack.enter_async_context(
                open_publisher(settings, service=SERVICE, readiness=readiness)
            )
            app[WATCHERS] = Watchers(app[DATABASE].select_journey)
            # The broker alone: without the database people can still register.
            yield

    async def end_streams(app: web.Application) -> None:
        app[WATCHERS].stop()

    app = base_app(
        SERVICE,
        api,
        description="Takes registrations and shows how far each has come.",
        readiness=readiness,
        problem_page=_problem_page,
    )
    app[IDENTITIES] = Identities(settings.registration_id_secret.get_secret_value())
    app[BASE_URL] = settings.base_url
    app.router.add_get("/static/{name}", static_file)
    app.on_response_prepare.append(keep_whole_files)
    app.cleanup_ctx.append(lifespan)
    app.on_shutdown.append(end_streams)
    return app


def _problem_page(error: UserStreamError) -> str:
    return render_problem(error.http_status, error.title, error.detail)
