"""A database with tables, its repositories, and the service over HTTP."""

from collections.abc import AsyncIterator

import asyncpg
import pytest
from aiohttp import ClientSession

from database_service.pool import Database
from database_service.repositories.canaries import CanaryRepository
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.registrations import RegistrationRepository
from database_service.repositories.reports import ReportRepository
from database_service.repositories.users import UserRepository
from tests.integration.database_service.builders import connected, eventually, serving, settings_for


@pytest.fixture
async def database(database_dsn: str) -> AsyncIterator[Database]:
    """Connected and migrated."""
    async with connected(settings_for(database_dsn)) as database:
        yield database


@pytest.fixture
async def sql(database: Database, database_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the test's own, to look behind the repositories."""
    assert database is not None  # the tables are there
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


@pytest.fixture
def users(database: Database) -> UserRepository:
    return UserRepository(database)


@pytest.fixture
def registrations(database: Database) -> RegistrationRepository:
    return RegistrationRepository(database)


@pytest.fixture
def canaries(database: Database) -> CanaryRepository:
    return CanaryRepository(database)


@pytest.fixture
def notifications(database: Database) -> NotificationRepository:
    return NotificationRepository(database)


@pytest.fixture
def reports(database: Database) -> ReportRepository:
    return ReportRepository(database)


@pytest.fixture
async def client(database_dsn: str) -> AsyncIterator[ClientSession]:
    """The service over HTTP, ready."""
    async with serving(settings_for(database_dsn)) as client:

        async def is_ready() -> bool:
            async with client.get("/health/ready") as response:
                return response.status == 200

        await eventually(is_ready)
        yield client
