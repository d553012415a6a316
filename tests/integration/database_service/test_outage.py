"""PostgreSQL away, killed, frozen, full or at its limit: 503 meanwhile, and back by itself."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from aiohttp import ClientSession
from structlog.testing import capture_logs

from common.errors import DatabaseUnavailableError
from database_service import pool
from database_service.connection import Connection
from database_service.migrations import LOCK, Migration, migrate
from database_service.pool import Database
from database_service.repositories.registrations import RegistrationRepository
from tests.backends import TestPostgres
from tests.integration.database_service.builders import (
    a_registration,
    connected,
    eventually,
    serving,
    settings_for,
)
from tools.launcher.postgres import serves_postgres


@pytest.fixture
async def stoppable(postgres: TestPostgres) -> AsyncIterator[TestPostgres]:
    """The server; it runs again when the test is over."""
    yield postgres
    if postgres.native is not None and not serves_postgres(postgres.native.port):
        await asyncio.to_thread(postgres.start)


async def status(client: ClientSession, url: str) -> int:
    async with client.get(url) as response:
        if response.status == 503 and url != "/health/ready":
            problem = await response.json()
            assert response.headers["Retry-After"].isdigit()
            assert problem["code"] == "database_unavailable"
        return response.status


async def answers(client: ClientSession) -> bool:
    return await status(client, "/api/users") == 200


async def refuses(client: ClientSession) -> bool:
    return await status(client, "/api/users") == 503


@pytest.mark.parametrize("way", ["stop", "kill"])
async def test_the_service_comes_back_after_an_outage(
    client: ClientSession, stoppable: TestPostgres, way: str
) -> None:
    body = {"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}
    async with client.post("/api/users", json=body) as response:
        location = response.headers["Location"]
    await asyncio.gather(*(status(client, "/api/users") for _ in range(8)))  # fill the pool

    await asyncio.to_thread(stoppable.kill if way == "kill" else stoppable.stop)

    with capture_logs() as events:
        assert await refuses(client)
        assert await refuses(client)
    assert [event["event"] for event in events].count("database.disconnected") == 1
    assert await status(client, "/health/ready") == 503
    assert await status(client, "/health/live") == 200
    async with client.post("/api/users", json=body) as response:
        assert response.status == 503
    await asyncio.to_thread(stoppable.start)
    await eventually(lambda: answers(client))
    assert await status(client, "/health/ready") == 200
    async with client.get(location) as response:
        assert response.status == 200


async def test_without_postgres_the_service_starts_and_waits(
    database_dsn: str, stoppable: TestPostgres
) -> None:
    await asyncio.to_thread(stoppable.stop)
    async with serving(settings_for(database_dsn)) as client:
        assert await status(client, "/health/live") == 200
        assert await refuses(client)
        async with client.get("/health/ready") as response:
            assert response.status == 503
            reason = (await response.json())["dependencies"]["postgres"]

        await asyncio.to_thread(stoppable.start)

        await eventually(lambda: answers(client))
    assert reason["code"] == "database_unavailable"


async def test_readiness_says_that_migrations_are_pending(database_dsn: str) -> None:
    """Another instance holds the lock, as it does while it applies a long one."""
    other = await asyncpg.connect(database_dsn)
    await other.execute("SELECT pg_advisory_lock($1)", LOCK)
    async with serving(settings_for(database_dsn)) as client:

        async def says_so() -> bool:
            async with client.get("/health/ready") as response:
                report = await response.json()
            return "igrations are pending" in report["dependencies"]["postgres"].get("detail", "")

        await eventually(says_so)
        assert await refuses(client)

        await other.close()

        await eventually(lambda: answers(client))


async def test_work_in_progress_when_a_backend_is_killed_is_not_promised(
    database: Database, sql: asyncpg.Connection
) -> None:
    repository = RegistrationRepository(database)
    items = [a_registration() for _ in range(300)]

    async def store(number: int) -> str:
        try:
            await repository.insert_registrations(items[number : number + 5])
        except DatabaseUnavailableError:
            return "refused"
        return "stored"

    async def kill_again_and_again() -> None:
        for _ in range(10):
            await end_sessions(sql)

    results, _ = await asyncio.gather(
        asyncio.gather(*(store(number) for number in range(0, 300, 5))), kill_again_and_again()
    )

    # What was refused is asked again, as a receiver does; then all of it is there, once.
    assert "refused" in results
    await repository.insert_registrations(items)
    assert await sql.fetchval("SELECT count(*) FROM registrations") == 300
    assert await sql.fetchval("SELECT count(*) FROM users") == 300


@pytest.mark.parametrize(
    ("limit", "lift"),
    [
        ("CONNECTION LIMIT 0", "CONNECTION LIMIT -1"),
        ("SET default_transaction_read_only = on", "RESET default_transaction_read_only"),
    ],
)
async def test_a_server_that_may_not_is_an_outage_not_an_error(
    client: ClientSession, sql: asyncpg.Connection, limit: str, lift: str
) -> None:
    name = await sql.fetchval("SELECT current_database()")
    if await sql.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        pytest.skip("A superuser has no limits.")
    body = {"name": "Ada", "surname": "Lovelace", "email": "ada@example.org"}
    await sql.execute(f"ALTER DATABASE {name} {limit}")
    await end_sessions(sql)

    async with client.post("/api/users", json=body) as response:
        assert response.status == 503

    await sql.execute(f"ALTER DATABASE {name} {lift}")
    await end_sessions(sql)

    async def stores() -> bool:
        async with client.post("/api/users", json=body) as response:
            return response.status == 201

    await eventually(stores)


async def test_a_right_that_was_taken_away_is_an_outage_too(
    client: ClientSession, sql: asyncpg.Connection
) -> None:
    if await sql.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        pytest.skip("A superuser has all rights.")
    await sql.execute("REVOKE SELECT ON users FROM CURRENT_USER")

    assert await refuses(client)

    await sql.execute("GRANT SELECT ON users TO CURRENT_USER")
    assert await answers(client)


@pytest.mark.parametrize("error", [asyncpg.InvalidParameterValueError, asyncpg.InterfaceError])
async def test_whatever_goes_wrong_at_the_start_it_is_tried_again(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    errors = [error("not now")]

    async def refuse_once(connection: Connection, migrations: list[Migration]) -> int:
        if errors:
            raise errors.pop()
        return await migrate(connection, migrations)

    monkeypatch.setattr(pool, "migrate", refuse_once)

    async with connected(settings_for(database_dsn)) as database:
        await database.check()


async def test_a_statement_that_hangs_is_given_up(
    database_dsn: str, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody locks the table for long; the caller hears of it, and the pool is whole again."""
    monkeypatch.setattr(pool, "COMMAND_SECONDS", 0.3)
    async with serving(settings_for(database_dsn)) as client:
        await eventually(lambda: answers(client))
        async with sql.transaction():
            await sql.execute("LOCK TABLE users")

            refused = await asyncio.gather(*(refuses(client) for _ in range(15)))

        assert all(refused)
        await eventually(lambda: answers(client))


