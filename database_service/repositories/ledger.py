"""The ledger: what was read of the stream of registrations, compared by id with what is stored."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import asyncpg

from common.contracts.ledger import (
    MAX_INCIDENTS,
    MAX_NAMED,
    AcknowledgeIncidents,
    Incident,
    LedgerBatch,
    LedgerPosition,
    LedgerTotals,
    MailCounts,
    MissingRegistration,
    Reconciliation,
    ReconciliationRequest,
    UnpromisedPublications,
)
from database_service.connection import Connection
from database_service.pool import Database

RECONCILED_AT_ONCE = 5000
"""Entries looked at in one turn; what is left is looked at in the next ones."""

UNPROMISED_AT_ONCE = 500
"""Unpromised entries looked at in one turn, beside the others: they may be stored yet."""

DELETED_AT_ONCE = 5000
"""Old publications that are forgotten in one turn."""

NO_ID = UUID(int=0)
"""Before every other id."""


class LedgerRepository:
    """The tables ``ledger_...`` and ``unpromised_publications``."""

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
        return _position(row) if row else LedgerPosition(next_offset=0, takes_spans=True)

    async def insert_entries(self, batch: LedgerBatch) -> LedgerPosition:
        """Write a batch, unless another reader was first; whole or not at all.

        After a crash or a lost answer the caller asks where the stream stands and reads on
        from there.
        """

        async def work(connection: Connection) -> LedgerPosition:
            before = await _lock(connection, batch.stream)
            if before["next_offset"] != batch.from_offset:
                return _position(before, advanced=False)
            await _note_incidents(connection, batch)
            added = await _insert(connection, batch)
            return _position(await _advance(connection, batch, added))

        return await self._database.in_transaction(work)

    async def reconcile_entries(self, request: ReconciliationRequest) -> Reconciliation:
        """Compare a turn of entries with what is stored; return the totals and what is missing."""

        async def work(connection: Connection) -> Reconciliation:
            position = await _lock(connection, request.stream)
            await _reconcile_entries(connection, request.stream, position)
            if request.verify:
                after = position["verified_to"] or NO_ID
                await _verify(connection, request.stream, after, most=request.verify)
            return await _reconciliation(connection, request)

        return await self._database.in_transaction(work)

    async def insert_unpromised(self, request: UnpromisedPublications) -> int:
        """Keep what was published and answered with 503; how many were not known yet.

        The entries that this is about may have been read, or be read later. The position is
        locked as by whoever reads: else each of two could miss what the other one writes.
        """
        ids = [publication.registration_id for publication in request.publications]
        spans = [bytes.fromhex(publication.span) for publication in request.publications]

        async def work(connection: Connection) -> int:
            await _lock(connection, request.stream)
            await connection.execute(DELETE_OLD_UNPROMISED, UNPROMISED_KEPT, DELETED_AT_ONCE)
            recorded: int = await connection.fetchval(INSERT_UNPROMISED, ids, spans)
            await connection.execute(UPDATE_UNPROMISED, ids)
            return recorded

        return await self._database.in_transaction(work)

    UPDATE_INCIDENTS = """
           UPDATE ledger_incidents
              SET acknowledged_at = now(),
                  acknowledged_by = $2,
                  reason = $3
            WHERE stream = $1
              AND acknowledged_at IS NULL
        RETURNING id AS incident_id, kind, noticed_at, last_read_at, accepted_before,
                  stored_by_then, not_provable, acknowledged_at, acknowledged_by, reason
    """

    async def acknowledge_incidents(self, request: AcknowledgeIncidents) -> list[Incident]:
        """Close every open incident of a stream, with the reason; those it closed, oldest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                self.UPDATE_INCIDENTS, request.stream, request.acknowledged_by, request.reason
            )
        closed = [Incident.model_validate(dict(row)) for row in rows]
        return sorted(closed, key=lambda incident: incident.incident_id)[:MAX_INCIDENTS]


