"""One mail, one sender at a time; every attempt on record; nobody told twice a day."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Protocol, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest
from aiohttp import ClientSession

from common.contracts.notifications import (
    LEASE_SECONDS,
    Claim,
    ClaimRequest,
    DeliveryStatus,
    SuppressedMail,
    Template,
)
from common.contracts.users import UserRequest
from common.database_client.client import DatabaseClient
from common.errors import NotFoundError
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.registrations import RegistrationRepository
from database_service.repositories.users import UserRepository
from tests.integration.database_service.builders import (
    a_claim,
    a_registration,
    an_address,
    an_outcome,
    claimed,
    connected,
    eventually,
    recorded,
    settings_for,
)


@pytest.fixture
def run_out(sql: asyncpg.Connection) -> Callable[[UUID], Awaitable[None]]:
    """Let the lease on a mail run out now."""

    async def let_run_out(message_id: UUID) -> None:
        await sql.execute(
            "UPDATE notification_logs SET lease_until = now() WHERE message_id = $1", message_id
        )

    return let_run_out


@pytest.fixture
async def user_id(users: UserRepository) -> int:
    """A user."""
    created = await users.insert_user(UserRequest(name="A", surname="B", email=an_address()))
    return created.user.id


Result = TypeVar("Result")


class Queue(Protocol):
    """Starts work and returns when it waits behind the work started before."""

    async def __call__(self, work: Coroutine[None, None, Result]) -> asyncio.Task[Result]: ...


@asynccontextmanager
async def waiting_in_a_queue(sql: asyncpg.Connection, message_id: UUID) -> AsyncIterator[Queue]:
    """Hold a mail's row, so that all that is started inside waits; then let them go in turn."""
    started = []

    async def enqueue(work: Coroutine[None, None, Result]) -> asyncio.Task[Result]:
        started.append(task := asyncio.create_task(work))

        async def waits() -> bool:
            count = await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return bool(count == len(started))

        await eventually(waits)
        return task

    async with sql.transaction():
        await sql.execute(
            "SELECT FROM notification_logs WHERE message_id = $1 FOR UPDATE", message_id
        )
        yield enqueue


async def attempts(
    repository: NotificationRepository, message_id: UUID
) -> list[tuple[int, DeliveryStatus]]:
    notification = await repository.select_notification(message_id)
    return [(attempt.attempt, attempt.status) for attempt in notification.attempts]


# -- claims ---------------------------------------------------------------------------------


async def test_the_first_claim_is_granted_and_another_sender_waits(
    notifications: NotificationRepository,
) -> None:
    claim = a_claim()

    (granted,) = await notifications.insert_claims([claim])
    (other,) = await notifications.insert_claims([a_claim(claim.message_id)])

    assert granted.claim is Claim.GRANTED
    assert other.claim is Claim.BUSY
    assert 0 < other.retry_after_ms <= LEASE_SECONDS * 1000


async def test_the_holder_renews_without_counting_an_attempt(
    notifications: NotificationRepository, sql: asyncpg.Connection
) -> None:
    claim = a_claim()
    await claimed(notifications, claim)
    until = "SELECT lease_until FROM notification_logs WHERE message_id = $1"
    before = await sql.fetchval(until, claim.message_id)

    assert await claimed(notifications, claim) == [Claim.GRANTED]

    assert await sql.fetchval(until, claim.message_id) > before
    assert await attempts(notifications, claim.message_id) == [(1, DeliveryStatus.SENDING)]


async def test_a_lease_that_ran_out_passes_to_the_next(
    notifications: NotificationRepository, run_out: Callable[[UUID], Awaitable[None]]
) -> None:
    first, second = a_claim(), a_claim()
    second = a_claim(first.message_id)
    await claimed(notifications, first)
    await run_out(first.message_id)

    assert await claimed(notifications, second) == [Claim.GRANTED]
    assert await claimed(notifications, first) == [Claim.BUSY]

    assert await attempts(notifications, first.message_id) == [
        (1, DeliveryStatus.SENDING),
        (2, DeliveryStatus.SENDING),
    ]


