"""Receivers as they run in production, and what tests ask them and the database behind them."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import asyncpg
from aiohttp import ClientSession

from queue_receiver.app import build_app
from queue_receiver.settings import Settings
from tests.amqp import eventually
from tests.backends import TestBroker
from tests.services import listening


@asynccontextmanager
async def a_receiver(
    broker: TestBroker, database_url: str, **settings: Any
) -> AsyncIterator[ClientSession]:
    """The receiver as it runs in production, but reading the ledger only when asked."""
    given: dict[str, Any] = {
        "queue_url": broker.url("queue_receiver"),
        "queue_management_url": broker.monitor_url,
        "database_service_url": database_url,
        "ledger_interval_seconds": 0,
        "ledger_lost_after_seconds": 0,
        "max_retry_attempts": 0,
    }
    app = build_app(Settings.model_validate(given | settings))
    async with listening(app) as url, ClientSession(url) as client:
        yield client


async def is_ready(client: ClientSession) -> bool:
    async with client.get("/health/ready") as response:
        return response.status == 200


async def the_ledger(receiver: ClientSession) -> dict[str, Any]:
    async with receiver.get("/api/ledger") as response:
        ledger: dict[str, Any] = await response.json()
        assert response.status == 200, ledger
    totals = ledger["totals"]
    parts = [totals[part] for part in ("stored", "duplicates", "missing", "unpromised")]
    assert totals["accepted"] == sum(parts) + ledger["rejected"]
    return ledger


async def until_stored(database_dsn: str, ids: list[UUID]) -> None:
    async def all_stored() -> bool:
        return await count_stored(database_dsn, ids) == len(ids)

    await eventually(all_stored, "storing")


async def count_stored(database_dsn: str, ids: list[UUID]) -> int:
    connection = await asyncpg.connect(database_dsn)
    try:
        statement = "SELECT count(*) FROM registrations WHERE registration_id = ANY ($1)"
        found: int = await connection.fetchval(statement, ids)
        return found
    finally:
        await connection.close()
