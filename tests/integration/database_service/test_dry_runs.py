import asyncpg
import pytest

from common.contracts.registrations import Outcome, RegistrationToStore, StoredRegistration
from common.errors import IdReusedError
from database_service.pool import Database
from database_service.repositories.dry_runs import dry_run_registrations
from database_service.repositories.registrations import RegistrationRepository
from tests.integration.database_service.builders import a_registration


async def tried(database: Database, *items: RegistrationToStore) -> list[StoredRegistration]:
    return await dry_run_registrations(database, items)


async def test_somebody_new_would_be_stored_and_is_not(
    database: Database, sql: asyncpg.Connection
) -> None:
    (answer,) = await tried(database, a_registration())

    assert answer.outcome is Outcome.STORED
    assert await sql.fetchval("SELECT count(*) FROM users") == 0
    assert await sql.fetchval("SELECT count(*) FROM registrations") == 0


async def test_whoever_is_known_gets_the_answer_from_before(
    database: Database, registrations: RegistrationRepository, sql: asyncpg.Connection
) -> None:
    """By id and content, and by address whatever the id is."""
    item = a_registration()
    (known,) = await registrations.insert_registrations([item])

    same_id = a_registration(registration_id=item.registration_id)
    same_address = a_registration(item.email)

    assert await tried(database, item) == [known]
    with pytest.raises(IdReusedError):
        await tried(database, same_id)
    (duplicate,) = await tried(database, same_address)
    assert (duplicate.outcome, duplicate.user_id) == (Outcome.DUPLICATE, known.user_id)
    assert await tried(database, item, same_address) == [known, duplicate]
    assert await sql.fetchval("SELECT count(*) FROM users") == 1