@pytest.mark.parametrize("status", [DeliveryStatus.DEFERRED, DeliveryStatus.UNSURE])
async def test_what_was_not_settled_can_be_claimed_at_once(
    notifications: NotificationRepository, status: DeliveryStatus
) -> None:
    claim = a_claim()
    await claimed(notifications, claim)
    assert await recorded(notifications, claim, status)

    assert await claimed(notifications, a_claim(claim.message_id)) == [Claim.GRANTED]

    assert await attempts(notifications, claim.message_id) == [
        (1, status),
        (2, DeliveryStatus.SENDING),
    ]


@pytest.mark.parametrize("status", [DeliveryStatus.SENT, DeliveryStatus.FAILED])
async def test_what_was_settled_is_not_sent_again(
    notifications: NotificationRepository, status: DeliveryStatus
) -> None:
    claim = a_claim()
    await claimed(notifications, claim)
    assert await recorded(notifications, claim, status)

    assert await claimed(notifications, claim, a_claim(claim.message_id)) == [Claim.SENT] * 2


async def test_one_message_twice_in_a_batch_is_granted_once(
    notifications: NotificationRepository,
) -> None:
    claim, other = a_claim(), a_claim()
    rival = a_claim(claim.message_id)

    assert await claimed(notifications, claim, rival, other, claim) == [
        Claim.GRANTED,
        Claim.BUSY,
        Claim.GRANTED,
        Claim.GRANTED,
    ]


@pytest.mark.parametrize("before", ["unknown", "deferred", "run out"])
async def test_of_many_senders_at_the_same_time_one_is_granted(
    database_dsn: str, sql: asyncpg.Connection, before: str
) -> None:
    messages = [uuid4() for _ in range(40)]
    first = [a_claim(message) for message in messages]
    settings = settings_for(database_dsn, pool_min=8)  # connected, so that they really collide
    async with connected(settings) as one, connected(settings) as other:
        repositories = [NotificationRepository(one), NotificationRepository(other)]
        if before != "unknown":
            await claimed(repositories[0], *first)
            await sql.execute("UPDATE notification_logs SET lease_until = now()")
        if before == "deferred":
            await repositories[0].update_outcomes(
                [an_outcome(claim, DeliveryStatus.DEFERRED) for claim in first]
            )

        async def ask(number: int) -> list[tuple[UUID, Claim]]:
            claims = [a_claim(message) for message in messages]
            if number % 3:
                claims.reverse()
            results = await repositories[number % 2].insert_claims(claims)
            return [(result.message_id, result.claim) for result in results]

        answers = await asyncio.gather(*(ask(number) for number in range(30)))

    granted = [message for answer in answers for message, claim in answer if claim is Claim.GRANTED]
    assert sorted(granted) == sorted(messages)
    assert {claim for answer in answers for _, claim in answer} == {Claim.GRANTED, Claim.BUSY}


async def test_claims_that_waited_for_each_other_see_what_the_first_did(
    notifications: NotificationRepository,
    sql: asyncpg.Connection,
    run_out: Callable[[UUID], Awaitable[None]],
) -> None:
    first = a_claim()
    await claimed(notifications, first)
    await run_out(first.message_id)

    async with waiting_in_a_queue(sql, first.message_id) as enqueue:
        rivals = [
            await enqueue(claimed(notifications, a_claim(first.message_id))) for _ in range(3)
        ]

    assert await asyncio.gather(*rivals) == [[Claim.GRANTED], [Claim.BUSY], [Claim.BUSY]]
    assert len(await attempts(notifications, first.message_id)) == 2


async def test_a_user_that_does_not_exist_is_no_obstacle(
    notifications: NotificationRepository,
) -> None:
    claim = a_claim(user_id=2**62)

    assert await claimed(notifications, claim) == [Claim.GRANTED]

    assert (await notifications.select_notification(claim.message_id)).user_id is None


