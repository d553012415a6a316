"""The ledger in the database: every id in exactly one place, whoever reads, however often."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from common.contracts.ledger import (
    AcknowledgeIncidents,
    IncidentKind,
    LedgerBatch,
    LedgerEntry,
    LedgerPosition,
    Reconciliation,
    ReconciliationRequest,
    UnpromisedPublication,
    UnpromisedPublications,
)
from common.contracts.notifications import ClaimRequest, DeliveryStatus
from database_service.pool import Database
from database_service.repositories import ledger as repository
from database_service.repositories import ledger_entries
from database_service.repositories import reconciliation as turns
from database_service.repositories.ledger import LedgerRepository
from database_service.repositories.notifications import NotificationRepository
from database_service.repositories.registrations import RegistrationRepository
from tests.integration.database_service.builders import (
    a_claim,
    a_registration,
    eventually,
    recorded,
)

STREAM = "user.registration.log"


@pytest.fixture
def ledger(database: Database) -> LedgerRepository:
    return LedgerRepository(database)


def a_batch(
    ids: list[UUID], *, at: int = 0, first_offset: int | None = None, age: float = 0, **changes: Any
) -> LedgerBatch:
    """What a reader at ``at`` read: these ids, one after the other."""
    first = at if first_offset is None else first_offset
    accepted_at = datetime.now(UTC) - timedelta(seconds=age)
    entries = [
        LedgerEntry(registration_id=key, accepted_at=accepted_at, stream_offset=first + position)
        for position, key in enumerate(ids)
    ]
    values = {
        "stream": STREAM,
        "from_offset": at,
        "next_offset": first + len(ids),
        "last_id": ids[-1],
        "entries": entries,
    }
    return LedgerBatch.model_validate(values | changes)


async def reconciled(ledger: LedgerRepository, *, after: float = 0) -> Reconciliation:
    reconciliation = await ledger.reconcile_entries(
        ReconciliationRequest(stream=STREAM, missing_for_seconds=after)
    )
    totals = reconciliation.totals
    parts = (totals.stored, totals.duplicates, totals.missing, totals.unpromised)
    assert totals.accepted == sum((*parts, *reconciliation.rejected.values()))
    assert totals.stored + totals.duplicates == sum(totals.mails.model_dump().values())
    return reconciliation


async def stored(registrations: RegistrationRepository, count: int) -> list[UUID]:
    items = [a_registration() for _ in range(count)]
    await registrations.insert_registrations(items)
    return [item.registration_id for item in items]


async def with_mail(
    notifications: NotificationRepository, registration_id: UUID, status: DeliveryStatus
) -> ClaimRequest:
    claim = a_claim(registration_id=registration_id)
    await notifications.insert_claims([claim])
    assert await recorded(notifications, claim, status)
    return claim


async def test_an_unread_stream_begins_at_its_beginning(ledger: LedgerRepository) -> None:
    beginning = LedgerPosition(next_offset=0)
    assert await ledger.select_position(STREAM) == beginning


async def test_what_is_stored_counts_and_what_is_not_is_missing(
    ledger: LedgerRepository, registrations: RegistrationRepository
) -> None:
    known, unknown = await stored(registrations, 3), [uuid4(), uuid4()]

    position = await ledger.insert_entries(a_batch([*known, *unknown]))

    assert (position.next_offset, position.last_id, position.advanced) == (5, unknown[-1], True)
    totals = (await reconciled(ledger)).totals
    assert (totals.accepted, totals.stored, totals.missing) == (5, 3, 2)


async def test_duplicates_of_an_address_are_told_apart(
    ledger: LedgerRepository, registrations: RegistrationRepository
) -> None:
    items = [a_registration("ada@example.org"), a_registration("ADA@example.org")]
    await registrations.insert_registrations(items)

    await ledger.insert_entries(a_batch([item.registration_id for item in items]))

    totals = (await reconciled(ledger)).totals
    assert (totals.stored, totals.duplicates, totals.missing) == (1, 1, 0)


async def test_a_missing_one_that_is_stored_later_is_missing_no_more(
    ledger: LedgerRepository, registrations: RegistrationRepository
) -> None:
    late = a_registration()
    await ledger.insert_entries(a_batch([late.registration_id]))
    assert (await reconciled(ledger)).totals.missing == 1

    await registrations.insert_registrations([late])

    assert (await reconciled(ledger)).totals.stored == 1
    assert (await reconciled(ledger)).totals.stored == 1


async def test_only_who_is_missing_for_long_is_named_oldest_first(
    ledger: LedgerRepository, sql: asyncpg.Connection
) -> None:
    old, older, young = uuid4(), uuid4(), uuid4()
    await ledger.insert_entries(a_batch([young]))
    await ledger.insert_entries(a_batch([old], at=1, age=700))
    await ledger.insert_entries(a_batch([older], at=2, age=900))
    await sql.execute("UPDATE ledger_entries SET read_at = accepted_at")

    reconciliation = await reconciled(ledger, after=600)

    assert [missing.registration_id for missing in reconciliation.missing] == [older, old]
    assert [missing.stream_offset for missing in reconciliation.missing] == [2, 1]
    assert (reconciliation.missing_for_long, reconciliation.totals.missing) == (2, 3)
    request = ReconciliationRequest(stream=STREAM, missing_for_seconds=600, limit=1)
    assert (await ledger.reconcile_entries(request)).missing_for_long == 2


async def test_two_readers_at_the_same_place_count_nothing_twice(
    ledger: LedgerRepository,
) -> None:
    batch = a_batch([uuid4() for _ in range(50)])

    positions = await asyncio.gather(*(ledger.insert_entries(batch) for _ in range(4)))

    assert sorted(position.advanced for position in positions) == [False, False, False, True]
    assert {position.next_offset for position in positions} == {50}
    totals = (await reconciled(ledger)).totals
    assert (totals.accepted, totals.repeated) == (50, 0)


async def test_an_id_that_is_published_again_is_one_registration(
    ledger: LedgerRepository, registrations: RegistrationRepository
) -> None:
    known, unknown = await stored(registrations, 1), uuid4()
    await ledger.insert_entries(a_batch([*known, unknown, *known]))

    await ledger.insert_entries(a_batch([unknown, *known], at=3))

    reconciliation = await reconciled(ledger)
    assert (reconciliation.totals.accepted, reconciliation.totals.repeated) == (2, 3)
    (missing,) = reconciliation.missing
    assert missing.stream_offset == 3  # the younger one stays longer in the stream


async def test_a_stream_that_is_read_again_from_its_beginning_changes_no_figure(
    ledger: LedgerRepository, registrations: RegistrationRepository
) -> None:
    ids = [*await stored(registrations, 2), uuid4()]
    await ledger.insert_entries(a_batch(ids))
    before = (await reconciled(ledger)).totals

    again = a_batch(ids, at=3, first_offset=0, restarted=True)
    position = await ledger.insert_entries(again)

    assert position.advanced
    after = (await reconciled(ledger)).totals
    assert after == before.model_copy(update={"restarts": 1})


async def test_what_the_stream_forgot_is_told(ledger: LedgerRepository) -> None:
    await ledger.insert_entries(a_batch([uuid4()], first_offset=40, truncated=40))

    assert (await reconciled(ledger)).totals.truncated == 40


MAILS = {
    "sent": DeliveryStatus.SENT,
    "failed": DeliveryStatus.FAILED,
    "unsure": DeliveryStatus.UNSURE,
    "waiting": DeliveryStatus.DEFERRED,
}


async def test_mails_are_counted_by_what_became_of_them(
    ledger: LedgerRepository,
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
) -> None:
    ids = await stored(registrations, 5)
    await ledger.insert_entries(a_batch(ids[:2]))  # some are looked at before they have a mail
    for registration_id, status in zip(ids[1:], MAILS.values(), strict=True):
        await with_mail(notifications, registration_id, status)
    await ledger.insert_entries(a_batch(ids[2:], at=2))

    mails = (await reconciled(ledger)).totals.mails

    assert (mails.mailed, mails.failed, mails.unsure, mails.waiting) == (1, 1, 1, 2)


async def test_a_failed_mail_that_is_sent_after_all_is_mailed(
    ledger: LedgerRepository,
    registrations: RegistrationRepository,
    notifications: NotificationRepository,
) -> None:
    (registration_id,) = await stored(registrations, 1)
    claim = await with_mail(notifications, registration_id, DeliveryStatus.FAILED)
    await ledger.insert_entries(a_batch([registration_id]))
    assert (await reconciled(ledger)).totals.mails.failed == 1

    assert await recorded(notifications, claim, DeliveryStatus.SENT)

    mails = (await reconciled(ledger)).totals.mails
    assert (mails.failed, mails.mailed) == (0, 1)


async def test_what_a_person_discarded_is_rejected_and_no_longer_missing(
    ledger: LedgerRepository, sql: asyncpg.Connection, registrations: RegistrationRepository
) -> None:
    bad = a_registration()
    await ledger.insert_entries(a_batch([bad.registration_id]))
    await sql.execute(
        "INSERT INTO dead_letter_discards (message_id, route, error_code, reason)"
        " VALUES ($1, 'user.registration', 'malformed', 'nonsense')",
        bad.registration_id,
    )

    reconciliation = await reconciled(ledger)
    assert (reconciliation.rejected, reconciliation.missing) == ({"malformed": 1}, [])

    # Published again under the same id, and taken this time.
    await registrations.insert_registrations([bad])
    await ledger.insert_entries(a_batch([bad.registration_id], at=1))
    reconciliation = await reconciled(ledger)
    assert (reconciliation.rejected, reconciliation.totals.stored) == ({}, 1)


async def test_those_that_never_settle_do_not_keep_the_others_from_being_looked_at(
    ledger: LedgerRepository,
    registrations: RegistrationRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "RECONCILED_AT_ONCE", 3)
    late = [a_registration() for _ in range(10)]
    await ledger.insert_entries(a_batch([item.registration_id for item in late]))
    await registrations.insert_registrations(late)

    for _ in range(5):
        totals = (await reconciled(ledger)).totals

    assert (totals.stored, totals.missing) == (10, 0)


async def test_a_turn_that_comes_to_the_last_entry_goes_on_from_the_first(
    ledger: LedgerRepository,
    registrations: RegistrationRepository,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "RECONCILED_AT_ONCE", 3)
    late = sorted((a_registration() for _ in range(4)), key=lambda item: item.registration_id)
    await ledger.insert_entries(a_batch([item.registration_id for item in late]))
    await reconciled(ledger)  # the first three
    await registrations.insert_registrations(late[:1])

    totals = (await reconciled(ledger)).totals  # the fourth, and the first two again

    assert (totals.stored, totals.missing) == (1, 3)


async def test_a_stream_made_anew_is_an_incident_until_somebody_takes_note(
    ledger: LedgerRepository, registrations: RegistrationRepository
) -> None:
    known, unknown = await stored(registrations, 3), [uuid4(), uuid4()]
    await ledger.insert_entries(a_batch([*known, *unknown]))
    await reconciled(ledger)
    await ledger.insert_entries(a_batch([uuid4()], at=5, first_offset=0, restarted=True))

    (incident,) = (await reconciled(ledger)).incidents

    assert incident.kind is IncidentKind.REPLACED
    assert (incident.accepted_before, incident.stored_by_then, incident.not_provable) == (5, 3, 2)
    assert incident.last_read_at is not None
    assert incident.last_read_at <= incident.noticed_at
    request = AcknowledgeIncidents(stream=STREAM, reason="a new disk", acknowledged_by="ada")
    (closed,) = await ledger.acknowledge_incidents(request)
    assert (closed.incident_id, closed.reason) == (incident.incident_id, "a new disk")
    assert await ledger.acknowledge_incidents(request) == []
    assert (await reconciled(ledger)).incidents == []


async def test_an_emptied_stream_is_read_from_its_beginning(ledger: LedgerRepository) -> None:
    await ledger.insert_entries(a_batch([uuid4(), uuid4()]))
    empty = LedgerBatch(
        stream=STREAM, from_offset=2, next_offset=0, last_id=None, entries=[], restarted=True
    )

    position = await ledger.insert_entries(empty)
    again = await ledger.insert_entries(empty)  # another reader noticed it too

    assert (position.next_offset, position.last_id, again.advanced) == (0, None, False)
    assert [one.kind for one in (await reconciled(ledger)).incidents] == [IncidentKind.REPLACED]


async def test_what_was_truncated_unread_is_an_incident(ledger: LedgerRepository) -> None:
    await ledger.insert_entries(a_batch([uuid4()]))
    await ledger.insert_entries(a_batch([uuid4()], at=1, first_offset=8, truncated=7))

    (incident,) = (await reconciled(ledger)).incidents

    assert (incident.kind, incident.not_provable) == (IncidentKind.TRUNCATED, 7)


async def test_a_restored_database_is_one_incident_and_knows_whom_it_knew(
    ledger: LedgerRepository,
) -> None:
    """However many readers tell it of how far they had come, batch by batch."""
    in_dump, known, new = ([uuid4(), uuid4()] for _ in range(3))
    await ledger.insert_entries(a_batch(in_dump))
    await ledger.insert_entries(a_batch(known, at=2, known_up_to=4))
    await ledger.insert_entries(a_batch(new, at=4))
    await ledger.insert_entries(a_batch([uuid4()], at=6, known_up_to=4))  # as if it lagged behind

    reconciliation = await reconciled(ledger)

    assert [one.kind for one in reconciliation.incidents] == [IncidentKind.RESTORED]
    were_known = {one.registration_id for one in reconciliation.missing if one.was_known}
    assert were_known == {*in_dump, *known}


async def test_in_a_stream_made_anew_nobody_was_known_before(ledger: LedgerRepository) -> None:
    await ledger.insert_entries(a_batch([uuid4()], known_up_to=4))
    new = [uuid4(), uuid4()]
    await ledger.insert_entries(a_batch(new, at=1, first_offset=0, restarted=True))

    missing = (await reconciled(ledger)).missing

    assert {one.registration_id for one in missing if not one.was_known} == set(new)


async def test_a_publishers_old_clock_makes_nobody_missing_for_long(
    ledger: LedgerRepository,
) -> None:
    await ledger.insert_entries(a_batch([uuid4()], age=7200))

    young = await reconciled(ledger, after=600)
    assert (young.missing_for_long, young.missing) == (0, [])
    old = await reconciled(ledger, after=0)
    assert (old.missing_for_long, len(old.missing)) == (1, 1)


async def test_an_id_that_comes_again_does_not_tell_how_far_the_work_queue_has_come(
    ledger: LedgerRepository, registrations: RegistrationRepository
) -> None:
    """Stored long ago, it is stored now, too, though its message waits behind all the others."""
    (known,) = await stored(registrations, 1)
    await ledger.insert_entries(a_batch([known]))
    before = (await reconciled(ledger)).stored_up_to
    await ledger.insert_entries(a_batch([uuid4()], at=1))

    await ledger.insert_entries(a_batch([known], at=2))

    reconciliation = await reconciled(ledger)
    assert reconciliation.totals.repeated == 1
    assert reconciliation.stored_up_to == before


@pytest.mark.parametrize("at_once", [4, 1000])
async def test_rows_that_vanish_are_noticed_in_turns_and_told_once(
    ledger: LedgerRepository,
    registrations: RegistrationRepository,
    sql: asyncpg.Connection,
    at_once: int,
) -> None:
    ids = await stored(registrations, 20)
    await ledger.insert_entries(a_batch([*ids, uuid4()]))
    assert (await verified(ledger, at_once)).incidents == []
    gone = sorted(ids)[3:17:2]
    rows = await sql.fetch(
        "DELETE FROM registrations WHERE registration_id = ANY ($1)"
        " RETURNING registration_id, outcome, user_id, received_at",
        gone,
    )

    for _ in range(2):
        reconciliation = await verified(ledger, at_once)
        (incident,) = reconciliation.incidents
        assert (incident.kind, incident.not_provable) == (IncidentKind.VANISHED, len(gone))
        assert (reconciliation.totals.vanished, reconciliation.totals.stored) == (len(gone), 20)

    await sql.executemany(
        "INSERT INTO registrations (registration_id, outcome, user_id, received_at)"
        " VALUES ($1, $2, $3, $4)",
        [tuple(row.values()) for row in rows],
    )
    assert (await verified(ledger, at_once)).totals.vanished == 0


async def test_a_user_that_is_deleted_on_purpose_leaves_the_account_true(
    ledger: LedgerRepository, registrations: RegistrationRepository, sql: asyncpg.Connection
) -> None:
    await ledger.insert_entries(a_batch(await stored(registrations, 3)))
    await sql.execute("DELETE FROM users")

    reconciliation = await verified(ledger, 1000)

    assert (reconciliation.incidents, reconciliation.totals.vanished) == ([], 0)
    assert (reconciliation.totals.stored, reconciliation.totals.missing) == (3, 0)


async def verified(ledger: LedgerRepository, at_once: int) -> Reconciliation:
    """After enough turns to have looked at 21 entries."""
    for _ in range(21 // at_once + 1):
        request = ReconciliationRequest(stream=STREAM, missing_for_seconds=0, verify=at_once)
        reconciliation = await ledger.reconcile_entries(request)
    return reconciliation


# -- what nobody was promised ---------------------------------------------------------------

ONE, OTHER = "1" * 16, "a1" * 8
"""Spans of two publications."""


async def read(
    ledger: LedgerRepository, *messages: tuple[UUID, str | None], at: int = 0, first: int = -1
) -> None:
    """Read these messages, each with its span, at the end of the stream or where it is said."""
    batch = a_batch([key for key, _ in messages], at=at, first_offset=at if first < 0 else first)
    spans = (span for _, span in messages)
    entries = [
        entry.model_copy(update={"span": span})
        for entry, span in zip(batch.entries, spans, strict=True)
    ]
    position = await ledger.insert_entries(batch.model_copy(update={"entries": entries}))
    assert position.advanced


async def answered_503(ledger: LedgerRepository, *publications: tuple[UUID, str]) -> int:
    """Note what was answered with 503."""
    return await ledger.insert_unpromised(
        UnpromisedPublications(
            stream=STREAM,
            publications=[
                UnpromisedPublication(registration_id=key, span=span) for key, span in publications
            ],
        )
    )


async def is_lost(ledger: LedgerRepository, registration_id: UUID) -> bool:
    """Whether it is missing, and not named as unpromised."""
    reconciliation = await reconciled(ledger)
    missing = {one.registration_id for one in reconciliation.missing}
    unpromised = {one.registration_id for one in reconciliation.unpromised}
    assert not missing & unpromised
    assert (len(missing), len(unpromised)) == (
        reconciliation.totals.missing,
        reconciliation.totals.unpromised,
    )
    assert reconciliation.missing_for_long == len(missing)
    assert registration_id in missing | unpromised
    return registration_id in missing


@pytest.mark.parametrize("note_first", [True, False])
async def test_what_was_answered_with_503_is_unpromised_and_not_missing(
    ledger: LedgerRepository, *, note_first: bool
) -> None:
    refused, promised = uuid4(), uuid4()
    if note_first:
        assert await answered_503(ledger, (refused, ONE)) == 1
    await read(ledger, (refused, ONE), (promised, OTHER))
    if not note_first:
        assert await is_lost(ledger, refused)
        assert await answered_503(ledger, (refused, ONE)) == 1

    assert not await is_lost(ledger, refused)
    assert await is_lost(ledger, promised)
    assert await answered_503(ledger, (refused, ONE), (refused, ONE)) == 0
    assert not await is_lost(ledger, refused)


@pytest.mark.parametrize("note_last", [True, False])
@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("spans", [(ONE, OTHER), (OTHER, ONE)])
async def test_who_was_promised_by_another_publication_is_missed(
    ledger: LedgerRepository, spans: tuple[str, str], *, at_once: bool, note_last: bool
) -> None:
    """A 503 and a 202 under one id, whichever the stream has first."""
    key = uuid4()
    if not note_last:
        await answered_503(ledger, (key, ONE))
    if at_once:
        await read(ledger, *((key, span) for span in spans))
    else:
        for position, span in enumerate(spans):
            await read(ledger, (key, span), at=position)
    if note_last:
        await answered_503(ledger, (key, ONE))

    assert await is_lost(ledger, key)
    await answered_503(ledger, (uuid4(), ONE), (key, ONE))
    assert await is_lost(ledger, key)


@pytest.mark.parametrize("at_once", [True, False])
async def test_who_was_answered_with_503_each_time_is_unpromised(
    ledger: LedgerRepository, *, at_once: bool
) -> None:
    """A form that tries again by itself, and somebody who gives up."""
    key, third = uuid4(), "3" * 16
    await answered_503(ledger, (key, ONE))
    if at_once:
        await read(ledger, (key, ONE), (key, OTHER))
    else:
        await read(ledger, (key, ONE))
        assert not await is_lost(ledger, key)
        await read(ledger, (key, OTHER), at=1)
    assert await is_lost(ledger, key)

    await answered_503(ledger, (key, OTHER))
    assert not await is_lost(ledger, key)

    await read(ledger, (key, third), at=2)
    assert await is_lost(ledger, key)


@pytest.mark.parametrize("other", [None, ONE])
@pytest.mark.parametrize("at_once", [True, False])
async def test_a_message_without_a_span_or_with_one_of_another_is_never_unpromised(
    ledger: LedgerRepository, other: str | None, *, at_once: bool
) -> None:
    """As of a program that copies messages by hand: the broker promised it to that one."""
    key = uuid4()
    if at_once:
        await read(ledger, (key, ONE), (key, other))
    else:
        await read(ledger, (key, ONE))
        await read(ledger, (key, other), at=1)

    await answered_503(ledger, (key, ONE))
    assert await is_lost(ledger, key)
    await read(ledger, (key, OTHER), at=2)
    await answered_503(ledger, (key, OTHER))
    assert await is_lost(ledger, key)


async def test_without_spans_nobody_is_unpromised(ledger: LedgerRepository) -> None:
    key = uuid4()
    await read(ledger, (key, None))

    await answered_503(ledger, (key, ONE))

    assert await is_lost(ledger, key)


async def test_the_same_message_read_again_stays_unpromised_and_another_in_its_place_does_not(
    ledger: LedgerRepository,
) -> None:
    key = uuid4()
    await answered_503(ledger, (key, ONE))
    await read(ledger, (key, ONE))

    await read(ledger, (key, ONE), at=1, first=0)
    assert not await is_lost(ledger, key)

    await read(ledger, (key, OTHER), at=1, first=0)  # the stream was made anew
    assert await is_lost(ledger, key)


async def test_who_was_stored_is_stored_and_never_unpromised_again(
    ledger: LedgerRepository, registrations: RegistrationRepository, sql: asyncpg.Connection
) -> None:
    before, after = a_registration(), a_registration()
    keys = [before.registration_id, after.registration_id]
    await registrations.insert_registrations([before])
    await answered_503(ledger, *((key, ONE) for key in keys))
    await read(ledger, *((key, ONE) for key in keys))
    await registrations.insert_registrations([after])

    reconciliation = await reconciled(ledger)

    assert (reconciliation.totals.stored, reconciliation.totals.unpromised) == (2, 0)
    left = "SELECT count(*) FROM ledger_entries WHERE unpromised OR spans IS NOT NULL"
    assert await sql.fetchval(left) == 0


async def test_who_was_discarded_and_comes_again_is_missed(
    ledger: LedgerRepository, sql: asyncpg.Connection
) -> None:
    key = uuid4()
    await answered_503(ledger, (key, ONE), (key, OTHER))
    await read(ledger, (key, ONE))
    await sql.execute(
        "INSERT INTO dead_letter_discards (message_id, route, error_code, reason)"
        " VALUES ($1, 'user.registration', 'malformed', 'nonsense')",
        key,
    )
    reconciliation = await reconciled(ledger)
    assert (reconciliation.rejected, reconciliation.totals.unpromised) == ({"malformed": 1}, 0)
    await sql.execute("DELETE FROM dead_letter_discards")

    await read(ledger, (key, OTHER), at=1)

    assert await is_lost(ledger, key)


@pytest.mark.parametrize("note_first", [True, False])
async def test_what_a_release_without_spans_read_beside_this_one_is_missed(
    ledger: LedgerRepository, sql: asyncpg.Connection, *, note_first: bool
) -> None:
    """It moves the offset, and leaves what it does not know."""
    key, third = uuid4(), "3" * 16
    if note_first:
        await answered_503(ledger, (key, ONE), (key, third))
    await read(ledger, (key, ONE))
    await sql.execute("UPDATE ledger_entries SET stream_offset = 1")
    await sql.execute("UPDATE ledger_positions SET next_offset = 2")

    assert await is_lost(ledger, key)
    await answered_503(ledger, (key, ONE), (key, third))
    assert await is_lost(ledger, key)
    await read(ledger, (key, third), at=2)
    assert await is_lost(ledger, key)


async def test_somebody_who_tries_very_often_is_missed_and_costs_no_more(
    ledger: LedgerRepository, sql: asyncpg.Connection
) -> None:
    key = uuid4()
    tries = [(key, f"{number:016x}") for number in range(1, 101)]
    await answered_503(ledger, *tries)
    await read(ledger, *tries[:60])
    assert not await is_lost(ledger, key)

    await read(ledger, *tries[60:], at=60)

    assert await is_lost(ledger, key)
    await answered_503(ledger, (key, ONE))
    await read(ledger, (key, ONE), at=100)
    assert await is_lost(ledger, key)
    assert await sql.fetchval("SELECT spans FROM ledger_entries") is None


async def test_old_notes_are_forgotten_and_what_came_of_them_is_not(
    ledger: LedgerRepository, sql: asyncpg.Connection
) -> None:
    key = uuid4()
    await answered_503(ledger, (key, ONE), (uuid4(), ONE))
    await read(ledger, (key, ONE))
    await sql.execute("UPDATE unpromised_publications SET noted_at = now() - interval '15 days'")

    await answered_503(ledger, (uuid4(), ONE))

    assert await sql.fetchval("SELECT count(*) FROM unpromised_publications") == 1
    assert not await is_lost(ledger, key)


@pytest.mark.parametrize("gap", [{"truncated": 10}, {"restarted": True}])
async def test_what_was_not_read_may_have_been_a_202(
    ledger: LedgerRepository, gap: dict[str, Any]
) -> None:
    known, noted_later = uuid4(), uuid4()
    await answered_503(ledger, (known, ONE))
    await read(ledger, (known, ONE), (noted_later, ONE))
    assert not await is_lost(ledger, known)

    await ledger.insert_entries(a_batch([uuid4()], at=2, first_offset=12, **gap))
    await answered_503(ledger, (noted_later, ONE))

    assert await is_lost(ledger, known)
    assert await is_lost(ledger, noted_later)


async def test_the_unpromised_keep_nobody_waiting_and_are_stored_if_they_arrive(
    ledger: LedgerRepository,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(turns, "RECONCILED_AT_ONCE", 2)
    monkeypatch.setattr(turns, "UNPROMISED_AT_ONCE", 2)
    unpromised = [UUID(int=number) for number in range(1, 6)]
    late = UUID(int=2**128 - 1)
    await answered_503(ledger, *((key, ONE) for key in unpromised))
    await read(ledger, *((key, ONE) for key in (*unpromised, late)))
    await RegistrationRepository(database).insert_registrations(
        [a_registration(registration_id=key) for key in (late, unpromised[-1])]
    )

    assert (await reconciled(ledger)).totals.stored == 1  # though five stand before it
    for _ in range(2):
        reconciliation = await reconciled(ledger)
    assert (reconciliation.totals.stored, reconciliation.totals.unpromised) == (2, 4)


async def test_old_notes_are_forgotten_some_at_a_time(
    ledger: LedgerRepository, sql: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_entries, "DELETED_AT_ONCE", 2)
    await answered_503(ledger, *((uuid4(), ONE) for _ in range(5)))
    await sql.execute("UPDATE unpromised_publications SET noted_at = now() - interval '15 days'")

    await answered_503(ledger, (uuid4(), ONE))

    assert await sql.fetchval("SELECT count(*) FROM unpromised_publications") == 5 - 2 + 1


async def test_a_note_waits_for_who_reads_at_the_same_time(
    ledger: LedgerRepository, sql: asyncpg.Connection
) -> None:
    """Else each of the two could miss what the other one is about to write."""
    key = uuid4()
    await read(ledger, (uuid4(), OTHER))
    async with sql.transaction():
        await sql.execute(repository.LOCK_POSITION, STREAM)
        entries = [key], [datetime.now(UTC)], [1], [bytes.fromhex(ONE)]
        await sql.fetch(ledger_entries.INSERT_ENTRIES, *entries, STREAM, 2, key, 0, 0)
        note = asyncio.create_task(answered_503(ledger, (key, ONE)))

        async def is_waiting() -> bool:
            waiting = await sql.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")
            return bool(waiting) or note.done()

        await eventually(is_waiting)
    await note

    assert not await is_lost(ledger, key)
