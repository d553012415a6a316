"""Registrations: stored exactly once, and followed on their way."""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from uuid import UUID

import asyncpg

from common.contracts.canary import is_canary
from common.contracts.registrations import (
    Journey,
    JourneyStatus,
    RegistrationToStore,
    StoredRegistration,
)
from common.errors import IdReusedError
from common.failpoints import failpoint
from database_service.connection import Connection
from database_service.pool import Database


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
            DatabaseUnavailableError: Not stored, or stored and not answered: retry.
            IdReusedError: One of the ids stands for other content; nothing was stored.
            InvalidError: A value cannot be stored; nothing was.
        """
        distinct: dict[UUID, RegistrationToStore] = {}
        for item in registrations:
            distinct.setdefault(item.registration_id, item)
        people = [item for item in distinct.values() if not is_canary(item.registration_id)]
        digests = {item.registration_id: content_digest(item) for item in people}
        if len(distinct) < len(registrations):
            _check_reuse(registrations, digests)
        canaries = [item for item in distinct.values() if is_canary(item.registration_id)]
        is_repeated = False

        async def work(connection: Connection) -> dict[UUID, StoredRegistration]:
            # Hardly ever is a canary known. The first try does not ask; if one is, it fails with
            # a serialization error, and the second try asks.
            nonlocal is_repeated
            answers: dict[UUID, StoredRegistration] = {}
            if canaries and is_repeated:
                ids = [item.registration_id for item in canaries]
                answers = _answers(await connection.fetch(SELECT_ANSWERS, ids))
            is_repeated = True
            failpoint("w12")
            if people:
                answers |= await _insert_people(connection, people, digests)
            if unknown := [item for item in canaries if item.registration_id not in answers]:
                answers |= _answers(await connection.fetch(STORE_CANARIES, *_columns(unknown)))
            return answers

        answers = await self._database.with_retry(work)
        failpoint("w13")
        return [answers[item.registration_id] for item in registrations]

    # Of several mails for one registration the one counts that came furthest.
    SELECT_JOURNEYS = """
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
            WHERE registrations.registration_id = ANY ($1::uuid[])
    """

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come; see ``select_journeys``."""
        (journey,) = await self.select_journeys([registration_id])
        return journey

    async def select_journeys(self, registration_ids: Sequence[UUID]) -> list[Journey]:
        """How far each registration has come; one that is not stored is pending.

        A suppressed mail shows as handed over, so that it is not disclosed who is registered.
        So does one that came back, so that it is not disclosed which addresses exist.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(self.SELECT_JOURNEYS, registration_ids)
        known = {row["registration_id"]: _journey(row) for row in rows}
        return [
            known.get(each) or Journey(registration_id=each, status=JourneyStatus.PENDING)
            for each in registration_ids
        ]


def _journey(row: asyncpg.Record) -> Journey:
    status = _JOURNEY.get(row["status"], JourneyStatus.STORED)
    return Journey(
        registration_id=row["registration_id"],
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


def content_digest(item: RegistrationToStore) -> bytes:
    """What an id stands for: 16 bytes that follow from the id and who is registered.

    Only alphanumeric characters count, whatever their case: a publisher that writes a space or the
    address in another way, or a release that cleans names in another way, means the same person.
    The time is left out: it may differ when the same message is published again.
    """
    content = "\0".join((_alphanumeric(item.name), _alphanumeric(item.surname), item.email.lower()))
    return sha256(item.registration_id.bytes + content.encode()).digest()[:16]


def _alphanumeric(text: str) -> str:
    return "".join(filter(str.isalnum, text)).casefold()


def _check_reuse(items: Iterable[RegistrationToStore], known: Mapping[UUID, bytes]) -> None:
    """Raise IdReusedError where an id comes with other content than the one that is known."""
    for item in items:
        digest = known.get(item.registration_id)
        if digest is not None and digest != content_digest(item):
            raise IdReusedError(
                f"Registration {item.registration_id} was stored with another name or address. "
                "Nothing was stored; send it under an id of its own."
            )


SELECT_ANSWERS = """
    SELECT registration_id, outcome, user_id
      FROM registrations
     WHERE registration_id = ANY ($1::uuid[])
