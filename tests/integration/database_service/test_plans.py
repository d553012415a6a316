"""Bulk statements stay fast when tables have grown and nearly all mails are sent."""

import asyncio
import json
import re
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from common.contracts.notifications import DeliveryStatus
from database_service.connection import Connection
from database_service.pool import Database
from database_service.repositories import (
    claims,
    ledger_entries,
    ledger_incidents,
    outcomes,
    reconciliation,
    registrations,
    resends,
)
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.registrations import RegistrationRepository
from tests.integration.database_service.builders import (
    a_claim,
    a_registration,
    an_outcome,
    connected,
    settings_for,
)

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
    SELECT id, 1, message_id, 'sent' FROM notification_logs ON CONFLICT DO NOTHING;
    INSERT INTO suppressed_addresses (address, bounce_id, status)
    SELECT number || '@example.net', gen_random_uuid(), '5.1.1'
      FROM generate_series(1, 20000) AS number;
    INSERT INTO ledger_entries (registration_id, accepted_at, stream_offset, settled)
    SELECT registration_id, now(), user_id, user_id % 100 > 0 FROM registrations;
    INSERT INTO unpromised_publications (registration_id, span)
    SELECT gen_random_uuid(), '8 bytes.' ::bytea FROM generate_series(1, 20000);
"""

BULK = {
    "known registrations": registrations.SELECT_ANSWERS,
    "new user": registrations.STORE_NEW_USER,
    "journey": RegistrationRepository.SELECT_JOURNEYS,
    "new claims": claims.INSERT_CLAIMS,
    "known claims": claims.UPDATE_CLAIMS,
    "owners": claims.SELECT_OWNERS_FOR_UPDATE,
    "notices": claims.UPDATE_LAST_NOTICES,
    "resends": resends.UPDATE_RESENDS,
    "outcomes": outcomes.UPDATE_OUTCOMES,
    "entries of the ledger": ledger_entries.INSERT_ENTRIES,
    "reconciling the ledger": reconciliation.RECONCILE_ENTRIES,
    "reconciling the unpromised": reconciliation.RECONCILE_UNPROMISED,
    "old unpromised": ledger_entries.DELETE_OLD_UNPROMISED,
    "verifying the ledger": reconciliation.VERIFY_ENTRIES,
}


@pytest.fixture
async def filled(sql: asyncpg.Connection) -> None:
    await sql.execute(FILL)
    await sql.execute("ANALYZE")


@pytest.mark.usefixtures("filled")
async def test_bulk_statements_find_rows_by_an_index(database: Database) -> None:
    """Not by reading a table, and not by choosing rows with a filter first.

    Statistics that are a minute old say that there are hardly any, and in a burst there are
    thousands.
    """
    guesses = {}
    for name, statement in BULK.items():
        async with database.connection() as connection:
            if found := [*_guesses(await _plan_that_is_kept(connection, statement))]:
                guesses[name] = found

    assert guesses == {}


@pytest.mark.usefixtures("filled")
async def test_statements_about_the_few_that_are_left_read_an_index_of_those(
    database: Database,
) -> None:
    few = {
        reconciliation.COUNT_MAILS: ("unsettled",),
        reconciliation.SELECT_TOTALS: ("missing", "unpromised", "vanished", "missing"),
        ledger_incidents.FORGET_SPANS[0]: ("missing",),
        ledger_incidents.FORGET_SPANS[1]: ("unpromised",),
    }
    async with database.connection() as connection:
        for statement, indexes in few.items():
            plan = await _plan_that_is_kept(connection, statement)
            used = re.findall(r"ledger_entries_(\w+?)(?:_id)?_idx'", str(plan))
            assert sorted(used) == sorted(indexes), plan
            assert not [read for read in _guesses(plan) if read.startswith("reads ledger_entries")]


async def _plan_that_is_kept(connection: Connection, statement: str) -> dict[str, Any]:
    """The plan for whatever arguments; EXPLAIN of the statement itself would plan for some."""
    number = max(map(int, re.findall(r"\$(\d+)", statement)), default=0)
    await connection.execute(f"PREPARE explained AS {statement}")
    arguments = f"({', '.join(['NULL'] * number)})" if number else ""
    explain = f"EXPLAIN (VERBOSE, FORMAT JSON) EXECUTE explained {arguments}"
    plan = await connection.fetchval(explain)
    await connection.execute("DEALLOCATE explained")
    assert not number or "$1" in plan, "planned for these arguments alone"
    found: dict[str, Any] = json.loads(plan)[0]["Plan"]
    return found


def _guesses(node: dict[str, Any]) -> Iterator[str]:
    if node["Node Type"] == "Seq Scan":
        yield f"reads {node['Relation Name']} by {node.get('Filter')}"
    if node["Node Type"].startswith("Index") and "Index Cond" not in node:
        yield f"reads all of {node['Index Name']}"
    for child in node.get("Plans", []):
        yield from _guesses(child)


async def test_plans_made_for_empty_tables_serve_full_ones(
    database_dsn: str, sql: asyncpg.Connection
) -> None:
    async with connected(settings_for(database_dsn, pool_max=2)) as database:
        registrations = RegistrationRepository(database)
        notifications = NotificationRepository(database)
        for table in await _rows_read(sql):  # an ANALYZE by chance would have plans made anew
            await sql.execute(f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
        await _pass_through(registrations, notifications, number=2)
        await sql.execute(FILL)
        # Twice: plans are kept, so a bad one shows both times. What was seen once in many runs,
        # and only once each, are counts of the filling that PostgreSQL reports late.
        reads = []
        for _ in range(2):
            before = await _rows_read(sql)
            await _pass_through(registrations, notifications, number=50)
            after = await _rows_read(sql)
            reads.append({table: after[table] - before[table] for table in after})

    fewest = min(sum(read.values()) for read in reads)
    assert 0 < fewest < 50 * 40, f"rows looked at for 50 registrations, twice: {reads}"


async def _pass_through(
    registrations: RegistrationRepository, notifications: NotificationRepository, *, number: int
) -> None:
    items = [a_registration() for _ in range(number)]
    stored = await registrations.insert_registrations(items)
    assert await registrations.insert_registrations(items) == stored
    asked = [a_claim(user_id=user.user_id, registration_id=user.registration_id) for user in stored]
    await notifications.insert_claims(asked)
    await notifications.insert_claims(asked)
    for claim in asked[:2]:
        await registrations.select_journey(claim.registration_id or uuid4())
    await notifications.update_outcomes([an_outcome(c, DeliveryStatus.SENT) for c in asked])


ROWS_READ = """
    SELECT relname, seq_tup_read + coalesce(idx_tup_fetch, 0) AS read FROM pg_stat_user_tables
"""


async def _rows_read(sql: asyncpg.Connection) -> dict[str, int]:
    """Rows that all sessions have looked at; each tells when it has been idle for a second."""
    last: dict[str, int] = {}
    while (now := {row["relname"]: row["read"] for row in await sql.fetch(ROWS_READ)}) != last:
        last = now
        await sql.execute("SELECT pg_stat_force_next_flush()")
        await asyncio.sleep(1.2)  # no event tells it
    return last
