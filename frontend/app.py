"""Builds the frontend. The only place where its parts meet."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

from aiohttp import web

from common.database_client.client import DatabaseClient
from common.errors import UserStreamError
from common.http.access import Access
from common.http.app import OWN_ADDRESS, base_app
from common.messaging.wiring import open_publisher
from common.readiness import Readiness
from frontend.canary import Canary
from frontend.clients import Clients
from frontend.events import Watchers
from frontend.identity import Identities
from frontend.journeys import JourneyReader
from frontend.pages import PAGES, render_problem
from frontend.routes import (
    BASE_URL,
    DATABASE,
    IDENTITIES,
    JOURNEYS,
    PUBLISHER,
    UNPROMISED,
    WATCHERS,
    api,
)
from frontend.self_client import SelfClient
from frontend.settings import Settings
from frontend.unpromised import Unpromised

SERVICE = "frontend"

CANARY = web.AppKey("canary", Canary)


def build_app(settings: Settings) -> web.Application:
    """The frontend, not yet started: nothing connects before the loop runs."""
    readiness = Readiness()

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            app[DATABASE] = await stack.enter_async_context(
                DatabaseClient.open(settings.database_service_url)
            )
            readiness.show("database_service", app[DATABASE].circuit)
            app[PUBLISHER] = await stack.enter_async_context(
                open_publisher(settings, service=SERVICE, readiness=readiness)
            )
            app[UNPROMISED] = await stack.enter_async_context(Unpromised(app[DATABASE]).reporting())
            app[JOURNEYS] = JourneyReader(app[DATABASE], app[IDENTITIES])
            app[WATCHERS] = Watchers(
                app[JOURNEYS].select_journeys, clients=Clients(settings.trusted_proxies)
            )
            if settings.canary_seconds:
                client = await stack.enter_async_context(
                    SelfClient.open(address=app[OWN_ADDRESS], identities=app[IDENTITIES])
                )
                canary = Canary(
                    every_seconds=settings.canary_seconds,
                    register=client.register,
                    registrations=app[DATABASE],
                )
                app[CANARY] = await stack.enter_async_context(canary.run())
                readiness.note("canary", app[CANARY].note)
            # The broker alone: without the database people can still register.
            yield

    async def stop_background_tasks(app: web.Application) -> None:
        app[WATCHERS].stop()
        if CANARY in app:
            app[CANARY].stop()

    app = base_app(
        SERVICE,
        api,
        description="Takes registrations and shows how far each has come.",
        access=Access(
            allowed_hosts=settings.allowed_hosts,
            public_url=settings.public_url,
            cors_origins=settings.cors_origins,
        ),
        readiness=readiness,
        problem_page=_problem_page,
    )
    app[IDENTITIES] = Identities(settings.registration_id_secret.get_secret_value())
    app[BASE_URL] = settings.base_url
    PAGES.add_to(app)
    app.cleanup_ctx.append(lifespan)
    app.on_shutdown.append(stop_background_tasks)
    return app


def _problem_page(error: UserStreamError) -> str:
    return render_problem(error.http_status, error.title, error.detail)