async def test_a_busy_pool_is_said_to_be_busy_and_not_lost(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 0.3)
    async with connected(settings_for(database_dsn, pool_max=2)) as database:
        with capture_logs() as events:
            async with database.connection(), database.connection():
                with pytest.raises(DatabaseUnavailableError, match="were busy"):
                    await database.check()
            await database.check()

    assert events == []


async def end_sessions(sql: asyncpg.Connection) -> None:
    """End every session but this one, as an administrator does."""
    await sql.execute(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )


async def test_a_connection_comes_back_however_it_was_used(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a cancelled statement, one that was too slow, one that lost its backend, an error.

    None counts as free that is in use: whoever finds all busy is told so, and does not wait on.
    """
    async with connected(settings_for(database_dsn, pool_max=2)) as database:

        async def use(statement: str, seconds: float | None = None) -> None:
            async with database.connection() as connection:
                await connection.fetchval(statement, timeout=seconds)

        sleeping = asyncio.create_task(use("SELECT pg_sleep(60)"))
        await asyncio.sleep(0.05)
        sleeping.cancel()
        await asyncio.wait([sleeping])
        await use("SELECT 1")
        with pytest.raises(DatabaseUnavailableError):
            await use("SELECT pg_sleep(60)", 0.05)
        await use("SELECT 1")
        with pytest.raises(DatabaseUnavailableError):
            await use("SELECT pg_terminate_backend(pg_backend_pid())")
        await use("SELECT 1")
        with pytest.raises(asyncpg.UndefinedTableError):
            await use("SELECT * FROM nothing")
        await asyncio.gather(*(use("SELECT 1") for _ in range(20)))
        monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 0.3)
        async with database.connection(), database.connection():
            waiting = asyncio.create_task(use("SELECT 1"))
            await asyncio.sleep(0.05)
            waiting.cancel()
            for _ in range(3):
                with pytest.raises(DatabaseUnavailableError, match="were busy"):
                    async with asyncio.timeout(10):
                        await use("SELECT 1")