def _position(row: asyncpg.Record, *, advanced: bool = True) -> LedgerPosition:
    return LedgerPosition(
        next_offset=row["next_offset"],
        last_id=row["last_id"],
        read_at=row["read_at"],
        advanced=advanced,
        takes_spans=True,
    )


INSERT_POSITION = """
    INSERT INTO ledger_positions (stream) VALUES ($1) ON CONFLICT (stream) DO NOTHING
"""

SELECT_POSITION_FOR_UPDATE = """
    SELECT next_offset, last_id, read_at, settled_to, unpromised_to, verified_to
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


UNPROMISED_KEPT = timedelta(days=14)
"""How long a publication that comes to no entry is remembered; the stream keeps a week."""

DELETE_OLD_UNPROMISED = """
    DELETE FROM unpromised_publications
          WHERE (registration_id, span) IN (
                    SELECT registration_id, span
                      FROM unpromised_publications
                     WHERE noted_at < now() - $1::interval
                  ORDER BY noted_at
                     LIMIT $2
                )
"""

INSERT_UNPROMISED = """
    WITH added AS (
             INSERT INTO unpromised_publications (registration_id, span)
             SELECT registration_id, span
               FROM unnest($1::uuid[], $2::bytea[]) AS item (registration_id, span)
        ON CONFLICT (registration_id, span) DO NOTHING
          RETURNING registration_id
         )
    SELECT count(*) FROM added
"""

ALL_ARE_UNPROMISED = """(
           cardinality(entry.spans) =
           (SELECT count(*)
              FROM unpromised_publications AS known
             WHERE known.registration_id = entry.registration_id
               AND known.span = ANY (entry.spans)))"""
"""Whether each of an entry's spans is that of a publication which was answered with 503."""

UPDATE_UNPROMISED = f"""
    UPDATE ledger_entries AS entry
       SET unpromised = true
     WHERE entry.registration_id = ANY ($1::uuid[])
       AND entry.outcome IS NULL
       AND entry.rejected IS NULL
       AND {ALL_ARE_UNPROMISED}
"""  # noqa: S608 - nothing of it comes from outside

IS_UNPROMISED = "(unpromised AND spans_offset IS NOT DISTINCT FROM stream_offset)"
"""Whether every message of the entry's id was answered with 503.

Not where a release that knows no spans has read another one since, and moved the offset alone.
"""

IS_MISSING = f"(outcome IS NULL AND rejected IS NULL AND NOT {IS_UNPROMISED})"
"""Whether an entry may be lost: as the index of these entries says it, word by word."""


# Of an incident that is open already no second one is made: a restored database is read in many
# batches, by several readers, each of which knows how far it was read before.
INSERT_INCIDENT = f"""
    INSERT INTO ledger_incidents
           (stream, kind, last_read_at, accepted_before, stored_by_then, not_provable, known_up_to)
    SELECT position.stream,
           $2,
           position.read_at,
           position.accepted,
           position.stored + position.duplicates,
           coalesce($3::bigint, missing.number),
           $4
      FROM ledger_positions AS position,
           LATERAL (SELECT count(*) AS number
                      FROM ledger_entries
                     WHERE {IS_MISSING}) AS missing
     WHERE position.stream = $1
       AND NOT EXISTS (SELECT
                         FROM ledger_incidents AS known
                        WHERE known.stream = $1
                          AND known.kind = $2
                          AND known.known_up_to = $4)
"""  # noqa: S608 - nothing of it comes from outside


# In what was not read there may have been another message of each of them, answered with 202.
# By the two indexes of those that are not stored.
FORGET_SPANS = [
    f"""
    UPDATE ledger_entries
       SET spans = NULL,
           spans_offset = NULL,
           unpromised = false
     WHERE {which}
"""  # noqa: S608 - nothing of it comes from outside
    for which in (IS_MISSING, IS_UNPROMISED)
]


