"""Builds the report generator. The only place where its parts meet."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from functools import partial

import structlog
from aiohttp import web

from common.contracts.reports import ReportRequested
from common.database_client.client import DatabaseClient
from common.errors import StorageError
from common.http.access import Access
from common.http.app import base_app
from common.messaging.wiring import handling, open_publisher
from common.readiness import Readiness
from report_generator.files import ReportDirectory
from report_generator.handlers import generate_report
from report_generator.routes import DATABASE, DIRECTORY, PUBLISHER, api
from report_generator.settings import Settings

log = structlog.get_logger()

SERVICE = "report_generator"


def build_app(settings: Settings) -> web.Application:
    """The report generator, not yet started: nothing connects before the loop runs."""
    readiness = Readiness()
    directory = ReportDirectory(settings.report_output_dir)

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await _prepare(directory)
            database = await stack.enter_async_context(
                DatabaseClient.open(settings.database_service_url)
            )
            publisher = await stack.enter_async_context(
                open_publisher(settings, service=SERVICE, readiness=readiness)
            )
            handler = partial(
                generate_report,
                database=database,
                publisher=publisher,
                directory=directory,
                style=settings.style,
                links_from=settings.links_from,
            )
            await stack.enter_async_context(
                handling(
                    settings,
                    {ReportRequested: handler},
                    service=SERVICE,
                    publisher=publisher,
                    readiness=readiness,
                    upstreams=[database.check],
                )
            )
            app[DATABASE], app[PUBLISHER], app[DIRECTORY] = database, publisher, directory
            readiness.add("database_service", database.check)
            readiness.show("database_service", database.circuit)
            readiness.add("output_directory", partial(asyncio.to_thread, directory.check))
            yield  # and close in reverse: stop consuming, let handlers finish, disconnect

    app = base_app(
        SERVICE,
        api,
        description="Makes reports of users as CSV files, to be downloaded.",
        access=Access(allowed_hosts=settings.allowed_hosts, public_url=settings.public_url),
        readiness=readiness,
    )
    app.cleanup_ctx.append(lifespan)
    return app


async def _prepare(directory: ReportDirectory) -> None:
    # A directory that cannot be made does not stop the start: /health/ready says what is
    # wrong with it, and goes green when it is put right.
    with suppress(StorageError):
        removed = await asyncio.to_thread(directory.prepare)
        if removed:
            log.info("report.drafts_removed", count=removed)