"""


# What is known already; or a new user. Nothing, if the address is known under another id: then
# the function stores it. An insertion that meets a conflict uses up a user id, so it looks first;
# not with EXISTS, which may be planned as reading all of users.
STORE_NEW_USER = """
    WITH known AS (
             SELECT registration_id, outcome, user_id, content_digest,
                    (SELECT true FROM users WHERE users.id = registrations.user_id) IS NOT NULL
                        AS user_exists
               FROM registrations
              WHERE registration_id = $1
         ),
         made AS (
             INSERT INTO users (name, surname, email)
             SELECT $2, $3, $4
              WHERE NOT EXISTS (SELECT FROM known)
                AND (SELECT true FROM users WHERE lower(email) = lower($4)) IS NULL
        ON CONFLICT (lower(email)) DO NOTHING
          RETURNING id
         ),
         stored AS (
             INSERT INTO registrations
                         (registration_id, outcome, user_id, received_at, content_digest)
             SELECT $1, 'stored', id, $5, $6
               FROM made
          RETURNING registration_id, outcome, user_id, content_digest
         )
    SELECT registration_id, outcome, user_id, content_digest, user_exists
      FROM known
 UNION ALL
    SELECT registration_id, outcome, user_id, content_digest, true
      FROM stored
"""

# See sql/0009_content_digests.sql.
STORE_REGISTRATIONS = """
    SELECT registration_id, outcome, user_id, content_digest, user_exists
      FROM store_registrations($1, $2, $3, $4, $5, $6)
"""

# See sql/0008_store_canaries.sql: through store_registrations, but their users stay unseen.
STORE_CANARIES = """
    SELECT registration_id, outcome, user_id
      FROM store_canaries($1, $2, $3, $4, $5)
"""


async def _insert_people(
    connection: Connection, people: Sequence[RegistrationToStore], digests: Mapping[UUID, bytes]
) -> dict[UUID, StoredRegistration]:
    """Store registrations with distinct ids; those that are known get the answer that they got.

    A single one with a new address, as nearly all are on a quiet system, takes three quarters of
    the time.

    Raises:
        asyncpg.SerializationError: An id was stored, or a user removed, just meanwhile;
            nothing was stored, see ``sql/0009_content_digests.sql``.
        IdReusedError: An id stands for other content; nothing was stored.
    """
    rows: list[asyncpg.Record] = []
    if len(people) == 1:
        (one,) = people
        try:
            rows = await connection.fetch(
                STORE_NEW_USER,
                *(one.registration_id, one.name, one.surname, one.email, one.received_at),
                digests[one.registration_id],
            )
        except asyncpg.UniqueViolationError as error:
            if error.constraint_name != "registrations_pkey":
                raise
            raise asyncpg.SerializationError("the id is known") from error
    if not rows:
        rows = await connection.fetch(
            STORE_REGISTRATIONS, *_columns(people), [digests[one.registration_id] for one in people]
        )
    stored = {row["registration_id"]: row["content_digest"] for row in rows}
    if any(digest not in (digests[key], None) for key, digest in stored.items()):
        _check_reuse(people, stored)
    return _answers(rows)


def _columns(items: Sequence[RegistrationToStore]) -> Sequence[Sequence[object]]:
    return (
        [item.registration_id for item in items],
        [item.name for item in items],
        [item.surname for item in items],
        [item.email for item in items],
        [item.received_at for item in items],
    )


def _answers(rows: list[asyncpg.Record]) -> dict[UUID, StoredRegistration]:
    # asyncpg's own UUID class is a subclass of UUID: equal, and hashed alike.
    return {row["registration_id"]: StoredRegistration.model_validate(dict(row)) for row in rows}
