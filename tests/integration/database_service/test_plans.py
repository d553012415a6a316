"""Bulk statements stay fast when tables have grown and nearly all mails are sent."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from database_service.pool import Database
from database_service.repositories import claims, outcomes, registrations

COUNT = 500
IDS = [uuid4() for _ in range(COUNT)]
ADDRESSES = [f"new{number}@example.org" for number in range(COUNT)]
NUMBERS = list(range(1, COUNT + 1))

FILL = """
    INSERT INTO users (name, surname, email)
    SELECT 'a', 'b', number || '@example.org' FROM generate_series(1, 20000) AS number;
    INSERT INTO registrations (registration_id, outcome, user_id, received_at)
    SELECT gen_random_uuid(), 'stored', id, now() FROM users;
    INSERT INTO notification_logs
           (message_id, user_id, registration_id, recipient, notification_type, status, attempts)
    SELECT registration_id, user_id, registration_id, 'a@example.org', 'welcome', 'sent', 1
      FROM registrations;
    INSERT INTO notification_attempts (notification_id, attempt, lease_id, status)
    SELECT id, 1, message_id, 'sent' FROM notification_logs;
    ANALYZE users, registrations, notification_logs, notification_attempts;
"""

STATEMENTS: dict[str, tuple[str, list[Any]]] = {
    "known registrations": (registrations.SELECT_ANSWERS, [IDS]),
    "new registrations": (
        registrations.INSERT_REGISTRATIONS,
        [IDS, ADDRESSES, [datetime.now(UTC)] * COUNT, NUMBERS],
    ),
    "journey": (registrations.RegistrationRepository.SELECT_JOURNEY, [IDS[0]]),
    "new claims": (
        claims.INSERT_CLAIMS,
        [IDS, IDS, ["welcome"] * COUNT, ADDRESSES, NUMBERS, IDS, [True] * COUNT, 30],
    ),
    "known claims": (claims.UPDATE_CLAIMS, [IDS, IDS, [True] * COUNT, 30]),
    "owners": (claims.SELECT_OWNERS_FOR_UPDATE, [NUMBERS[:10], ADDRESSES[:10]]),
    "telling": (claims.UPDATE_TOLD, [IDS[:10], [None, *NUMBERS[:9]], ADDRESSES[:10], 24]),
    "outcomes": (
        outcomes.UPDATE_OUTCOMES,
        [IDS, IDS, ["sent"] * COUNT, [250] * COUNT, ["ok"] * COUNT],
    ),
}


@pytest.fixture
async def filled(sql: asyncpg.Connection) -> None:
    await sql.execute(FILL)


@pytest.mark.usefixtures("filled")
async def test_bulk_statements_find_rows_by_id_not_by_a_guess(database: Database) -> None:
    """Reading a small table once is right; once for each item is not.

    Nor is choosing rows by a filter first: statistics that are a minute old say that there
    are hardly any, and in a burst there are thousands.
    """
    guesses = {}
    async with database.connection() as connection:
        for name, (statement, arguments) in STATEMENTS.items():
            plan = await connection.fetchval(f"EXPLAIN (FORMAT JSON) {statement}", *arguments)
            if found := [*_guesses(json.loads(plan)[0]["Plan"])]:
                guesses[name] = found

    assert guesses == {}


def _guesses(node: dict[str, Any], parent: str = "") -> Iterator[str]:
    if node["Node Type"] == "Seq Scan" and ("Filter" in node or parent == "Nested Loop"):
        yield f"{parent} over {node['Relation Name']} by {node.get('Filter')}"
    for child in node.get("Plans", []):
        yield from _guesses(child, node["Node Type"])
