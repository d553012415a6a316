"""The ledger: what was read of the stream of registrations, compared by id with what is stored."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import asyncpg

from common.contracts.ledger import (
    LedgerBatch,
    LedgerPosition,
    LedgerTotals,
    MailCounts,
    MissingRegistration,
    Settlement,
    SettlementRequest,
)
from database_service.pool import Connection, Database

SETTLED_AT_ONCE = 5000
"""Entries looked at in one turn; what is left is looked at in the next ones."""

NO_ID = UUID(int=0)
"""Before every other id."""


class LedgerRepository:
    """The tables ``ledger_positions`` and ``ledger_entries``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    SELECT_POSITION = """
        SELECT next_offset, last_id, read_at
          FROM ledger_positions
         WHERE stream = $1
    """

    async def select_position(self, stream: str) -> LedgerPosition:
        """How far a stream was read; from its beginning, if nobody has read it yet."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self.SELECT_POSITION, stream)
        return _position(row) if row else LedgerPosition(next_offset=0)

    async def insert_entries(self, batch: LedgerBatch) -> LedgerPosition:
        """Write a batch, unless another reader was first; whole or not at all.

        After a crash or a lost answer the caller asks where the stream stands and reads on
        from there.
        """

        async def work(connection: Connection) -> LedgerPosition:
            before = await _lock(connection, batch.stream)
            if before["next_offset"] != batch.from_offset:
                return _position(before, advanced=False)
            added = await _insert(connection, batch)
            return _position(await _advance(connection, batch, added))

        return await self._database.in_transaction(work)

    async def settle(self, request: SettlementRequest) -> Settlement:
        """Look again at entries that are not settled; then the totals, and who is missing."""

        async def work(connection: Connection) -> Settlement:
            position = await _lock(connection, request.stream)
            await _settle(connection, request.stream, position["settled_to"] or NO_ID)
            return await _settlement(connection, request)

        return await self._database.in_transaction(work)


def _position(row: asyncpg.Record, *, advanced: bool = True) -> LedgerPosition:
    return LedgerPosition(
        next_offset=row["next_offset"],
        last_id=row["last_id"],
        read_at=row["read_at"],
        advanced=advanced,
    )


INSERT_POSITION = """
    INSERT INTO ledger_positions (stream) VALUES ($1) ON CONFLICT (stream) DO NOTHING
"""

SELECT_POSITION_FOR_UPDATE = """
    SELECT next_offset, last_id, read_at, settled_to
      FROM ledger_positions
     WHERE stream = $1
       FOR UPDATE
"""


async def _lock(connection: Connection, stream: str) -> asyncpg.Record:
    """The position; until the transaction ends nobody else writes to the ledger."""
    row = await connection.fetchrow(SELECT_POSITION_FOR_UPDATE, stream)
    if row is None:
        await connection.execute(INSERT_POSITION, stream)
        row = await connection.fetchrow(SELECT_POSITION_FOR_UPDATE, stream)
    assert row is not None  # noqa: S101 - inserted above, and never deleted
    return row


# An id that is known at the same offset is the same message read again, after the stream was
# begun anew; at another one it was published again. A missing one is then looked for there,
# and one that was discarded has another chance.
# Of several mails for one registration the one counts that came furthest.
INSERT_ENTRIES = """
    WITH looked AS (
             SELECT item.registration_id,
                    item.accepted_at,
                    item.stream_offset,
                    known.stream_offset AS known_offset,
                    registrations.outcome,
                    mail.status AS mail,
                    coalesce(mail.status IN ('sent', 'suppressed'), false) AS settled
               FROM (SELECT DISTINCT ON (registration_id)
                            registration_id, accepted_at, stream_offset
                       FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[])
                            AS read (registration_id, accepted_at, stream_offset)
                   ORDER BY registration_id, stream_offset DESC
                    ) AS item
          LEFT JOIN ledger_entries AS known
                 ON known.registration_id = item.registration_id
          LEFT JOIN registrations
                 ON registrations.registration_id = item.registration_id
          LEFT JOIN LATERAL (
                       SELECT status
                         FROM notification_logs
                        WHERE notification_logs.registration_id = registrations.registration_id
                     ORDER BY status IN ('sent', 'suppressed') DESC, id
                        LIMIT 1
                    ) AS mail ON true
         ),
         written AS (
             INSERT INTO ledger_entries
                    (registration_id, accepted_at, stream_offset, outcome, mail, settled)
             SELECT registration_id, accepted_at, stream_offset, outcome, mail, settled
               FROM looked
        ON CONFLICT (registration_id) DO UPDATE
                SET stream_offset = excluded.stream_offset,
                    accepted_at = excluded.accepted_at,
                    rejected = NULL
              WHERE ledger_entries.outcome IS NULL
                AND ledger_entries.stream_offset <> excluded.stream_offset
         )
    SELECT count(*) AS distinct_ids,
           count(*) FILTER (WHERE known_offset IS NULL) AS accepted,
           count(*) FILTER (WHERE known_offset <> stream_offset) AS repeated,
           count(*) FILTER (WHERE known_offset IS NULL AND outcome = 'stored') AS stored,
           count(*) FILTER (WHERE known_offset IS NULL AND outcome = 'duplicate') AS duplicates,
           count(*) FILTER (WHERE known_offset IS NULL AND mail = 'sent') AS mailed,
           count(*) FILTER (WHERE known_offset IS NULL AND mail = 'suppressed') AS suppressed,
           max(accepted_at) FILTER (WHERE outcome IS NOT NULL) AS stored_up_to
      FROM looked
