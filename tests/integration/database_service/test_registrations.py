"""Registrations are stored exactly once, whoever asks how often at the same time."""

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import hypothesis
import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

from common.contracts.notifications import DeliveryStatus, Template
from common.contracts.registrations import (
    JourneyStatus,
    Outcome,
    RegistrationToStore,
    StoredRegistration,
)
from common.contracts.users import UserRequest
from common.errors import IdReusedError, InvalidError
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.registrations import RegistrationRepository
from database_service.repositories.users import UserRepository
from tests.integration.database_service.builders import (
    a_claim,
    a_registration,
    an_address,
    claimed,
    connected,
    recorded,
    settings_for,
)


async def test_a_new_registration_makes_a_user(
    registrations: RegistrationRepository, users: UserRepository
) -> None:
    item = a_registration()

    (answer,) = await registrations.insert_registrations([item])

    assert answer.registration_id == item.registration_id
    assert answer.outcome is Outcome.STORED
    assert (await users.select_user(answer.user_id)).user.email == item.email


async def test_the_same_id_again_gets_the_same_answer(
    registrations: RegistrationRepository, sql: asyncpg.Connection
) -> None:
    item = a_registration()
    first = await registrations.insert_registrations([item, item])

    again = await registrations.insert_registrations([a_registration(), item])

    assert first == [again[1], again[1]]
    assert await sql.fetchval("SELECT count(*) FROM users") == 2


OTHERS = [{"email": "grace@example.org"}, {"name": "Grace"}, {"surname": "Hopper"}]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: next(iter(other)))
@pytest.mark.parametrize("company", [0, 3])
async def test_an_id_that_stands_for_somebody_else_is_refused_and_stores_nothing(
    registrations: RegistrationRepository,
    sql: asyncpg.Connection,
    other: dict[str, str],
    company: int,
) -> None:
    item = a_registration()
    (first,) = await registrations.insert_registrations([item])
    somebody_else = item.model_copy(update=other)
    batch = [*(a_registration() for _ in range(company)), somebody_else]

    with pytest.raises(IdReusedError):
        await registrations.insert_registrations(batch)

    assert await sql.fetchval("SELECT count(*) FROM users") == 1
    assert await registrations.insert_registrations([item]) == [first]


async def test_two_people_under_one_id_in_one_batch_are_refused(
    registrations: RegistrationRepository, sql: asyncpg.Connection
) -> None:
    item = a_registration()
    other = a_registration(registration_id=item.registration_id)

    with pytest.raises(IdReusedError):
        await registrations.insert_registrations([item, other])

    assert await sql.fetchval("SELECT count(*) FROM users") == 0


async def test_the_same_person_written_in_another_way_is_no_other_one(
    registrations: RegistrationRepository,
) -> None:
    item = a_registration()
    (first,) = await registrations.insert_registrations([item])
    changes = {"email": item.email.upper(), "name": "ADA", "received_at": datetime.now(UTC)}

    assert await registrations.insert_registrations([item.model_copy(update=changes)]) == [first]


async def test_what_was_stored_before_there_were_digests_takes_any_content(
    registrations: RegistrationRepository, sql: asyncpg.Connection
) -> None:
    item = a_registration()
    (first,) = await registrations.insert_registrations([item])
    await sql.execute("UPDATE registrations SET content_digest = NULL")
    other = a_registration(registration_id=item.registration_id)

    for batch in ([other], [a_registration(), other]):
        assert (await registrations.insert_registrations(batch))[-1] == first


async def test_two_registrations_of_one_person_have_nothing_in_common(
    registrations: RegistrationRepository, sql: asyncpg.Connection
) -> None:
    address = an_address()
    await registrations.insert_registrations([a_registration(address), a_registration(address)])

    digests = await sql.fetch("SELECT content_digest FROM registrations")

    assert len({row["content_digest"] for row in digests}) == 2


@pytest.mark.parametrize("company", [0, 1])
async def test_a_known_address_uses_up_no_user_id(
    registrations: RegistrationRepository, sql: asyncpg.Connection, company: int
) -> None:
    """Nor does a known id: after a crash whole batches come again."""
    known = [a_registration() for _ in range(company + 1)]
    users = [one.user_id for one in await registrations.insert_registrations(known)]
    for _ in range(10):
        again = [a_registration(item.email) for item in known]
        await registrations.insert_registrations(again)
        await registrations.insert_registrations(again)
        await registrations.insert_registrations([*known, again[0]])

    (new,) = await registrations.insert_registrations([a_registration()])

    assert new.user_id == max(users) + 1
    assert await sql.fetchval("SELECT count(*) FROM users") == company + 2