async def test_a_user_deleted_at_the_same_moment_is_no_obstacle(
    notifications: NotificationRepository, sql: asyncpg.Connection, user_id: int
) -> None:
    """The claim has seen the user and waits for the deletion; then the user is gone."""
    claim = a_claim(user_id=user_id)
    async with sql.transaction():
        await sql.execute("DELETE FROM users WHERE id = $1", user_id)
        asked = asyncio.create_task(claimed(notifications, claim))

        async def waits() -> bool:
            return bool(await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))

        await eventually(waits)

    assert await asked == [Claim.GRANTED]
    assert (await notifications.select_notification(claim.message_id)).user_id is None


async def test_users_deleted_meanwhile_break_no_claim(
    notifications: NotificationRepository, users: UserRepository
) -> None:
    created = [
        await users.insert_user(UserRequest(name="A", surname="B", email=an_address()))
        for _ in range(60)
    ]
    ids = [one.user.id for one in created]
    templates = [Template.WELCOME, Template.ALREADY_REGISTERED]

    async def claim_all(template: Template) -> None:
        for number in ids:
            await claimed(notifications, a_claim(user_id=number, template=template))

    async def delete_all() -> None:
        for number in ids:
            await users.delete_user(number, versions=None)

    await asyncio.gather(*(claim_all(template) for template in templates), delete_all())


# -- telling the owner of an address ------------------------------------------------------------


def telling(user_id: int | None, *, recipient: str = "ada@example.org") -> ClaimRequest:
    return a_claim(user_id=user_id, template=Template.ALREADY_REGISTERED, recipient=recipient)


async def test_the_owner_is_told_once_a_day(
    notifications: NotificationRepository, user_id: int
) -> None:
    first, second, third = telling(user_id), telling(user_id), telling(user_id)

    assert await claimed(notifications, first, second) == [Claim.GRANTED, Claim.SUPPRESSED]
    assert await claimed(notifications, third) == [Claim.SUPPRESSED]
    assert await claimed(notifications, second, first) == [Claim.SUPPRESSED, Claim.GRANTED]
    status = (await notifications.select_notification(third.message_id)).status
    assert status is DeliveryStatus.SUPPRESSED
    assert await attempts(notifications, third.message_id) == []


async def test_the_owner_is_told_again_after_a_day(
    notifications: NotificationRepository, sql: asyncpg.Connection, user_id: int
) -> None:
    first = telling(user_id)
    await claimed(notifications, first)
    await recorded(notifications, first, DeliveryStatus.SENT)
    await sql.execute("UPDATE users SET last_notice_at = now() - interval '24 hours'")

    # The old message comes once more; it is sent, and must not take the new one's place.
    assert await claimed(notifications, first) == [Claim.SENT]
    assert await claimed(notifications, telling(user_id)) == [Claim.GRANTED]
    assert await claimed(notifications, telling(user_id)) == [Claim.SUPPRESSED]


async def test_a_mail_that_waited_for_a_day_gives_way_to_a_newer_one(
    notifications: NotificationRepository, sql: asyncpg.Connection, user_id: int
) -> None:
    old = telling(user_id)
    await claimed(notifications, old)
    await recorded(notifications, old, DeliveryStatus.DEFERRED)
    await sql.execute("UPDATE users SET last_notice_at = now() - interval '24 hours'")
    assert await claimed(notifications, telling(user_id)) == [Claim.GRANTED]

    assert await claimed(notifications, old) == [Claim.SUPPRESSED]


async def test_of_many_reminders_at_the_same_time_one_is_granted(
    notifications: NotificationRepository, user_id: int
) -> None:
    answers = await asyncio.gather(
        *(claimed(notifications, telling(user_id), telling(user_id)) for _ in range(12))
    )

    given = [claim for answer in answers for claim in answer]
    assert sorted(given) == [Claim.GRANTED] + [Claim.SUPPRESSED] * 23