async def _note_incidents(connection: Connection, batch: LedgerBatch) -> None:
    """Keep what cannot be accounted for any more, with the ledger as it stands before."""
    stream = batch.stream
    if batch.restarted or batch.truncated:
        for statement in FORGET_SPANS:
            await connection.execute(statement)
    if batch.restarted:
        await connection.execute(INSERT_INCIDENT, stream, "replaced", None, None)
    if batch.truncated:
        await connection.execute(INSERT_INCIDENT, stream, "truncated", batch.truncated, None)
    if batch.known_up_to > batch.from_offset:
        await connection.execute(INSERT_INCIDENT, stream, "restored", 0, batch.known_up_to)


# An id that is known at the same offset is the same message read again, after the stream was
# begun anew; at another one it was published again. A missing one is then looked for there,
# and one that was discarded has another chance. That an id is stored tells how far the work queue
# has come only where it is new: what is published again may still wait behind everybody else.
# Of several mails for one registration the one counts that came furthest.
# An entry that is not stored keeps the span of each of its messages, and is unpromised only where
# as many were answered with 503. Not with one that has no span, then, nor with two that have the
# same: somebody has copied the message. Of whoever was stored or discarded before, and of more
# messages than anybody would look through, it keeps no spans, and gets none again.
INSERT_ENTRIES = f"""
    WITH item AS (
             SELECT registration_id,
                    max(stream_offset) AS stream_offset,
                    (array_agg(accepted_at ORDER BY stream_offset DESC))[1] AS accepted_at,
                    array_agg(span) AS spans
               FROM unnest($1::uuid[], $2::timestamptz[], $3::bigint[], $4::bytea[])
                    AS read (registration_id, accepted_at, stream_offset, span)
           GROUP BY registration_id
         ),
         looked AS (
             SELECT item.registration_id,
                    item.accepted_at,
                    item.stream_offset,
                    known.stream_offset AS known_offset,
                    registrations.outcome,
                    mail.status AS mail,
                    coalesce(mail.status IN ('sent', 'suppressed'), false) AS settled,
                    CASE WHEN coalesce(registrations.outcome, known.outcome, known.rejected)
                                  IS NOT NULL
                             THEN NULL
                         WHEN known.registration_id IS NULL
                             THEN item.spans
                         WHEN known.spans_offset IS DISTINCT FROM known.stream_offset
                             THEN NULL
                         WHEN known.stream_offset = item.stream_offset
                              AND known.spans @> item.spans
                             THEN known.spans
                         ELSE known.spans || item.spans
                    END AS spans
               FROM item
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
                    (registration_id, accepted_at, stream_offset, outcome, mail, settled,
                     spans, spans_offset, unpromised)
             SELECT registration_id, accepted_at, stream_offset, outcome, mail, settled,
                    spans,
                    CASE WHEN spans IS NOT NULL THEN stream_offset END,
                    CASE WHEN spans IS NULL THEN false ELSE {ALL_ARE_UNPROMISED} END
               FROM (SELECT registration_id, accepted_at, stream_offset, outcome, mail, settled,
                            CASE WHEN cardinality(spans) <= 64 THEN spans END AS spans
                       FROM looked
                    ) AS entry
        ON CONFLICT (registration_id) DO UPDATE
                SET stream_offset = excluded.stream_offset,
                    accepted_at = excluded.accepted_at,
                    read_at = now(),
                    rejected = NULL,
                    spans = excluded.spans,
                    spans_offset = excluded.spans_offset,
                    unpromised = excluded.unpromised
              WHERE ledger_entries.outcome IS NULL
                AND (ledger_entries.stream_offset <> excluded.stream_offset
                     OR ledger_entries.spans IS DISTINCT FROM excluded.spans)
         )
    SELECT count(*) AS distinct_ids,
           count(*) FILTER (WHERE known_offset IS NULL) AS accepted,
           count(*) FILTER (WHERE known_offset <> stream_offset) AS repeated,
           count(*) FILTER (WHERE known_offset IS NULL AND outcome = 'stored') AS stored,
           count(*) FILTER (WHERE known_offset IS NULL AND outcome = 'duplicate') AS duplicates,
           count(*) FILTER (WHERE known_offset IS NULL AND mail = 'sent') AS mailed,
           count(*) FILTER (WHERE known_offset IS NULL AND mail = 'suppressed') AS suppressed,
           CASE WHEN count(outcome) FILTER (WHERE known_offset IS NULL) > 0 THEN now() END
               AS stored_up_to
      FROM looked
"""  # noqa: S608 - nothing of it comes from outside