async def test_a_known_address_in_another_case_is_a_duplicate_of_the_same_user(
    registrations: RegistrationRepository,
) -> None:
    address = an_address()

    first, second = await registrations.insert_registrations(
        [a_registration(address), a_registration(address.upper())]
    )
    (third,) = await registrations.insert_registrations([a_registration(address.capitalize())])

    assert first.outcome is Outcome.STORED
    assert second.outcome is third.outcome is Outcome.DUPLICATE
    assert first.user_id == second.user_id == third.user_id


async def test_the_answer_stays_the_same_after_the_user_was_deleted(
    registrations: RegistrationRepository, users: UserRepository
) -> None:
    item = a_registration()
    (answer,) = await registrations.insert_registrations([item])
    await users.delete_user(answer.user_id, versions=None)

    (again,) = await registrations.insert_registrations([item])
    (_, among_others) = await registrations.insert_registrations([a_registration(), item])

    assert again == among_others == answer.model_copy(update={"user_exists": False})


async def test_an_address_can_be_registered_again_after_its_user_was_deleted(
    registrations: RegistrationRepository, users: UserRepository
) -> None:
    address = an_address()
    (old,) = await registrations.insert_registrations([a_registration(address)])
    await users.delete_user(old.user_id, versions=None)

    (new,) = await registrations.insert_registrations([a_registration(address)])

    assert new.outcome is Outcome.STORED
    assert new.user_id != old.user_id


@pytest.mark.parametrize("bad", ["a\0b", "half \ud800", "x" * 101, ""])
async def test_a_value_that_can_not_be_stored_fails_its_batch_and_leaves_nothing(
    registrations: RegistrationRepository, sql: asyncpg.Connection, bad: str
) -> None:
    wrong = RegistrationToStore.model_construct(**{**dict(a_registration()), "name": bad})

    with pytest.raises(InvalidError):
        await registrations.insert_registrations([a_registration(), wrong])

    assert await sql.fetchval("SELECT count(*) FROM users") == 0
    assert await sql.fetchval("SELECT count(*) FROM registrations") == 0


Batch = list[tuple[int, int, bool]]
"""Per item: which id, which address, and whether the address is shouted."""

batches = st.lists(
    st.lists(st.tuples(st.integers(0, 7), st.integers(0, 4), st.booleans()), min_size=1),
    min_size=1,
    max_size=6,
)


@hypothesis.settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(batches)
async def test_batches_answer_like_one_registration_after_the_other(
    registrations: RegistrationRepository, given_batches: list[Batch]
) -> None:
    ids = [uuid4() for _ in range(8)]
    addresses = [an_address() for _ in range(5)]
    answers: dict[UUID, tuple[Outcome, int]] = {}
    owners: dict[int, UUID] = {}
    address_of: dict[int, int] = {}

    for drawn in given_batches:
        # An id stands for one person: its address is the one that it came with first.
        batch = [
            (name, address_of.setdefault(name, address), loud) for name, address, loud in drawn
        ]
        items = [
            a_registration(
                addresses[address].upper() if shouted else addresses[address],
                registration_id=ids[name],
            )
            for name, address, shouted in batch
        ]
        for name, address, _ in batch:
            if ids[name] not in answers:
                outcome = Outcome.DUPLICATE if address in owners else Outcome.STORED
                owners.setdefault(address, ids[name])
                answers[ids[name]] = outcome, address
        results = await registrations.insert_registrations(items)

        user_of = {answer.registration_id: answer.user_id for answer in results}
        for item, result in zip(items, results, strict=True):
            outcome, address = answers[item.registration_id]
            assert result.registration_id == item.registration_id
            assert result.outcome is outcome
            assert user_of.get(owners[address], result.user_id) == result.user_id


@pytest.mark.parametrize("largest", [2, 60])
async def test_batches_that_overlap_at_the_same_time_store_each_registration_once(
    database_dsn: str, sql: asyncpg.Connection, largest: int
) -> None:
    """Eight connections of two instances, 160 shuffled batches over 300 ids and 120 addresses."""
    chance = random.Random(7)  # noqa: S311 - the same mix every time
    addresses = [an_address() for _ in range(120)]
    items = [a_registration(chance.choice(addresses)) for _ in range(300)]
    work = [chance.sample(items, chance.randint(1, largest)) for _ in range(160)]

    settings = settings_for(database_dsn, pool_min=4, pool_max=4)
    async with connected(settings) as one, connected(settings) as other:
        repositories = [RegistrationRepository(one), RegistrationRepository(other)]
        results = await asyncio.gather(
            *(
                repositories[number % 2].insert_registrations(batch)
                for number, batch in enumerate(work)
            )
        )

    answers: dict[UUID, StoredRegistration] = {}
    for batch, answered in zip(work, results, strict=True):
        for item, answer in zip(batch, answered, strict=True):
            assert item.registration_id == answer.registration_id
            assert answers.setdefault(answer.registration_id, answer) == answer
    await _assert_consistent(sql, answers)
    address_of = {item.registration_id: item.email for item in items}
    stored = Counter(
        address_of[answer.registration_id]
        for answer in answers.values()
        if answer.outcome is Outcome.STORED
    )
    assert set(stored.values()) == {1}
    assert set(stored) == {address_of[registration_id] for registration_id in answers}


