"""Registrations: stored exactly once, and followed on their way."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from common.contracts.registrations import (
    Journey,
    JourneyStatus,
    RegistrationToStore,
    StoredRegistration,
)
from database_service.pool import Connection, Database
from database_service.translation import LostRaceError


class RegistrationRepository:
    """The table ``registrations``, and the users that come from it."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_registrations(
        self, registrations: Sequence[RegistrationToStore]
    ) -> list[StoredRegistration]:
        """Store registrations and their users in one transaction; answers in their order.

        An id that is known, from before or from the same batch, gets the answer that it got.
        Of registrations with the same address the first becomes the user; the others are
        duplicates of it. All is stored or nothing; after a crash or a lost answer the caller
        asks again and gets the answer it missed.

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
            return answers | (await _insert_unknown(connection, unknown) if unknown else {})

        answers = await self._database.in_transaction(work)
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
                   ORDER BY status IN ('sent', 'suppressed') DESC, id
                      LIMIT 1
                  ) AS mail ON true
            WHERE registrations.registration_id = $1
    """

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come; an unknown id is pending, nobody can tell more.

        A suppressed mail shows as handed over: who is registered already is nobody's business.
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


# Two batches never wait for each other in a circle: each takes its addresses in order, then
# its ids in order. Waiting for another batch's address ends with that batch.
INSERT_USERS = """
       INSERT INTO users (name, surname, email)
       SELECT DISTINCT ON (lower(email)) name, surname, email
         FROM unnest($1::text[], $2::text[], $3::text[])
              WITH ORDINALITY AS new (name, surname, email, position)
     ORDER BY lower(email), position
  ON CONFLICT (lower(email)) DO NOTHING
    RETURNING id
"""

# A statement of its own: only a new snapshot sees the users that others committed meanwhile.
INSERT_REGISTRATIONS = """
       INSERT INTO registrations (registration_id, outcome, user_id, received_at)
       SELECT new.registration_id,
              CASE WHEN new.is_first AND users.id = ANY ($4::bigint[])
                   THEN 'stored' ELSE 'duplicate' END,
              users.id,
              new.received_at
         FROM (SELECT registration_id, email, received_at,
                      row_number() OVER (PARTITION BY lower(email) ORDER BY position) = 1
                          AS is_first
                 FROM unnest($1::uuid[], $2::text[], $3::timestamptz[])
                      WITH ORDINALITY AS item (registration_id, email, received_at, position)
              ) AS new
         JOIN users ON lower(users.email) = lower(new.email)
     ORDER BY new.registration_id
  ON CONFLICT (registration_id) DO NOTHING
    RETURNING registration_id, outcome, user_id
"""


async def _insert_unknown(
    connection: Connection, items: Sequence[RegistrationToStore]
) -> dict[UUID, StoredRegistration]:
    """Store registrations with distinct ids that seem to be unknown.

    Raises:
        LostRaceError: One of the ids is stored already, or one of the users was removed
            meanwhile. A user made here may be one too many, so nothing may be committed.
    """
    emails = [item.email for item in items]
    created = await connection.fetch(
        INSERT_USERS, [item.name for item in items], [item.surname for item in items], emails
    )
    rows = await connection.fetch(
        INSERT_REGISTRATIONS,
        [item.registration_id for item in items],
        emails,
        [item.received_at for item in items],
        [row["id"] for row in created],
    )
    if len(rows) < len(items):
        raise LostRaceError
    return _answers(rows)


def _answers(rows: list[asyncpg.Record]) -> dict[UUID, StoredRegistration]:
    # asyncpg's own UUID class is a subclass of UUID: equal, and hashed alike.
    return {row["registration_id"]: StoredRegistration.model_validate(dict(row)) for row in rows}
