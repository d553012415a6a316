"""Registrations: stored exactly once, and followed on their way."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from common.canary import is_canary
from common.contracts.registrations import (
    Journey,
    JourneyStatus,
    RegistrationToStore,
    StoredRegistration,
)
from common.failpoints import failpoint
from database_service.pool import Connection, Database


class RegistrationRepository:
    """The table ``registrations``, and the users that come from it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_registrations(
        self, registrations: Sequence[RegistrationToStore]
    ) -> list[StoredRegistration]:
        """Store registrations and their users at once; answers in their order.

        An id that is known, from before or from the same batch, gets the answer that it got.
        Of registrations with the same address the first becomes the user; the others are
        duplicates of it. All is stored or nothing; after a crash or a lost answer the caller
        asks again and gets the answer it missed. (A canary is stored by a statement of its
        own, so of a batch with one the others may be stored although it failed.)

        Raises:
            DatabaseUnavailableError: Not stored, or stored and not told: ask again.
            InvalidError: A value can not be stored; nothing was.
        """
        distinct: dict[UUID, RegistrationToStore] = {}
        for item in registrations:
            distinct.setdefault(item.registration_id, item)
        is_repeated = False

        async def work(connection: Connection) -> dict[UUID, StoredRegistration]:
            # Hardly ever is an id known. The first try does not ask; if one is, it loses the
            # race against whoever stored it, and the second try looks.
            nonlocal is_repeated
            answers = await _select_answers(connection, list(distinct)) if is_repeated else {}
            is_repeated = True
            unknown = [item for key, item in distinct.items() if key not in answers]
            failpoint("w12")
            people = [item for item in unknown if not is_canary(item.registration_id)]
            if people:
                answers |= await _insert_people(connection, people)
            if len(people) < len(unknown):
                canaries = [item for item in unknown if is_canary(item.registration_id)]
                answers |= await _insert_unknown(connection, canaries, STORE_CANARIES)
            return answers

        answers = await self._database.by_statements(work)
        failpoint("w13")
        return [answers[item.registration_id] for item in registrations]

    # Of several mails for one registration the one counts that came furthest.
    SELECT_JOURNEY = """
           SELECT registrations.registration_id, received_at, stored_at,
                  mail.status, mail.handed_over_at
             FROM registrations
        LEFT JOIN LATERAL (
                     SELECT status, coalesce(sent_at, updated_at) AS handed_over_at
                       FROM notification_logs
                      WHERE notification_logs.registration_id = registrations.registration_id
                   ORDER BY status IN ('sent', 'suppressed', 'bounced') DESC, id
                      LIMIT 1
                  ) AS mail ON true
            WHERE registrations.registration_id = $1
    """

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come; an unknown id is pending, nobody can tell more.

        A suppressed mail shows as handed over: who is registered already is nobody's business.
        So does one that came back: whoever typed an address is not told whether it exists.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self.SELECT_JOURNEY, registration_id)
        if row is None:
            return Journey(registration_id=registration_id, status=JourneyStatus.PENDING)
        status = _JOURNEY.get(row["status"], JourneyStatus.STORED)
        return Journey(
            registration_id=registration_id,
            status=status,
            received_at=row["received_at"],
            stored_at=row["stored_at"],
            mailed_at=row["handed_over_at"] if status is JourneyStatus.MAILED else None,
        )


_JOURNEY = {
    "sent": JourneyStatus.MAILED,
    "suppressed": JourneyStatus.MAILED,
    "bounced": JourneyStatus.MAILED,
    "failed": JourneyStatus.MAIL_FAILED,
}

SELECT_ANSWERS = """
    SELECT registration_id, outcome, user_id
      FROM registrations
     WHERE registration_id = ANY ($1::uuid[])
"""


async def _select_answers(
    connection: Connection, registration_ids: Sequence[UUID]
) -> dict[UUID, StoredRegistration]:
    return _answers(await connection.fetch(SELECT_ANSWERS, registration_ids))


# Nothing, if the address is known: then it takes the function, which looks again.
STORE_SOMEBODY_NEW = """
    WITH made AS (
             INSERT INTO users (name, surname, email)
             VALUES ($2, $3, $4)
        ON CONFLICT (lower(email)) DO NOTHING
          RETURNING id
         )
    INSERT INTO registrations (registration_id, outcome, user_id, received_at)
    SELECT $1, 'stored', id, $5
      FROM made
 RETURNING registration_id, outcome, user_id
"""

STORE_REGISTRATIONS = """
    SELECT registration_id, outcome, user_id
      FROM store_registrations($1, $2, $3, $4, $5)
"""

# See sql/0008_store_canaries.sql: through store_registrations, but their users stay unseen.
STORE_CANARIES = """
    SELECT registration_id, outcome, user_id
      FROM store_canaries($1, $2, $3, $4, $5)
"""


async def _insert_people(
    connection: Connection, people: Sequence[RegistrationToStore]
) -> dict[UUID, StoredRegistration]:
    """Store registrations as ``_insert_unknown`` does.

    A single one of somebody new, as nearly all are on a quiet system, in three quarters of the
    time.

    Raises:
        asyncpg.SerializationError: As there.
    """
    if len(people) == 1:
        (one,) = people
        try:
            rows = await connection.fetch(
                STORE_SOMEBODY_NEW,
                *(one.registration_id, one.name, one.surname, one.email, one.received_at),
            )
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "registrations_pkey":
                raise
            raise asyncpg.SerializationError("the id is known") from error
        if rows:
            return _answers(rows)
    return await _insert_unknown(connection, people, STORE_REGISTRATIONS)


async def _insert_unknown(
    connection: Connection, items: Sequence[RegistrationToStore], statement: str
) -> dict[UUID, StoredRegistration]:
    """Store registrations with distinct ids that seem to be unknown.

    Raises:
        asyncpg.SerializationError: One of them is known, or a user was removed meanwhile;
            nothing was stored, see ``sql/0004_store_registrations.sql``.
    """
    rows = await connection.fetch(
        statement,
        [item.registration_id for item in items],
        [item.name for item in items],
        [item.surname for item in items],
        [item.email for item in items],
        [item.received_at for item in items],
    )
    return _answers(rows)


def _answers(rows: list[asyncpg.Record]) -> dict[UUID, StoredRegistration]:
    # asyncpg's own UUID class is a subclass of UUID: equal, and hashed alike.
    return {row["registration_id"]: StoredRegistration.model_validate(dict(row)) for row in rows}