"""


async def _insert(connection: Connection, batch: LedgerBatch) -> asyncpg.Record:
    row = await connection.fetchrow(
        INSERT_ENTRIES,
        [entry.registration_id for entry in batch.entries],
        [entry.accepted_at for entry in batch.entries],
        [entry.stream_offset for entry in batch.entries],
    )
    assert row is not None  # noqa: S101 - an aggregate has one row
    return row


UPDATE_POSITION = """
       UPDATE ledger_positions
          SET next_offset = $2,
              last_id = $3,
              read_at = now(),
              unread = unread + $4,
              restarts = restarts + $5,
              accepted = accepted + $6,
              repeated = repeated + $7,
              stored = stored + $8,
              duplicates = duplicates + $9,
              mailed = mailed + $10,
              suppressed = suppressed + $11,
              stored_up_to = greatest(stored_up_to, $12)
        WHERE stream = $1
    RETURNING next_offset, last_id, read_at
"""


async def _advance(
    connection: Connection, batch: LedgerBatch, added: asyncpg.Record
) -> asyncpg.Record:
    row = await connection.fetchrow(
        UPDATE_POSITION,
        batch.stream,
        batch.next_offset,
        batch.last_id,
        batch.unread,
        int(batch.restarted),
        added["accepted"],
        added["repeated"] + len(batch.entries) - added["distinct_ids"],
        added["stored"],
        added["duplicates"],
        added["mailed"],
        added["suppressed"],
        added["stored_up_to"],
    )
    assert row is not None  # noqa: S101 - locked before
    return row


# A message without a time counts as accepted when it is read, which may be some seconds after
# a person has discarded it.
# In turns, by id: some are never settled (a refused address, a discarded dead letter), and must
# not keep the others from being looked at.
SETTLE_ENTRIES = """
    WITH turn AS (
             SELECT registration_id, accepted_at, outcome
               FROM ledger_entries
              WHERE NOT settled
                AND registration_id > $1
           ORDER BY registration_id
              LIMIT $2
         ),
         looked AS (
             SELECT turn.registration_id,
                    turn.accepted_at,
                    turn.outcome IS NULL AS was_missing,
                    registrations.outcome,
                    CASE WHEN registrations.outcome IS NULL THEN discard.error_code END AS rejected,
                    mail.status AS mail,
                    coalesce(mail.status IN ('sent', 'suppressed'), false) AS settled
               FROM turn
          LEFT JOIN registrations
                 ON registrations.registration_id = turn.registration_id
          LEFT JOIN dead_letter_discards AS discard
                 ON discard.message_id = turn.registration_id
                AND discard.route = 'user.registration'
                AND discard.discarded_at >= turn.accepted_at - interval '1 minute'
          LEFT JOIN LATERAL (
                       SELECT status
                         FROM notification_logs
                        WHERE notification_logs.registration_id = turn.registration_id
                     ORDER BY status IN ('sent', 'suppressed') DESC, id
                        LIMIT 1
                    ) AS mail ON true
              WHERE registrations.outcome IS NOT NULL
                 OR discard.error_code IS NOT NULL
         ),
         changed AS (
             UPDATE ledger_entries
                SET outcome = looked.outcome,
                    rejected = looked.rejected,
                    mail = looked.mail,
                    settled = looked.settled
               FROM looked
              WHERE ledger_entries.registration_id = looked.registration_id
                AND (ledger_entries.outcome IS DISTINCT FROM looked.outcome
                     OR ledger_entries.rejected IS DISTINCT FROM looked.rejected
                     OR ledger_entries.mail IS DISTINCT FROM looked.mail)
          RETURNING looked.was_missing, looked.accepted_at, looked.outcome, looked.mail
         ),
         summed AS (
             SELECT count(*) FILTER (WHERE was_missing AND outcome = 'stored') AS stored,
                    count(*) FILTER (WHERE was_missing AND outcome = 'duplicate') AS duplicates,
                    count(*) FILTER (WHERE mail = 'sent') AS mailed,
                    count(*) FILTER (WHERE mail = 'suppressed') AS suppressed,
                    max(accepted_at) FILTER (WHERE outcome IS NOT NULL) AS stored_up_to
               FROM changed
         ),
         reached AS (
             SELECT count(*) AS looked_at,
                    (array_agg(registration_id ORDER BY registration_id DESC))[1] AS last_id
               FROM turn
         )
       UPDATE ledger_positions
          SET stored = ledger_positions.stored + summed.stored,
              duplicates = ledger_positions.duplicates + summed.duplicates,
              mailed = ledger_positions.mailed + summed.mailed,
              suppressed = ledger_positions.suppressed + summed.suppressed,
              stored_up_to = greatest(ledger_positions.stored_up_to, summed.stored_up_to),
              settled_to = CASE WHEN reached.looked_at = $2 THEN reached.last_id END
         FROM summed, reached
        WHERE stream = $3
    RETURNING reached.looked_at
