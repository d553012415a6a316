"""Reconciliation: compares the ledger's entries with what is stored and mailed."""

from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from uuid import UUID

import asyncpg

from common.contracts.ledger import (
    MAX_NAMED,
    LedgerTotals,
    MailCounts,
    MissingRegistration,
    Reconciliation,
    ReconciliationRequest,
)
from database_service.connection import Connection
from database_service.repositories.ledger_entries import FURTHEST_MAIL, IS_MISSING, IS_UNPROMISED
from database_service.repositories.ledger_incidents import insert_vanished, select_incidents

RECONCILED_AT_ONCE = 5000
"""Entries looked at in one turn; the rest is looked at in the next ones."""

UNPROMISED_AT_ONCE = 500
"""Unpromised entries looked at in one turn, beside the others: they may be stored yet."""

NO_ID = UUID(int=0)
"""Before every other id."""


# A message without a time counts as accepted when it is read, which may be some seconds after
# a person has discarded it.
# In turns, by id: some are never final (a refused address, a discarded dead letter), and must
# not keep the others from being looked at.
def _reconcile(which: str, cursor: str) -> str:
    return f"""
    WITH turn AS (
             SELECT registration_id, accepted_at, read_at, outcome
               FROM ledger_entries
              WHERE {which}
                AND registration_id > $2
           ORDER BY registration_id
              LIMIT $3
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
          LEFT JOIN {FURTHEST_MAIL}
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
              {cursor} = CASE WHEN reached.looked_at = $3 THEN reached.last_id END
         FROM summed, reached
        WHERE stream = $1
    RETURNING reached.looked_at
"""  # noqa: S608 - nothing of it comes from outside


RECONCILE_ENTRIES = _reconcile(f"NOT settled AND NOT {IS_UNPROMISED}", "settled_to")
RECONCILE_UNPROMISED = _reconcile(IS_UNPROMISED, "unpromised_to")


async def reconcile_entries(connection: Connection, stream: str, position: asyncpg.Record) -> None:
    """Compare one turn of entries, and one of unpromised entries, with what is stored."""
    for statement, cursor, most in (
        (RECONCILE_ENTRIES, "settled_to", RECONCILED_AT_ONCE),
        (RECONCILE_UNPROMISED, "unpromised_to", UNPROMISED_AT_ONCE),
    ):
        await _take_turn(partial(connection.fetchval, statement, stream), position[cursor], most)


async def _take_turn(
    look: Callable[[UUID, int], Awaitable[int]], after: UUID | None, most: int
) -> None:
    """Look at ``most`` entries after an id; at the end, continue with the first."""
    looked_at = await look(after or NO_ID, most)
    if after and looked_at < most:
        await look(NO_ID, most - looked_at)


# Rows of registrations are kept for ever, so one that has vanished is lost. Looked at in turns, by
# the primary keys of both tables. A row that comes back is no longer missed.
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
              WHERE registration_id > $2
           ORDER BY registration_id
              LIMIT $3
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
                SET verified_to = CASE WHEN reached.looked_at = $3 THEN reached.last_id END
               FROM reached
              WHERE stream = $1
         )
    SELECT reached.looked_at, (SELECT count(*) FROM changed WHERE is_gone) AS gone
      FROM reached
"""


async def verify_entries(
    connection: Connection, stream: str, position: asyncpg.Record, *, most: int
) -> None:
    """Check whether rows that were stored are still there; a vanished one is an incident."""
    gone = 0

    async def look(after: UUID, most: int) -> int:
        nonlocal gone
        (row,) = await connection.fetch(VERIFY_ENTRIES, stream, after, most)
        gone += row["gone"]
        looked_at: int = row["looked_at"]
        return looked_at

    await _take_turn(look, position["verified_to"], most)
    if gone:
        await insert_vanished(connection, stream, gone)


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
"""Whether it was read before the database was restored, and so counts as missing for long."""

MISSING_FOR_LONG = f"""
    {IS_MISSING}
    AND ((accepted_at <= now() - $1::interval AND read_at <= now() - $1::interval) OR {WAS_KNOWN})
"""

SELECT_TOTALS = f"""
    SELECT accepted, repeated, stored, duplicates, mailed, suppressed, truncated, restarts,
           stored_up_to,
           (SELECT count(*) FROM ledger_entries WHERE {IS_MISSING}) AS missing,
           (SELECT count(*) FROM ledger_entries WHERE {IS_UNPROMISED}) AS unpromised,
           (SELECT count(*) FROM ledger_entries WHERE vanished_at IS NOT NULL) AS vanished,
           (SELECT count(*) FROM ledger_entries WHERE {MISSING_FOR_LONG}) AS missing_for_long
      FROM ledger_positions
     WHERE stream = $2
"""  # noqa: S608 - nothing of it comes from outside

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

SELECT_MISSING = f"""
      SELECT registration_id, accepted_at, read_at, stream_offset, {WAS_KNOWN} AS was_known
        FROM ledger_entries
       WHERE {MISSING_FOR_LONG}
    ORDER BY accepted_at, registration_id
       LIMIT $3
"""  # noqa: S608 - nothing of it comes from outside

SELECT_UNPROMISED = f"""
      SELECT registration_id, accepted_at, read_at, stream_offset
        FROM ledger_entries
       WHERE {IS_UNPROMISED}
    ORDER BY accepted_at DESC, registration_id DESC
       LIMIT $1
"""  # noqa: S608 - nothing of it comes from outside


async def select_reconciliation(
    connection: Connection, request: ReconciliationRequest
) -> Reconciliation:
    """The totals, and what is missing for long."""
    age = timedelta(seconds=request.missing_for_seconds)
    (totals,) = await connection.fetch(SELECT_TOTALS, age, request.stream)
    mails = {row["mail"]: row["number"] for row in await connection.fetch(COUNT_MAILS)}
    rejected = {row["rejected"]: row["number"] for row in await connection.fetch(COUNT_REJECTED)}
    missing = await connection.fetch(SELECT_MISSING, age, request.stream, request.limit)
    unpromised = await connection.fetch(SELECT_UNPROMISED, MAX_NAMED)
    return Reconciliation(
        totals=LedgerTotals.model_validate({**totals, "mails": _mail_counts(totals, mails)}),
        incidents=await select_incidents(connection, request.stream),
        stored_up_to=totals["stored_up_to"],
        rejected=rejected,
        missing_for_long=totals["missing_for_long"],
        missing=[MissingRegistration.model_validate(dict(row)) for row in missing],
        unpromised=[MissingRegistration.model_validate(dict(row)) for row in unpromised],
    )


def _mail_counts(totals: asyncpg.Record, mails: dict[str, int]) -> MailCounts:
    """Counts of mails by status; each other status than these means that a mail waits."""
    known = {status: mails.pop(status, 0) for status in ("failed", "bounced", "unsure")}
    return MailCounts(
        mailed=totals["mailed"],
        suppressed=totals["suppressed"],
        waiting=sum(mails.values()),
        **known,
    )
