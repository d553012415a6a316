"""Builds the receiver. The only place where its parts meet."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from functools import partial

from aiohttp import web

from common.contracts.registrations import RegistrationSubmitted
from common.database_client import DatabaseClient
from common.http.app import base_app
from common.http.health import Readiness
from common.messaging import handling, open_publisher
from queue_receiver.handlers import store_registration
from queue_receiver.routes import api
from queue_receiver.settings import Settings

SERVICE = "queue_receiver"


def build_app(settings: Settings) -> web.Application:
    """The receiver, not yet started: nothing connects before the loop runs."""
    readiness = Readiness()

    async def lifespan(_app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            database = await stack.enter_async_context(
                DatabaseClient.open(settings.database_service_url)
            )
            publisher = await stack.enter_async_context(
                open_publisher(settings, service=SERVICE, readiness=readiness)
            )
            await stack.enter_async_context(
                handling(
                    settings,
                    {
                        RegistrationSubmitted: partial(
                            store_registration, registrations=database, publisher=publisher
                        )
                    },
                    service=SERVICE,
                    publisher=publisher,
                    readiness=readiness,
                )
            )
            readiness.add("database_service", database.check)
            yield  # and close in reverse: stop consuming, let handlers finish, disconnect

    app = base_app(
        SERVICE,
        api,
        description="Stores registrations and asks for their mails.",
        readiness=readiness,
    )
    app.cleanup_ctx.append(lifespan)
    return app
