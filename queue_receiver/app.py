"""Builds the receiver. The only place where its parts meet."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from functools import partial

from aiohttp import web

from common.amqp.dead_letter_queue import DeadLetterQueue
from common.amqp.management import ManagementApi
from common.amqp.queue_depths import QueueDepths
from common.amqp.stream import StreamReader
from common.contracts.registrations import RegistrationSubmitted
from common.contracts.topology import BROKER_USERS, USER_REGISTRATION
from common.database_client.client import DatabaseClient
from common.http.access import Access
from common.http.api import Api
from common.http.app import base_app
from common.messaging.wiring import handling, open_publisher
from common.readiness import Readiness
from queue_receiver.dead_letters import page_routes
from queue_receiver.dead_letters import routes as dead_letter_routes
from queue_receiver.dead_letters.admin import DeadLetterAdmin
from queue_receiver.dead_letters.outcomes import OutcomeTracker
from queue_receiver.dead_letters.pages import PAGES, render_problem
from queue_receiver.dead_letters.redrive import Redrives
from queue_receiver.dead_letters.routes import ADMIN, REDRIVES
from queue_receiver.handlers import store_registration
from queue_receiver.ledger import routes as ledger_routes
from queue_receiver.ledger.auditor import Auditor
from queue_receiver.ledger.checkpoint import Checkpoint
from queue_receiver.ledger.reader import STREAM
from queue_receiver.ledger.repair import Repairs
from queue_receiver.ledger.routes import AUDITOR, REPAIRS
from queue_receiver.settings import Settings

SERVICE = "queue_receiver"


def build_app(settings: Settings) -> web.Application:
    """The receiver, not yet started: nothing connects before the loop runs."""
    readiness = Readiness()

    async def lifespan(app: web.Application) -> AsyncIterator[None]:
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
                    upstreams=[database.check],
                )
            )
            readiness.add("database_service", database.check)
            readiness.show("database_service", database.circuit)
            url, management_url = str(settings.queue_url), settings.queue_management_url
            management = ManagementApi(str(management_url)) if management_url else None
            dead_letters = {
                route: DeadLetterQueue(url, route, service=SERVICE, management=management)
                for route in BROKER_USERS[SERVICE].redrives
            }
            queues = list(dead_letters.values())
            app[ADMIN] = DeadLetterAdmin(queues=queues, records=database)
            app[REDRIVES] = Redrives(queues=queues, outcomes=OutcomeTracker(database))
            stack.push_async_callback(app[REDRIVES].close)
            stream = await stack.enter_async_context(StreamReader(url, service=SERVICE))
            app[AUDITOR] = Auditor(
                stream=stream,
                store=database,
                queues=QueueDepths(stream, management=management, route=USER_REGISTRATION),
                dead_letters=dead_letters[USER_REGISTRATION],
                lost_after=timedelta(seconds=settings.ledger_lost_after_seconds),
                checkpoint=Checkpoint(settings.crash_marker_dir, STREAM),
            )
            app[REPAIRS] = Repairs(stream=stream, publisher=publisher)
            readiness.note("ledger", app[AUDITOR].note)
            if management is None:
                readiness.add("work_binding", app[AUDITOR].check_binding)
            interval = timedelta(seconds=settings.ledger_interval_seconds)
            await stack.enter_async_context(app[AUDITOR].running(interval))
            yield  # and close in reverse: stop consuming, let handlers finish, disconnect

    app = base_app(
        SERVICE,
        Api.joined(ledger_routes.api, dead_letter_routes.api, page_routes.api),
        description="Stores registrations and asks for their mails.",
        access=Access(allowed_hosts=settings.allowed_hosts),
        readiness=readiness,
        problem_page=render_problem,
    )
    PAGES.add_to(app)
    app.cleanup_ctx.append(lifespan)
    return app
