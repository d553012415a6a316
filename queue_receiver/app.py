"""Builds the receiver. The only place where its parts meet."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
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
from queue_receiver.dead_letters.pages import PAGES
from queue_receiver.dead_letters.redrive import Redrives
from queue_receiver.dead_letters.routes import ADMIN, REDRIVES
from queue_receiver.handlers import store_registration
from queue_receiver.ledger import routes as ledger_routes
from queue_receiver.ledger.auditor import Accounts, Auditor
from queue_receiver.ledger.mark import Mark
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
            management = settings.queue_management_url
            queues = [
                DeadLetterQueue(
                    str(settings.queue_url),
                    route,
                    service=SERVICE,
                    management=ManagementApi(management) if management else None,
                )
                for route in BROKER_USERS[SERVICE].redrives
            ]
            app[ADMIN] = DeadLetterAdmin(queues=queues, records=database)
            app[REDRIVES] = Redrives(queues=queues, outcomes=OutcomeTracker(database))
            stack.push_async_callback(app[REDRIVES].close)
            dead_letters = next(queue for queue in queues if queue.route is USER_REGISTRATION)
            auditor, log = await stack.enter_async_context(
                _auditing(
                    settings, accounts=database, dead_letters=dead_letters, readiness=readiness
                )
            )
            app[AUDITOR] = auditor
            app[REPAIRS] = Repairs(auditor=auditor, log_=log, publisher=publisher)
            yield  # and close in reverse: stop consuming, let handlers finish, disconnect

    app = base_app(
        SERVICE,
        Api.joined(ledger_routes.api, dead_letter_routes.api, page_routes.api),
        description="Stores registrations and asks for their mails.",
        access=Access(allowed_hosts=settings.allowed_hosts),
        readiness=readiness,
        problem_page=page_routes.problem_page,
    )
    PAGES.add_to(app)
    app.cleanup_ctx.append(lifespan)
    return app


@asynccontextmanager
async def _auditing(
    settings: Settings, *, accounts: Accounts, dead_letters: DeadLetterQueue, readiness: Readiness
) -> AsyncIterator[tuple[Auditor, StreamReader]]:
    """The ledger, kept current until the block is left, and the stream that it reads."""
    url, management = str(settings.queue_url), settings.queue_management_url
    async with StreamReader.open(url, service=SERVICE) as log:
        auditor = Auditor(
            log_=log,
            accounts=accounts,
            queues=QueueDepths(
                log,
                management=ManagementApi(management) if management else None,
                route=USER_REGISTRATION,
            ),
            dead_letters=dead_letters,
            lost_after=timedelta(seconds=settings.ledger_lost_after_seconds),
            mark=Mark(settings.crash_marker_dir, STREAM),
        )
        readiness.note("ledger", auditor.note)
        if management is None:
            readiness.add("work_binding", auditor.check_binding)
        async with auditor.watching(timedelta(seconds=settings.ledger_interval_seconds)):
            yield auditor, log
