"""The private database server as the launcher makes it."""

import asyncio

import asyncpg
import pytest

from tests.backends import TestPostgres


async def test_postgres_keeps_committed_rows_when_killed(
    postgres: TestPostgres, database_dsn: str
) -> None:
    connection = await asyncpg.connect(database_dsn)
    await connection.execute("CREATE TABLE kept AS SELECT 1 AS one")

    postgres.kill()
    await asyncio.to_thread(postgres.start)

    connection.terminate()
    connection = await asyncpg.connect(database_dsn)
    assert await connection.fetchval("SELECT one FROM kept") == 1
    await connection.close()


async def test_postgres_gives_the_services_role_no_more_than_its_database(
    postgres: TestPostgres,
) -> None:
    connection = await asyncpg.connect(postgres.dsn)

    superuser = await _is_superuser(connection)

    await connection.close()
    assert superuser is False


async def test_postgres_logs_that_a_statement_failed_and_nothing_of_what_was_in_it(
    postgres: TestPostgres, database_dsn: str
) -> None:
    if postgres.native is None:
        pytest.skip("only the log of the launcher's own server can be read")
    connection = await asyncpg.connect(database_dsn)
    await connection.execute("CREATE TABLE people (email text UNIQUE)")
    await connection.execute("INSERT INTO people VALUES ($1)", "ada@example.org")

    for refused in (
        connection.execute("INSERT INTO people VALUES ($1)", "ada@example.org"),
        connection.execute("INSERT INTO people VALUES ('ada@example.org')"),
        connection.execute("DELETE FROM nowhere WHERE email = 'ada@example.org'"),
    ):
        with pytest.raises(asyncpg.PostgresError):
            await refused

    await connection.close()
    log = postgres.native.server().log.read_text("utf-8")
    assert "duplicate key value violates unique constraint" in log
    assert "ada@example.org" not in log


async def _is_superuser(connection: asyncpg.Connection) -> bool:
    superuser = await connection.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = user")
    return bool(superuser)
