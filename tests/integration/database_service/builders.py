"""What the tests of database_service are made of; they name only what they are about."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from urllib.parse import urlsplit
from uuid import UUID, uuid4

from aiohttp import ClientSession

from common.contracts.notifications import (
    Claim,
    ClaimRequest,
    DeliveryOutcomeOf,
    DeliveryStatus,
    Template,
)
from common.contracts.registrations import RegistrationToStore
from database_service.app import build_app
from database_service.pool import Database
from database_service.repositories.notifications import NotificationRepository
from database_service.settings import Settings
from tests.services import listening


def settings_for(dsn: str, *, pool_min: int = 1, pool_max: int = 10) -> Settings:
    parts = urlsplit(dsn)
    return Settings.model_validate(
        {
            "db_host": parts.hostname,
            "db_port": parts.port,
            "db_name": parts.path.removeprefix("/"),
            "db_user": parts.username,
            "db_password": parts.password or "",
            "db_pool_min": pool_min,
            "db_pool_max": pool_max,
        }
    )


def a_registration(email: str = "", *, registration_id: UUID | None = None) -> RegistrationToStore:
    return RegistrationToStore(
        registration_id=registration_id or uuid4(),
        name="Ada",
        surname="Lovelace",
        email=email or an_address(),
        received_at=datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
    )


def an_address() -> str:
    return f"ada.{uuid4().hex}@example.org"


def a_claim(
    message_id: UUID | None = None,
    *,
    lease_id: UUID | None = None,
    template: Template = Template.WELCOME,
    recipient: str = "ada@example.org",
    user_id: int | None = None,
    registration_id: UUID | None = None,
) -> ClaimRequest:
    return ClaimRequest(
        message_id=message_id or uuid4(),
        lease_id=lease_id or uuid4(),
        template=template,
        recipient=recipient,
        user_id=user_id,
        registration_id=registration_id,
    )


def an_outcome(
    claim: ClaimRequest, status: DeliveryStatus, *, code: int | None = 250, text: str = "ok"
) -> DeliveryOutcomeOf:
    return DeliveryOutcomeOf(
        message_id=claim.message_id,
        lease_id=claim.lease_id,
        status=status,
        reply_code=code,
        reply_text=text,
    )


async def claimed(repository: NotificationRepository, *claims: ClaimRequest) -> list[Claim]:
    return [result.claim for result in await repository.insert_claims(claims)]


async def recorded(
    repository: NotificationRepository, claim: ClaimRequest, status: DeliveryStatus
) -> bool:
    (result,) = await repository.update_outcomes([an_outcome(claim, status)])
    return result.recorded


@asynccontextmanager
async def connected(settings: Settings) -> AsyncIterator[Database]:
    """A connected and migrated database."""
    database = Database(settings)
    try:
        await database.prepare()
        yield database
    finally:
        await database.close()


@asynccontextmanager
async def serving(settings: Settings) -> AsyncIterator[ClientSession]:
    """The service on a port of its own, run as in production, and a client of it."""
    async with listening(build_app(settings)) as url, ClientSession(url) as client:
        yield client


async def eventually(condition: Callable[[], Awaitable[bool]], *, seconds: float = 30) -> None:
    """Wait until ``condition`` holds; the test fails if that takes too long."""
    deadline = time.monotonic() + seconds
    while not await condition():
        assert time.monotonic() < deadline, f"It did not become true within {seconds} s."
        await asyncio.sleep(0.05)
