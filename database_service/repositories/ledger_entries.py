"""Entries of the ledger: what was read of the stream, and which of it was never promised."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import asyncpg

from common.contracts.ledger import LedgerBatch, UnpromisedPublication
from database_service.connection import Connection

DELETED_AT_ONCE = 5000
"""Old publications that are deleted in one turn."""

IS_UNPROMISED = "(unpromised AND spans_offset IS NOT DISTINCT FROM stream_offset)"
"""Whether every message of the entry's id was answered with 503.

Not where a release that knows no spans has read another one since, and moved the offset alone.
"""

IS_MISSING = f"(outcome IS NULL AND rejected IS NULL AND NOT {IS_UNPROMISED})"
"""Whether an entry may be lost: as the index of these entries has it, word by word."""

ALL_ARE_UNPROMISED = """(
           cardinality(entry.spans) =
           (SELECT count(*)
              FROM unpromised_publications AS known
             WHERE known.registration_id = entry.registration_id
               AND known.span = ANY (entry.spans)))"""
"""Whether each of an entry's spans is that of a publication which was answered with 503."""

FURTHEST_MAIL = """LATERAL (
                       SELECT status
                         FROM notification_logs
                        WHERE notification_logs.registration_id = registrations.registration_id
                     ORDER BY status IN ('sent', 'suppressed') DESC, id
                        LIMIT 1
                    ) AS mail ON true"""
"""Of several mails for one registration, the one that came furthest."""


# An id that is known at the same offset is the same message read again, after the stream was
# begun anew; at another one it was published again. A missing one is then looked for there,
# and one that was discarded has another chance. That an id is stored shows how far the work queue
# has come only where it is new: what is published again may still wait behind all others.
# An entry that is not stored keeps the span of each of its messages, and is unpromised only where
# as many were answered with 503: not with a message that has no span, nor with two that have the
# same, since one is a copy. An entry that was stored or discarded before, or has more than 64
# messages, keeps no spans, and gets none again.
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
          LEFT JOIN {FURTHEST_MAIL}
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
         ),
         counted AS (
             SELECT count(*) AS distinct_ids,
                    count(*) FILTER (WHERE known_offset IS NULL) AS accepted,
                    count(*) FILTER (WHERE known_offset <> stream_offset) AS repeated,
                    count(*) FILTER (WHERE known_offset IS NULL AND outcome = 'stored') AS stored,
                    count(*) FILTER (WHERE known_offset IS NULL AND outcome = 'duplicate')
                        AS duplicates,
                    count(*) FILTER (WHERE known_offset IS NULL AND mail = 'sent') AS mailed,
                    count(*) FILTER (WHERE known_offset IS NULL AND mail = 'suppressed')
                        AS suppressed,
                    CASE WHEN count(outcome) FILTER (WHERE known_offset IS NULL) > 0
                              THEN now() END AS stored_up_to
               FROM looked
         )
       UPDATE ledger_positions AS position
          SET next_offset = $6,
              last_id = $7,
              read_at = now(),
              truncated = position.truncated + $8,
              restarts = position.restarts + $9,
              accepted = position.accepted + counted.accepted,
              repeated = position.repeated + counted.repeated
                         + cardinality($1::uuid[]) - counted.distinct_ids,
              stored = position.stored + counted.stored,
              duplicates = position.duplicates + counted.duplicates,
              mailed = position.mailed + counted.mailed,
              suppressed = position.suppressed + counted.suppressed,
              stored_up_to = greatest(position.stored_up_to, counted.stored_up_to)
         FROM counted
        WHERE stream = $5
    RETURNING next_offset, last_id, read_at
"""  # noqa: S608 - nothing of it comes from outside


async def insert_entries(connection: Connection, batch: LedgerBatch) -> asyncpg.Record:
    """Write what was read, and advance the position; return that."""
    (position,) = await connection.fetch(
        INSERT_ENTRIES,
        [entry.registration_id for entry in batch.entries],
        [entry.accepted_at for entry in batch.entries],
        [entry.stream_offset for entry in batch.entries],
        [bytes.fromhex(entry.span) if entry.span else None for entry in batch.entries],
        batch.stream,
        batch.next_offset,
        batch.last_id,
        batch.truncated,
        int(batch.restarted),
    )
    return position


UNPROMISED_KEPT = timedelta(days=14)
"""How long a publication without an entry is kept; the stream keeps a week."""

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

UPDATE_UNPROMISED = f"""
    UPDATE ledger_entries AS entry
       SET unpromised = true
     WHERE entry.registration_id = ANY ($1::uuid[])
       AND entry.outcome IS NULL
       AND entry.rejected IS NULL
       AND {ALL_ARE_UNPROMISED}
"""  # noqa: S608 - nothing of it comes from outside


async def insert_unpromised(
    connection: Connection, publications: Sequence[UnpromisedPublication]
) -> int:
    """Record what was published and answered with 503; return how many are new."""
    ids: list[UUID] = [publication.registration_id for publication in publications]
    spans = [bytes.fromhex(publication.span) for publication in publications]
    await connection.execute(DELETE_OLD_UNPROMISED, UNPROMISED_KEPT, DELETED_AT_ONCE)
    recorded: int = await connection.fetchval(INSERT_UNPROMISED, ids, spans)
    await connection.execute(UPDATE_UNPROMISED, ids)
    return recorded