async def test_without_a_user_the_address_decides(
    notifications: NotificationRepository, users: UserRepository, user_id: int
) -> None:
    address = (await users.select_user(user_id)).user.email
    unknown = an_address()

    assert await claimed(
        notifications,
        telling(None, recipient=address.upper()),
        telling(user_id, recipient=address),
        telling(None, recipient=unknown),
        telling(None, recipient=unknown),
    ) == [Claim.GRANTED, Claim.SUPPRESSED, Claim.GRANTED, Claim.GRANTED]


async def test_nobody_is_told_after_being_deleted(
    notifications: NotificationRepository, users: UserRepository, user_id: int
) -> None:
    await users.delete_user(user_id, versions=None)

    assert await claimed(notifications, telling(user_id)) == [Claim.SUPPRESSED]


async def test_other_mails_to_the_same_user_are_not_held_back(
    notifications: NotificationRepository, user_id: int
) -> None:
    assert (
        await claimed(
            notifications, telling(user_id), a_claim(user_id=user_id), a_claim(user_id=user_id)
        )
        == [Claim.GRANTED] * 3
    )


async def test_being_told_is_no_edit_of_the_user(
    notifications: NotificationRepository, users: UserRepository, user_id: int
) -> None:
    before = await users.select_user(user_id)

    await claimed(notifications, telling(user_id))

    assert await users.select_user(user_id) == before


# -- outcomes -----------------------------------------------------------------------------------


async def test_an_outcome_is_kept_with_the_servers_words(
    notifications: NotificationRepository,
) -> None:
    claim = a_claim()
    await claimed(notifications, claim)

    (result,) = await notifications.update_outcomes(
        [an_outcome(claim, DeliveryStatus.DEFERRED, code=451, text="4.7.1 Greylisted")]
    )

    notification = await notifications.select_notification(claim.message_id)
    (attempt,) = notification.attempts
    assert result.recorded
    assert notification.status is DeliveryStatus.DEFERRED
    assert notification.sent_at is None
    assert (attempt.reply_code, attempt.reply_text) == (451, "4.7.1 Greylisted")
    assert attempt.at - notification.created_at < timedelta(hours=1)


async def test_an_outcome_said_twice_is_recorded_once(
    notifications: NotificationRepository,
) -> None:
    claim = a_claim()
    await claimed(notifications, claim)
    outcome = an_outcome(claim, DeliveryStatus.SENT)

    results = await notifications.update_outcomes([outcome, outcome])
    sent_at = (await notifications.select_notification(claim.message_id)).sent_at
    again = await notifications.update_outcomes([outcome])

    assert [result.recorded for result in (*results, *again)] == [True] * 3
    assert (await notifications.select_notification(claim.message_id)).sent_at == sent_at
    assert await attempts(notifications, claim.message_id) == [(1, DeliveryStatus.SENT)]


async def test_an_outcome_without_a_grant_says_nothing(
    notifications: NotificationRepository,
) -> None:
    claim, unknown = a_claim(), a_claim()
    await claimed(notifications, claim)

    assert not await recorded(notifications, a_claim(claim.message_id), DeliveryStatus.SENT)
    assert not await recorded(notifications, unknown, DeliveryStatus.SENT)

    assert await attempts(notifications, claim.message_id) == [(1, DeliveryStatus.SENDING)]


async def test_a_lease_that_passed_on_can_not_say_deferred(
    notifications: NotificationRepository, run_out: Callable[[UUID], Awaitable[None]]
) -> None:
    late = a_claim()
    await claimed(notifications, late)
    await run_out(late.message_id)
    holder = a_claim(late.message_id)
    await claimed(notifications, holder)

    assert not await recorded(notifications, late, DeliveryStatus.DEFERRED)

    notification = await notifications.select_notification(late.message_id)
    assert notification.status is DeliveryStatus.SENDING
    assert await attempts(notifications, late.message_id) == [
        (1, DeliveryStatus.DEFERRED),
        (2, DeliveryStatus.SENDING),
    ]