async def _insert(connection: Connection, batch: LedgerBatch) -> asyncpg.Record:
    row = await connection.fetchrow(
        INSERT_ENTRIES,
        [entry.registration_id for entry in batch.entries],
        [entry.accepted_at for entry in batch.entries],
        [entry.stream_offset for entry in batch.entries],
        [bytes.fromhex(entry.span) if entry.span else None for entry in batch.entries],
    )
    assert row is not None  # noqa: S101 - an aggregate has one row
    return row


UPDATE_POSITION = """
       UPDATE ledger_positions
          SET next_offset = $2,
              last_id = $3,
              read_at = now(),
              truncated = truncated + $4,
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
        batch.truncated,
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
_RECONCILE = """
    WITH turn AS (
             SELECT registration_id, accepted_at, read_at, outcome
               FROM ledger_entries
              WHERE {which}
                AND registration_id > $1
           ORDER BY registration_id
              LIMIT $2
         ),
         looked AS (
             SELECT turn.registration_id,
                    turn.read_at,
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
                    settled = looked.settled,
                    spans = NULL,
                    spans_offset = NULL,
                    unpromised = false
               FROM looked
              WHERE ledger_entries.registration_id = looked.registration_id
                AND (ledger_entries.outcome IS DISTINCT FROM looked.outcome
                     OR ledger_entries.rejected IS DISTINCT FROM looked.rejected
                     OR ledger_entries.mail IS DISTINCT FROM looked.mail)
          RETURNING looked.was_missing, looked.read_at, looked.outcome, looked.mail
         ),
         summed AS (
             SELECT count(*) FILTER (WHERE was_missing AND outcome = 'stored') AS stored,
                    count(*) FILTER (WHERE was_missing AND outcome = 'duplicate') AS duplicates,
                    count(*) FILTER (WHERE mail = 'sent') AS mailed,
                    count(*) FILTER (WHERE mail = 'suppressed') AS suppressed,
                    max(read_at) FILTER (WHERE outcome IS NOT NULL) AS stored_up_to
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
              {cursor} = CASE WHEN reached.looked_at = $2 THEN reached.last_id END
         FROM summed, reached
        WHERE stream = $3
    RETURNING reached.looked_at
"""

RECONCILE_ENTRIES = _RECONCILE.format(
    which=f"NOT settled AND NOT {IS_UNPROMISED}", cursor="settled_to"
)
RECONCILE_UNPROMISED = _RECONCILE.format(which=IS_UNPROMISED, cursor="unpromised_to")


async def _reconcile_entries(connection: Connection, stream: str, position: asyncpg.Record) -> None:
    """One turn of each kind; if it ends at the last entry with room left, on from the first."""
    for statement, cursor, most in (
        (RECONCILE_ENTRIES, "settled_to", RECONCILED_AT_ONCE),
        (RECONCILE_UNPROMISED, "unpromised_to", UNPROMISED_AT_ONCE),
    ):
        after = position[cursor] or NO_ID
        looked_at = await connection.fetchval(statement, after, most, stream)
        if looked_at < most and after != NO_ID:
            await connection.execute(statement, NO_ID, most - looked_at, stream)


# Kept for ever, so whoever misses a row of registrations misses it for good. Looked at in turns,
# by the primary keys of both tables. A row that comes back is no longer missed.
VERIFY_ENTRIES = """
    WITH turn AS (
             SELECT entry.registration_id,
                    entry.vanished_at IS NOT NULL AS was_gone,
                    (SELECT true
                       FROM registrations
                      WHERE registrations.registration_id = entry.registration_id) IS NULL
                        AS is_gone,
                    entry.outcome IS NOT NULL AS is_stored
               FROM ledger_entries AS entry
              WHERE registration_id > $1
           ORDER BY registration_id
              LIMIT $2
         ),
         changed AS (
             UPDATE ledger_entries
                SET vanished_at = CASE WHEN turn.is_gone THEN now() END
               FROM turn
              WHERE ledger_entries.registration_id = turn.registration_id
                AND turn.is_stored
                AND turn.is_gone <> turn.was_gone
          RETURNING turn.is_gone
         ),
         reached AS (
             SELECT count(*) AS looked_at,
                    (array_agg(registration_id ORDER BY registration_id DESC))[1] AS last_id
               FROM turn
         ),
         moved AS (
             UPDATE ledger_positions
                SET verified_to = CASE WHEN reached.looked_at = $2 THEN reached.last_id END
               FROM reached
              WHERE stream = $3
         )
    SELECT reached.looked_at, (SELECT count(*) FROM changed WHERE is_gone) AS gone
      FROM reached
"""

UPDATE_VANISHED = """
    UPDATE ledger_incidents
       SET not_provable = not_provable + $2
     WHERE stream = $1
       AND kind = 'vanished'
       AND acknowledged_at IS NULL
"""


async def _verify(connection: Connection, stream: str, after: UUID, *, most: int) -> None:
    """Look whether those that were stored are still there; if not, it is an incident."""
    row = await connection.fetchrow(VERIFY_ENTRIES, after, most, stream)
    assert row is not None  # noqa: S101 - an aggregate has one row
    gone = row["gone"]
    if row["looked_at"] < most and after != NO_ID:
        rest = await connection.fetchrow(VERIFY_ENTRIES, NO_ID, most - row["looked_at"], stream)
        assert rest is not None  # noqa: S101 - an aggregate has one row
        gone += rest["gone"]
    if gone and await connection.execute(UPDATE_VANISHED, stream, gone) == "UPDATE 0":
        await connection.execute(INSERT_INCIDENT, stream, "vanished", gone, None)


SELECT_TOTALS = """
    SELECT accepted, repeated, stored, duplicates, mailed, suppressed, truncated, restarts,
           stored_up_to
      FROM ledger_positions
     WHERE stream = $1
"""

COUNT_MAILS = f"""
      SELECT coalesce(mail, 'none') AS mail, count(*) AS number
        FROM ledger_entries
       WHERE NOT settled
         AND NOT {IS_UNPROMISED}
         AND outcome IS NOT NULL
    GROUP BY mail
"""  # noqa: S608 - nothing of it comes from outside

COUNT_REJECTED = """
      SELECT rejected, count(*) AS number
        FROM ledger_entries
       WHERE outcome IS NULL
         AND rejected IS NOT NULL
    GROUP BY rejected
"""

WAS_KNOWN = """
    EXISTS (SELECT
              FROM ledger_incidents AS restored
             WHERE restored.stream = $2
               AND restored.kind = 'restored'
               AND restored.known_up_to > ledger_entries.stream_offset
               AND NOT EXISTS (SELECT
                                 FROM ledger_incidents AS replaced
                                WHERE replaced.stream = $2
                                  AND replaced.kind = 'replaced'
                                  AND replaced.noticed_at BETWEEN restored.noticed_at
                                                              AND ledger_entries.read_at))
"""
"""Read before the database was restored, so long ago, however late it was read again."""

MISSING_FOR_LONG = f"""
    {IS_MISSING}
    AND ((accepted_at <= now() - $1::interval AND read_at <= now() - $1::interval) OR {WAS_KNOWN})
"""

SELECT_MISSING = f"""
      SELECT registration_id, accepted_at, read_at, stream_offset, {WAS_KNOWN} AS was_known
        FROM ledger_entries
       WHERE {MISSING_FOR_LONG}
    ORDER BY accepted_at, registration_id
       LIMIT $3
"""  # noqa: S608 - nothing of it comes from outside

COUNT_MISSING_FOR_LONG = f"""
    SELECT count(*) FROM ledger_entries WHERE {MISSING_FOR_LONG}
"""  # noqa: S608 - nothing of it comes from outside

COUNT_MISSING = f"""
    SELECT count(*) FROM ledger_entries WHERE {IS_MISSING}
"""  # noqa: S608 - nothing of it comes from outside

COUNT_UNPROMISED = f"""
    SELECT count(*) FROM ledger_entries WHERE {IS_UNPROMISED}
"""  # noqa: S608 - nothing of it comes from outside

SELECT_UNPROMISED = f"""
      SELECT registration_id, accepted_at, read_at, stream_offset
        FROM ledger_entries
       WHERE {IS_UNPROMISED}
    ORDER BY accepted_at DESC, registration_id DESC
       LIMIT $1
"""  # noqa: S608 - nothing of it comes from outside

COUNT_VANISHED = """
    SELECT count(*) FROM ledger_entries WHERE vanished_at IS NOT NULL
"""

SELECT_INCIDENTS = """
      SELECT id AS incident_id, kind, noticed_at, last_read_at, accepted_before, stored_by_then,
             not_provable
        FROM ledger_incidents
       WHERE stream = $1
         AND acknowledged_at IS NULL
    ORDER BY id
       LIMIT $2
"""


async def _reconciliation(connection: Connection, request: ReconciliationRequest) -> Reconciliation:
    totals = await connection.fetchrow(SELECT_TOTALS, request.stream)
    assert totals is not None  # noqa: S101 - locked before
    mails = {row["mail"]: row["number"] for row in await connection.fetch(COUNT_MAILS)}
    rejected = {row["rejected"]: row["number"] for row in await connection.fetch(COUNT_REJECTED)}
    age = timedelta(seconds=request.missing_for_seconds)
    missing = await connection.fetch(SELECT_MISSING, age, request.stream, request.limit)
    unpromised = await connection.fetch(SELECT_UNPROMISED, MAX_NAMED)
    incidents = await connection.fetch(SELECT_INCIDENTS, request.stream, MAX_INCIDENTS)
    return Reconciliation(
        totals=_totals(
            totals,
            mails,
            missing=await connection.fetchval(COUNT_MISSING),
            unpromised=await connection.fetchval(COUNT_UNPROMISED),
            vanished=await connection.fetchval(COUNT_VANISHED),
        ),
        incidents=[Incident.model_validate(dict(row)) for row in incidents],
        stored_up_to=totals["stored_up_to"],
        rejected=rejected,
        missing_for_long=await connection.fetchval(COUNT_MISSING_FOR_LONG, age, request.stream),
        missing=[MissingRegistration.model_validate(dict(row)) for row in missing],
        unpromised=[MissingRegistration.model_validate(dict(row)) for row in unpromised],
    )


def _totals(
    row: asyncpg.Record, mails: dict[str, int], *, missing: int, unpromised: int, vanished: int
) -> LedgerTotals:
    found = {status: mails.get(status, 0) for status in ("failed", "bounced", "unsure")}
    waiting: Sequence[str] = [status for status in mails if status not in found]
    return LedgerTotals(
        accepted=row["accepted"],
        repeated=row["repeated"],
        stored=row["stored"],
        duplicates=row["duplicates"],
        missing=missing,
        unpromised=unpromised,
        mails=MailCounts(
            mailed=row["mailed"],
            suppressed=row["suppressed"],
            waiting=sum(mails[status] for status in waiting),
            **found,
        ),
        truncated=row["truncated"],
        restarts=row["restarts"],
        vanished=vanished,
    )
