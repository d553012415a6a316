"""A canary goes through the same tables as everybody, and nobody sees it there."""

import asyncio
import json
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import ClientSession

from common.contracts.canary import FIRST_CANARY, LAST_CANARY, canary_address, new_canary_id
from common.contracts.notifications import Claim, DeliveryStatus
from common.contracts.registrations import JourneyStatus, Outcome, RegistrationToStore
from common.contracts.reports import UserReportQuery
from common.contracts.resends import NotificationQuery
from common.contracts.users import UserRequest
from common.errors import NotFoundError
from database_service.pool import Database
from database_service.repositories.canaries import STALE_AFTER, CanaryRepository
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.registrations import RegistrationRepository
from database_service.repositories.resends import ResendRepository
from database_service.repositories.users import UserRepository
from tests.integration.database_service.builders import (
    a_claim,
    a_registration,
    an_address,
    claimed,
    recorded,
)


def a_canary() -> RegistrationToStore:
    canary_id = new_canary_id()
    return a_registration(canary_address(canary_id), registration_id=canary_id)


async def mailed(
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
    canary: RegistrationToStore,
) -> None:
    """Take a canary the whole way, as the receiver and the sender do."""
    (stored,) = await registrations.insert_registrations([canary])
    claim = a_claim(
        recipient=canary.email, user_id=stored.user_id, registration_id=canary.registration_id
    )
    assert await claimed(notifications, claim) == [Claim.GRANTED]
    assert await recorded(notifications, claim, DeliveryStatus.SENT)


async def left_of(sql: asyncpg.Connection) -> int:
    """Rows about canaries, of whatever kind."""
    found: int = await sql.fetchval(
        """
        SELECT (SELECT count(*) FROM registrations WHERE registration_id BETWEEN $1 AND $2)
             + (SELECT count(*) FROM notification_logs WHERE registration_id BETWEEN $1 AND $2)
             + (SELECT count(*) FROM notification_attempts
                  JOIN notification_logs AS log ON log.id = notification_id
                 WHERE registration_id BETWEEN $1 AND $2)
        """,
        FIRST_CANARY,
        LAST_CANARY,
    )
    return found


async def test_a_canary_goes_the_whole_way(
    registrations: RegistrationRepository, notifications: NotificationRepository
) -> None:
    canary = a_canary()

    await mailed(registrations, notifications, canary)

    journey = await registrations.select_journey(canary.registration_id)
    assert journey.status is JourneyStatus.MAILED
    assert journey.mailed_at is not None


async def test_nobody_ever_sees_its_user(
    registrations: RegistrationRepository, users: UserRepository, sql: asyncpg.Connection
) -> None:
    before = await users.insert_user(UserRequest(name="Ada", surname="L", email=an_address()))
    canary = a_canary()
    (stored,) = await registrations.insert_registrations([canary])

    assert stored.outcome is Outcome.STORED
    assert stored.user_id > before.user.id  # one was made
    with pytest.raises(NotFoundError):
        await users.select_user(stored.user_id)
    with pytest.raises(NotFoundError):
        await users.select_user_by_email(canary.email)
    assert await users.select_users_after(before.user.id, 10) == []
    report = bytearray()

    async def write(chunk: bytes) -> None:
        report.extend(chunk)

    await users.copy_users(UserReportQuery(), write)
    assert before.user.email.encode() in report
    assert b"canary" not in report
    assert await sql.fetchval("SELECT count(*) FROM users WHERE email LIKE 'canary-%'") == 0


async def test_its_mail_is_in_no_list_of_mails(
    database: Database,
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
    canaries: CanaryRepository,
) -> None:
    person, canary = a_registration(), a_canary()
    for registration in (person, canary):
        await mailed(registrations, notifications, registration)
    unasked = a_claim(recipient=an_address())  # a mail that no registration asked for
    await claimed(notifications, unasked)

    query = NotificationQuery(day=datetime.now(UTC).date(), limit=500)
    mails, _ = await ResendRepository(database).select_notifications(query)

    listed = {mail.registration_id for mail in mails}
    assert {person.registration_id, None} <= listed
    assert canary.registration_id not in listed
    await canaries.delete_canaries(canary.registration_id)


async def test_a_canary_among_people_changes_nothing_for_them(
    registrations: RegistrationRepository, users: UserRepository
) -> None:
    people = [a_registration() for _ in range(3)]
    canary = a_canary()
    batch = [people[0], canary, people[1], canary, people[2]]

    stored = await registrations.insert_registrations(batch)

    assert [item.registration_id for item in stored] == [item.registration_id for item in batch]
    assert {item.outcome for item in stored} == {Outcome.STORED}
    for person in people:
        assert (await users.select_user_by_email(person.email)).user.email == person.email