async def _assert_consistent(
    sql: asyncpg.Connection, answers: dict[UUID, StoredRegistration]
) -> None:
    rows = await sql.fetch("SELECT registration_id, outcome, user_id FROM registrations")
    assert {StoredRegistration.model_validate(dict(row)) for row in rows} == set(answers.values())
    makers = await sql.fetch("SELECT user_id FROM registrations WHERE outcome = 'stored'")
    owners = await sql.fetch("SELECT id FROM users")
    assert sorted(row["user_id"] for row in makers) == sorted(row["id"] for row in owners)


async def test_users_deleted_meanwhile_break_no_batch(
    registrations: RegistrationRepository, users: UserRepository
) -> None:
    addresses = [an_address() for _ in range(5)]

    async def register() -> None:
        for _ in range(40):
            await registrations.insert_registrations([a_registration(a) for a in addresses])

    async def delete() -> None:
        for _ in range(60):
            page = await users.select_users_after(0, 10)
            for user in page:
                await users.delete_user(user.id, versions=None)

    await asyncio.gather(register(), register(), delete())


async def test_the_journey_of_an_unknown_registration_is_pending(
    registrations: RegistrationRepository,
) -> None:
    journey = await registrations.select_journey(uuid4())

    assert journey.status is JourneyStatus.PENDING
    assert journey.stored_at is journey.mailed_at is None


async def test_journeys_asked_for_together_come_in_the_order_asked(
    registrations: RegistrationRepository,
) -> None:
    stored = [a_registration() for _ in range(3)]
    await registrations.insert_registrations(stored)
    unknown = uuid4()
    wanted = [stored[2].registration_id, unknown, *(item.registration_id for item in stored)]

    journeys = await registrations.select_journeys(wanted)

    assert [journey.registration_id for journey in journeys] == wanted
    assert [journey.status for journey in journeys] == ["stored", "pending", *["stored"] * 3]


async def test_the_journey_follows_the_mail(
    registrations: RegistrationRepository, notifications: NotificationRepository
) -> None:
    item = a_registration()
    (answer,) = await registrations.insert_registrations([item])
    stored = await registrations.select_journey(item.registration_id)
    claim = a_claim(registration_id=item.registration_id, user_id=answer.user_id)
    await claimed(notifications, claim)
    sending = await registrations.select_journey(item.registration_id)
    await recorded(notifications, claim, DeliveryStatus.SENT)

    mailed = await registrations.select_journey(item.registration_id)

    assert stored.status is sending.status is JourneyStatus.STORED
    assert stored.received_at == item.received_at
    assert stored.stored_at is not None
    assert sending.mailed_at is None
    assert mailed.status is JourneyStatus.MAILED
    assert mailed.mailed_at is not None
    assert mailed.stored_at is not None
    assert mailed.mailed_at >= mailed.stored_at


async def test_a_refused_address_shows_in_the_journey(
    registrations: RegistrationRepository, notifications: NotificationRepository
) -> None:
    item = a_registration()
    await registrations.insert_registrations([item])
    claim = a_claim(registration_id=item.registration_id)
    await claimed(notifications, claim)

    await recorded(notifications, claim, DeliveryStatus.FAILED)

    journey = await registrations.select_journey(item.registration_id)
    assert journey.status is JourneyStatus.MAIL_FAILED
    assert journey.mailed_at is None


async def test_a_suppressed_mail_looks_like_one_that_was_handed_over(
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
    users: UserRepository,
) -> None:
    created = await users.insert_user(UserRequest(name="A", surname="B", email=an_address()))
    again = [a_registration(created.user.email) for _ in range(2)]
    await registrations.insert_registrations(again)

    await claimed(
        notifications,
        *(
            a_claim(
                template=Template.ALREADY_REGISTERED,
                user_id=created.user.id,
                registration_id=item.registration_id,
            )
            for item in again
        ),
    )

    journey = await registrations.select_journey(again[1].registration_id)
    assert journey.status is JourneyStatus.MAILED
    assert journey.mailed_at is not None