async def test_a_mail_that_was_accepted_is_sent_whoever_says_so(
    notifications: NotificationRepository, run_out: Callable[[UUID], Awaitable[None]]
) -> None:
    late = a_claim()
    await claimed(notifications, late)
    await run_out(late.message_id)
    holder = a_claim(late.message_id)
    await claimed(notifications, holder)

    assert await recorded(notifications, late, DeliveryStatus.SENT)
    assert await claimed(notifications, holder) == [Claim.SENT]
    assert not await recorded(notifications, holder, DeliveryStatus.DEFERRED)

    notification = await notifications.select_notification(late.message_id)
    assert notification.status is DeliveryStatus.SENT
    assert notification.sent_at is not None
    assert await attempts(notifications, late.message_id) == [
        (1, DeliveryStatus.SENT),
        (2, DeliveryStatus.DEFERRED),
    ]


async def test_sent_is_not_overwritten_by_a_word_that_came_at_the_same_moment(
    notifications: NotificationRepository,
    sql: asyncpg.Connection,
    run_out: Callable[[UUID], Awaitable[None]],
) -> None:
    late = a_claim()
    await claimed(notifications, late)
    await run_out(late.message_id)
    holder = a_claim(late.message_id)
    await claimed(notifications, holder)

    async with waiting_in_a_queue(sql, late.message_id) as enqueue:
        sent = await enqueue(recorded(notifications, late, DeliveryStatus.SENT))
        deferred = await enqueue(recorded(notifications, holder, DeliveryStatus.DEFERRED))

    assert await sent
    assert not await deferred
    notification = await notifications.select_notification(late.message_id)
    assert notification.status is DeliveryStatus.SENT


async def test_an_unsure_mail_can_turn_out_as_sent(notifications: NotificationRepository) -> None:
    claim = a_claim()
    await claimed(notifications, claim)
    await recorded(notifications, claim, DeliveryStatus.UNSURE)

    assert await recorded(notifications, claim, DeliveryStatus.SENT)

    assert await attempts(notifications, claim.message_id) == [(1, DeliveryStatus.SENT)]


async def test_sent_is_never_overwritten(notifications: NotificationRepository) -> None:
    claim = a_claim()
    await claimed(notifications, claim)
    await recorded(notifications, claim, DeliveryStatus.SENT)

    for status in (DeliveryStatus.FAILED, DeliveryStatus.DEFERRED, DeliveryStatus.UNSURE):
        assert not await recorded(notifications, claim, status)

    notification = await notifications.select_notification(claim.message_id)
    assert notification.status is DeliveryStatus.SENT


async def test_an_unknown_notification_is_not_found(notifications: NotificationRepository) -> None:
    with pytest.raises(NotFoundError):
        await notifications.select_notification(uuid4())


async def test_a_mail_that_is_suppressed_is_not_sent_unless_something_was_known_of_it(
    client: ClientSession,
    notifications: NotificationRepository,
    registrations: RegistrationRepository,
) -> None:
    stored = [a_registration(an_address()) for _ in range(2)]
    users = [one.user_id for one in await registrations.insert_registrations(stored)]
    new, known = (
        a_claim(
            recipient=registration.email,
            user_id=user_id,
            registration_id=registration.registration_id,
        )
        for registration, user_id in zip(stored, users, strict=True)
    )
    await notifications.insert_claims([known])

    async with DatabaseClient.open(str(client._base_url)) as asks:
        for claim in (new, known, new):  # and once more, as after a crash
            assert claim.user_id is not None
            assert claim.registration_id is not None
            await asks.suppress_mail(
                SuppressedMail(
                    message_id=claim.message_id,
                    recipient=claim.recipient,
                    template=claim.template,
                    user_id=claim.user_id,
                    registration_id=claim.registration_id,
                )
            )

    assert await claimed(notifications, new) == [Claim.SUPPRESSED]
    assert (await notifications.select_notification(known.message_id)).status == "sending"
    suppressed = await notifications.select_notification(new.message_id)
    assert suppressed.status == "suppressed"
    assert "restored" in (suppressed.reason or "")