async def test_the_same_canary_again_gets_the_same_answer(
    registrations: RegistrationRepository,
) -> None:
    canary = a_canary()

    first = await registrations.insert_registrations([canary])

    assert await registrations.insert_registrations([canary, a_registration()]) != first
    assert await registrations.insert_registrations([canary]) == first


async def test_a_canary_can_not_take_a_person_with_it(
    registrations: RegistrationRepository, canaries: CanaryRepository, users: UserRepository
) -> None:
    """Whoever may write to the broker may give a message any id and any address."""
    person = a_registration()
    await registrations.insert_registrations([person])
    impostor = a_registration(person.email, registration_id=new_canary_id())

    (stored,) = await registrations.insert_registrations([impostor])
    await canaries.delete_canaries(impostor.registration_id)

    assert stored.outcome is Outcome.DUPLICATE
    assert (await users.select_user_by_email(person.email)).user.id == stored.user_id


async def test_removing_a_canary_leaves_nothing_of_it(
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
    canaries: CanaryRepository,
    sql: asyncpg.Connection,
) -> None:
    canary, other = a_canary(), a_canary()
    await mailed(registrations, notifications, canary)
    assert await left_of(sql) == 3

    await registrations.insert_registrations([other])
    assert await canaries.delete_canaries(canary.registration_id) == 1

    assert await left_of(sql) == 1  # the other one is under way
    assert await canaries.delete_canaries(canary.registration_id) == 0
    await canaries.delete_canaries(other.registration_id)


async def test_what_nobody_removed_goes_when_it_is_stale(
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
    canaries: CanaryRepository,
    sql: asyncpg.Connection,
) -> None:
    person, orphan, mail_alone, young = a_registration(), a_canary(), a_canary(), a_canary()
    for registration in (person, orphan, mail_alone, young):
        await mailed(registrations, notifications, registration)
    await sql.execute(
        "DELETE FROM registrations WHERE registration_id = $1", mail_alone.registration_id
    )
    old = [item.registration_id for item in (person, orphan, mail_alone)]
    await grow_old(sql, old, STALE_AFTER + timedelta(seconds=1))

    assert await canaries.delete_canaries(new_canary_id()) == 1

    assert await left_of(sql) == 3  # the young one's
    assert (await registrations.select_journey(person.registration_id)).status == "mailed"
    await canaries.delete_canaries(young.registration_id)


GROW_OLD = """
    WITH mail AS (
             UPDATE notification_logs SET created_at = created_at - $2::interval
              WHERE registration_id = ANY ($1)
         )
    UPDATE registrations SET stored_at = stored_at - $2::interval WHERE registration_id = ANY ($1)
"""


async def grow_old(sql: asyncpg.Connection, ids: list[UUID], by: timedelta) -> None:
    await sql.execute(GROW_OLD, ids, by)


async def test_two_frontends_may_sweep_at_the_same_time(
    registrations: RegistrationRepository, canaries: CanaryRepository, sql: asyncpg.Connection
) -> None:
    orphans = [a_canary() for _ in range(50)]
    await registrations.insert_registrations(orphans)
    await grow_old(sql, [item.registration_id for item in orphans], timedelta(hours=2))

    removed = await asyncio.gather(*(canaries.delete_canaries(new_canary_id()) for _ in range(8)))

    assert sum(removed) == 50


async def test_over_http_nothing_but_a_canary_can_be_removed(
    client: ClientSession, registrations: RegistrationRepository
) -> None:
    person, canary = a_registration(), a_canary()
    await registrations.insert_registrations([person, canary])

    statuses = {}
    for name, registration_id in (
        ("person", person.registration_id),
        ("nobody", uuid4()),
        ("canary", canary.registration_id),
    ):
        async with client.delete(f"/api/canaries/{registration_id}") as response:
            statuses[name] = (response.status, (await response.json()).get("removed"))

    assert statuses["person"] == statuses["nobody"]
    assert statuses["person"][0] in (404, 422)
    assert statuses["canary"] == (200, 1)
    journey = await registrations.select_journey(person.registration_id)
    assert journey.status is JourneyStatus.STORED


async def test_removing_finds_its_rows_by_an_index(database: Database) -> None:
    async with database.connection() as connection:
        plan = await connection.fetchval(
            f"EXPLAIN (FORMAT JSON) {CanaryRepository.DELETE_CANARIES}",
            FIRST_CANARY,
            LAST_CANARY,
            new_canary_id(),
            STALE_AFTER,
        )

    text = json.dumps(json.loads(plan))
    assert "Seq Scan" not in text
    assert "registrations_pkey" in text
    assert "notification_logs_registration_id_idx" in text
