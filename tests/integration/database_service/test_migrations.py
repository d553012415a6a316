"""Migrations: each file once, however many instances start, and never a changed one."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import asyncpg
import pytest

from common.http.runtime import EXIT_CONFIG
from database_service.migrations import (
    DIRECTORY,
    Migration,
    MigrationError,
    migrate,
    read_migrations,
)
from database_service.pool import Database
from tests.integration.database_service.builders import connected, settings_for

Pool: TypeAlias = "asyncpg.Pool[asyncpg.Record]"

FIRST = Migration(1, "0001_first.sql", "CREATE TABLE first (id integer)")
SECOND = Migration(2, "0002_second.sql", "CREATE TABLE second (id integer)")

REASONS = 11
"""Number of the migration that gives suppressions reasons."""

RENAMES = 13
"""Number of the migration that renames the columns of notices and of dropped messages."""


@pytest.fixture
async def pool(database_dsn: str) -> AsyncIterator[Pool]:
    async with asyncpg.create_pool(database_dsn, min_size=1, max_size=8) as pool:
        yield pool


async def tables(pool: Pool) -> set[str]:
    rows = await pool.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    return {row["tablename"] for row in rows}


async def test_each_migration_is_applied_once(pool: Pool) -> None:
    async with pool.acquire() as connection:
        assert await migrate(connection, [FIRST]) == 1
        assert await migrate(connection, [FIRST, SECOND]) == 1
        assert await migrate(connection, [FIRST, SECOND]) == 0

    assert await tables(pool) == {"schema_migrations", "first", "second"}


async def test_instances_that_start_together_take_turns(
    pool: Pool,
) -> None:
    async def start() -> int:
        async with pool.acquire() as connection:
            return await migrate(connection, read_migrations())

    applied = await asyncio.gather(*(start() for _ in range(8)))

    assert sorted(applied) == [0] * 7 + [len(read_migrations())]


async def test_a_changed_migration_is_named_and_nothing_is_applied(
    pool: Pool,
) -> None:
    changed = Migration(1, FIRST.name, FIRST.sql + ";")
    async with pool.acquire() as connection:
        await migrate(connection, [FIRST])

        with pytest.raises(MigrationError, match=r"sql/0001_first\.sql is not what was applied"):
            await migrate(connection, [changed, SECOND])

        assert await migrate(connection, [FIRST, SECOND]) == 1  # the lock was given back


async def test_a_migration_that_fails_leaves_nothing_of_itself(
    pool: Pool,
) -> None:
    broken = Migration(2, "0002_broken.sql", "CREATE TABLE half (id integer); SELECT 1 / 0;")
    async with pool.acquire() as connection:
        with pytest.raises(MigrationError, match="division by zero"):
            await migrate(connection, [FIRST, broken])

    assert await tables(pool) == {"schema_migrations", "first"}


async def test_a_migration_that_fails_over_a_row_does_not_quote_it(pool: Pool) -> None:
    unique = Migration(
        1,
        "0001_unique.sql",
        "CREATE TABLE addresses (email text);"
        "INSERT INTO addresses VALUES ('ada@example.org'), ('ada@example.org');"
        "CREATE UNIQUE INDEX addresses_key ON addresses (email);",
    )
    async with pool.acquire() as connection:
        with pytest.raises(MigrationError, match="could not create unique index") as failure:
            await migrate(connection, [unique])

    assert "ada@" not in str(failure.value)


async def test_addresses_that_were_closed_for_another_reason_than_their_own_are_open_again(
    pool: Pool,
) -> None:
    statuses = ["5.1.1", "5.1.6", "5.1.10", "5.2.1", "5.7.17"]
    statuses += ["5.0.0", "5.1.8", "5.1.11", "5.2.2", "5.3.4", "5.4.316", "5.7.1", "5.7.171"]
    every = read_migrations()
    async with pool.acquire() as connection:
        await migrate(connection, [one for one in every if one.number < REASONS])
        await connection.executemany(
            "INSERT INTO suppressed_addresses (address, bounce_id, status)"
            " VALUES ($1, gen_random_uuid(), $1)",
            [(status,) for status in statuses],
        )
        await migrate(connection, every)
        kept = await connection.fetchval("SELECT count(*) FROM suppressed_addresses")
        closed = await connection.fetch("SELECT address, expires_at FROM suppressions_in_force")

    assert kept == len(statuses)
    assert {tuple(row.values()) for row in closed} == {(status, None) for status in statuses[:5]}


async def test_renamed_columns_keep_what_an_older_release_wrote(pool: Pool) -> None:
    every = read_migrations()
    async with pool.acquire() as connection:
        await migrate(connection, [one for one in every if one.number < RENAMES])
        await connection.execute(
            "INSERT INTO users (name, surname, email, told_by, told_at)"
            " VALUES ('Ada', 'Lovelace', 'ada@example.org', gen_random_uuid(), '2026-01-31')"
        )
        await connection.execute("INSERT INTO ledger_positions (stream, unread) VALUES ('log', 3)")
        before = await connection.fetchrow("SELECT told_by, told_at FROM users")
        await migrate(connection, every)
        after = await connection.fetchrow("SELECT last_notice_by, last_notice_at FROM users")
        truncated = await connection.fetchval("SELECT truncated FROM ledger_positions")

    assert before is not None
    assert after is not None
    assert tuple(after) == tuple(before)
    assert truncated == 3


async def test_a_rename_gives_up_soon_while_a_report_is_read_and_nothing_of_it_is_applied(
    pool: Pool,
) -> None:
    every = read_migrations()
    async with pool.acquire() as reader, pool.acquire() as connection:
        await migrate(connection, [one for one in every if one.number < RENAMES])
        async with reader.transaction():
            await reader.execute("LOCK TABLE ledger_positions IN ACCESS SHARE MODE")

            with pytest.raises(asyncpg.LockNotAvailableError):
                await asyncio.wait_for(migrate(connection, every), timeout=30)

            await connection.execute("SELECT told_by FROM users")
        assert await migrate(connection, every) == len(every) - RENAMES + 1


async def test_an_older_service_leaves_newer_tables_alone(
    pool: Pool,
) -> None:
    async with pool.acquire() as connection:
        await migrate(connection, [FIRST, SECOND])

        assert await migrate(connection, [FIRST]) == 0

    assert "second" in await tables(pool)


async def test_every_session_waits_for_the_disk(database: Database) -> None:
    async with database.connection() as connection:
        assert await connection.fetchval("SHOW synchronous_commit") == "on"
    async with database.connection() as connection:  # again, after the pool reset it
        assert await connection.fetchval("SHOW synchronous_commit") == "on"


async def test_the_service_ends_with_a_plain_word_when_a_migration_was_changed(
    database_dsn: str, tmp_path: Path
) -> None:
    async with connected(settings_for(database_dsn)):
        pass
    connection = await asyncpg.connect(database_dsn)
    await connection.execute("UPDATE schema_migrations SET checksum = 'other' WHERE number = 2")
    await connection.close()
    settings = settings_for(database_dsn)
    environment = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(DIRECTORY.parent),
        "PORT": "0",
        "DB_HOST": settings.db_host,
        "DB_PORT": str(settings.db_port),
        "DB_NAME": settings.db_name,
        "DB_USER": settings.db_user,
        "DB_PASSWORD": settings.db_password.get_secret_value(),
    }

    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "database_service",
        env=environment,
        cwd=tmp_path,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, stderr = await asyncio.wait_for(process.communicate(), timeout=60)
    finally:
        if process.returncode is None:
            process.kill()

    assert process.returncode == EXIT_CONFIG
    assert stderr.decode().startswith("database_service: sql/0002_notifications.sql is not what")
    assert "Traceback" not in stderr.decode()