"""


async def _settle(connection: Connection, stream: str, after: UUID) -> None:
    """One turn; if it ends at the last entry with room left, on from the first."""
    looked_at = await connection.fetchval(SETTLE_ENTRIES, after, SETTLED_AT_ONCE, stream)
    if looked_at < SETTLED_AT_ONCE and after != NO_ID:
        rest = SETTLED_AT_ONCE - looked_at
        await connection.execute(SETTLE_ENTRIES, NO_ID, rest, stream)


SELECT_TOTALS = """
    SELECT accepted, repeated, stored, duplicates, mailed, suppressed, unread, restarts,
           stored_up_to
      FROM ledger_positions
     WHERE stream = $1
"""

COUNT_MAILS = """
      SELECT coalesce(mail, 'none') AS mail, count(*) AS number
        FROM ledger_entries
       WHERE NOT settled
         AND outcome IS NOT NULL
    GROUP BY mail
"""

COUNT_REJECTED = """
      SELECT rejected, count(*) AS number
        FROM ledger_entries
       WHERE outcome IS NULL
         AND rejected IS NOT NULL
    GROUP BY rejected
"""

SELECT_MISSING = """
      SELECT registration_id, accepted_at, stream_offset
        FROM ledger_entries
       WHERE outcome IS NULL
         AND rejected IS NULL
         AND accepted_at <= now() - $1::interval
    ORDER BY accepted_at, registration_id
       LIMIT $2
"""

COUNT_MISSING = """
    SELECT count(*)
      FROM ledger_entries
     WHERE outcome IS NULL
       AND rejected IS NULL
       AND accepted_at <= now() - $1::interval
"""

NO_AGE = timedelta(days=-1)
"""Whoever is missing, however young; clocks may differ."""


async def _settlement(connection: Connection, request: SettlementRequest) -> Settlement:
    totals = await connection.fetchrow(SELECT_TOTALS, request.stream)
    assert totals is not None  # noqa: S101 - locked before
    mails = {row["mail"]: row["number"] for row in await connection.fetch(COUNT_MAILS)}
    rejected = {row["rejected"]: row["number"] for row in await connection.fetch(COUNT_REJECTED)}
    age = timedelta(seconds=request.missing_for_seconds)
    missing = await connection.fetch(SELECT_MISSING, age, request.limit)
    return Settlement(
        totals=_totals(totals, mails, missing=await connection.fetchval(COUNT_MISSING, NO_AGE)),
        stored_up_to=totals["stored_up_to"],
        rejected=rejected,
        missing_for_long=await connection.fetchval(COUNT_MISSING, age),
        missing=[MissingRegistration.model_validate(dict(row)) for row in missing],
    )


def _totals(row: asyncpg.Record, mails: dict[str, int], *, missing: int) -> LedgerTotals:
    found = {status: mails.get(status, 0) for status in ("failed", "bounced", "unsure")}
    waiting: Sequence[str] = [status for status in mails if status not in found]
    return LedgerTotals(
        accepted=row["accepted"],
        repeated=row["repeated"],
        stored=row["stored"],
        duplicates=row["duplicates"],
        missing=missing,
        mails=MailCounts(
            mailed=row["mailed"],
            suppressed=row["suppressed"],
            waiting=sum(mails[status] for status in waiting),
            **found,
        ),
        unread=row["unread"],
        restarts=row["restarts"],
    )
