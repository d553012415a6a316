"""Builds the database service. The only place where its parts meet."""

import asyncio
import sys
from collections.abc import AsyncIterator

import structlog
from aiohttp import web

from common.http.access import Access
from common.http.api import Api
from common.http.app import base_app
from common.http.runtime import EXIT_CONFIG
from common.readiness import Readiness
from database_service.migrations import MigrationError
from database_service.pool import Database
from database_service.repositories.bounces import BounceRepository
from database_service.repositories.canaries import CanaryRepository
from database_service.repositories.dead_letters import DeadLetterRepository
from database_service.repositories.ledger import LedgerRepository
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.registrations import RegistrationRepository
from database_service.repositories.reports import ReportRepository
from database_service.repositories.resends import ResendRepository
from database_service.repositories.users import UserRepository
from database_service.routes import (
    bounces,
    canaries,
    dead_letters,
    ledger,
    notifications,
    registrations,
    reports,
    resends,
    users,
)
from database_service.settings import Settings

log = structlog.get_logger()


def build_app(settings: Settings) -> web.Application:
    """The database service, not yet started: nothing connects before the loop runs.

    HTTP answers from the start; until PostgreSQL is there and the tables are up to date,
    every request but those for health is answered with 503.
    """
    database = Database(settings)
    readiness = Readiness()
    readiness.add("postgres", database.check)
    modules = (
        users,
        registrations,
        canaries,
        notifications,
        resends,
        bounces,
        reports,
        dead_letters,
        ledger,
    )
    app = base_app(
        "database_service",
        Api.joined(*(module.api for module in modules)),
        description="The only door to PostgreSQL: users, registrations, notifications, reports.",
        access=Access(allowed_hosts=settings.allowed_hosts),
        readiness=readiness,
    )
    app[users.USERS] = UserRepository(database)
    app[registrations.REGISTRATIONS] = RegistrationRepository(database)
    app[canaries.CANARIES] = CanaryRepository(database)
    app[notifications.NOTIFICATIONS] = NotificationRepository(database)
    app[resends.RESENDS] = ResendRepository(database)
    app[bounces.BOUNCES] = BounceRepository(database)
    app[reports.REPORTS] = ReportRepository(database)
    app[dead_letters.DEAD_LETTERS] = DeadLetterRepository(database)
    app[dead_letters.DRY_RUNS] = database
    app[ledger.LEDGER] = LedgerRepository(database)

    async def lifespan(_app: web.Application) -> AsyncIterator[None]:
        preparing = asyncio.create_task(_prepare(database))
        yield
        preparing.cancel()
        await asyncio.gather(preparing, return_exceptions=True)
        await database.close()

    app.cleanup_ctx.append(lifespan)
    return app


async def _prepare(database: Database) -> None:
    """Connect and migrate in the background; what only a person can repair ends the process."""
    try:
        await database.prepare()
    except MigrationError as error:
        log.critical("migration.failed", reason=str(error))
        print(f"database_service: {error}", file=sys.stderr)  # noqa: T201 - its last word
        raise SystemExit(EXIT_CONFIG) from error
