"""A row that somebody else's transaction holds for minutes: only who needs that row waits."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Iterable
from functools import partial
from typing import TypeVar

import asyncpg
import pytest
from aiohttp import ClientSession

from common.contracts.notifications import Claim, DeliveryStatus, Template
from common.contracts.registrations import Outcome, RegistrationToStore
from common.database_client.client import DatabaseClient
from common.errors import DatabaseServiceUnavailableError, RowLockedError
from database_service import pool
from tests.integration.database_service.builders import (
    a_claim,
    a_registration,
    an_address,
    an_outcome,
    connected,
    eventually,
    serving,
    settings_for,
)

Result = TypeVar("Result")


async def is_ready(http: ClientSession) -> bool:
    async with http.get("/health/ready") as response:
        return response.status == 200


@pytest.fixture
async def http(database_dsn: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ClientSession]:
    """The service, ready, that waits less long for locks than usual; as many connections."""
    monkeypatch.setitem(pool.SESSION, "lock_timeout", "300ms")
    async with serving(settings_for(database_dsn)) as session:
        await eventually(partial(is_ready, session))
        yield session


@pytest.fixture
async def client(http: ClientSession) -> AsyncIterator[DatabaseClient]:
    async with DatabaseClient.open(str(http._base_url)) as client:
        yield client


@pytest.fixture
async def psql(http: ClientSession, database_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Somebody with a shell of PostgreSQL."""
    assert http is not None  # the tables are there
    connection = await asyncpg.connect(database_dsn)
    yield connection
    await connection.close()


async def results(calls: Iterable[Awaitable[Result]]) -> list[Result | BaseException]:
    return await asyncio.gather(*calls, return_exceptions=True)


async def a_user(client: DatabaseClient) -> tuple[int, str]:
    address = an_address()
    stored = await client.store(a_registration(address))
    assert stored.user_id is not None
    return stored.user_id, address


async def test_a_lock_is_waited_for_longer_than_a_deadlock_and_not_as_long_as_a_statement(
    database_dsn: str,
) -> None:
    async with (
        connected(settings_for(database_dsn, pool_max=2)) as database,
        database.connection() as one,
        database.connection() as other,  # one of them has migrated, and waited without end
    ):
        for connection in (one, other):
            rows = await connection.fetch(
                "SELECT name, setting::int FROM pg_settings"
                " WHERE name IN ('lock_timeout', 'deadlock_timeout')"
            )
            milliseconds = dict(map(tuple, rows))
            assert milliseconds["deadlock_timeout"] < milliseconds["lock_timeout"]
            assert milliseconds["lock_timeout"] < pool.COMMAND_SECONDS * 1000 / 2


async def test_a_row_of_one_user_left_uncommitted_holds_up_no_other_registration(
    client: DatabaseClient, psql: asyncpg.Connection
) -> None:
    held = a_registration()
    others = [a_registration() for _ in range(20)]
    transaction = psql.transaction()
    await transaction.start()
    await psql.execute("INSERT INTO users (name, surname, email) VALUES ('A', 'B', $1)", held.email)

    async def store_in_two_batches(items: list[RegistrationToStore]) -> list[object]:
        first = asyncio.create_task(results(client.store(item) for item in items[:10]))
        await asyncio.sleep(0.05)
        return [*await results(client.store(item) for item in items[10:]), *await first]

    answers = await store_in_two_batches([*others[:5], held, *others[5:]])
    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    stored = await psql.fetchval("SELECT count(*) FROM registrations")
    await transaction.rollback()

    assert [type(failure) for failure in failures] == [RowLockedError]
    assert stored == 20
    assert (await client.store(held)).outcome is Outcome.STORED


async def test_a_locked_owner_holds_up_no_other_claim(
    client: DatabaseClient, psql: asyncpg.Connection
) -> None:
    user_id, address = await a_user(client)
    held = a_claim(template=Template.ALREADY_REGISTERED, recipient=address, user_id=user_id)
    others = [a_claim(recipient=an_address()) for _ in range(20)]

    async with psql.transaction():
        await psql.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", user_id)
        answers = await results(client.claim(claim) for claim in [*others, held])

    failures = [answer for answer in answers if isinstance(answer, BaseException)]
    assert [type(failure) for failure in failures] == [RowLockedError]
    assert (await client.claim(held)).claim is Claim.GRANTED


async def test_a_locked_mail_holds_up_no_other_outcome(
    client: DatabaseClient, psql: asyncpg.Connection
) -> None:
    claims = [a_claim(recipient=an_address()) for _ in range(20)]
    for claim in claims:
        await client.claim(claim)

    async with psql.transaction():
        await psql.execute(
            "UPDATE notification_logs SET updated_at = now() WHERE message_id = $1",
            claims[0].message_id,
        )
        answers = await results(
            client.record_outcome(an_outcome(claim, DeliveryStatus.SENT)) for claim in claims
        )

    assert isinstance(answers[0], RowLockedError)
    assert answers[1:] == [True] * 19


async def test_who_wants_a_locked_row_again_and_again_leaves_connections_for_others(
    database_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Nobody gives up before the row is let go.
    monkeypatch.setitem(pool.SESSION, "lock_timeout", "100s")
    monkeypatch.setattr(pool, "COMMAND_SECONDS", 100.0)
    monkeypatch.setattr(pool, "ACQUIRE_SECONDS", 100.0)
    async with (
        serving(settings_for(database_dsn, pool_max=4)) as http,
        DatabaseClient.open(str(http._base_url)) as client,
    ):
        await eventually(partial(is_ready, http))
        user_id, _ = await a_user(client)

        async def change() -> int:
            body = {"name": "Ada", "surname": "King"}
            async with http.put(f"/api/users/{user_id}", json=body) as response:
                return response.status

        psql = await asyncpg.connect(database_dsn)
        async with psql.transaction():
            await psql.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", user_id)
            changes = [asyncio.create_task(change()) for _ in range(30)]

            async def two_wait_for_the_row() -> bool:
                waiting: int = await psql.fetchval(
                    "SELECT count(*) FROM pg_locks WHERE NOT granted"
                )
                return waiting == 2

            await eventually(two_wait_for_the_row)
            others = await results(client.store(a_registration()) for _ in range(20))
            waiting = [task for task in changes if not task.done()]
        await psql.close()
        answers = await asyncio.gather(*changes)

    assert not [answer for answer in others if isinstance(answer, BaseException)]
    assert len(waiting) == 30
    assert set(answers) == {200}


async def test_who_wants_a_locked_row_is_told_so(
    client: DatabaseClient, http: ClientSession, psql: asyncpg.Connection
) -> None:
    user_id, _ = await a_user(client)
    body = {"name": "Ada", "surname": "King"}

    async with psql.transaction():
        await psql.execute("SELECT FROM users WHERE id = $1 FOR UPDATE", user_id)
        async with http.put(f"/api/users/{user_id}", json=body) as response:
            problem = await response.json()

    assert (response.status, problem["code"]) == (503, "row_locked")
    assert response.headers["Retry-After"] == "5"


async def test_a_locked_table_is_no_matter_of_one_row(
    client: DatabaseClient, psql: asyncpg.Connection
) -> None:
    async with psql.transaction():
        await psql.execute("LOCK TABLE users IN SHARE MODE")
        (answer,) = await results([client.store(a_registration())])

    assert isinstance(answer, DatabaseServiceUnavailableError)
