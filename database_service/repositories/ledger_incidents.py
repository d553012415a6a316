"""Incidents: what the ledger cannot account for, until a person has acknowledged it."""

from common.contracts.ledger import MAX_INCIDENTS, Incident, LedgerBatch
from database_service.connection import Connection
from database_service.repositories.ledger_entries import IS_MISSING, IS_UNPROMISED

# An incident that is known already is not inserted again: a restored database is read in many
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


async def insert_incidents(connection: Connection, batch: LedgerBatch) -> None:
    """Record what cannot be accounted for any more, with the ledger as it stands before."""
    if batch.restarted or batch.truncated:
        for statement in FORGET_SPANS:
            await connection.execute(statement)
    if batch.restarted:
        await connection.execute(INSERT_INCIDENT, batch.stream, "replaced", None, None)
    if batch.truncated:
        await connection.execute(INSERT_INCIDENT, batch.stream, "truncated", batch.truncated, None)
    if batch.known_up_to > batch.from_offset:
        await connection.execute(INSERT_INCIDENT, batch.stream, "restored", 0, batch.known_up_to)


UPDATE_VANISHED = """
    UPDATE ledger_incidents
       SET not_provable = not_provable + $2
     WHERE stream = $1
       AND kind = 'vanished'
       AND acknowledged_at IS NULL
"""


async def insert_vanished(connection: Connection, stream: str, rows: int) -> None:
    """Add to the open incident of vanished rows, or open one."""
    if await connection.execute(UPDATE_VANISHED, stream, rows) == "UPDATE 0":
        await connection.execute(INSERT_INCIDENT, stream, "vanished", rows, None)


SELECT_INCIDENTS = """
      SELECT id AS incident_id, kind, noticed_at, last_read_at, accepted_before, stored_by_then,
             not_provable
        FROM ledger_incidents
       WHERE stream = $1
         AND acknowledged_at IS NULL
    ORDER BY id
       LIMIT $2
"""


async def select_incidents(connection: Connection, stream: str) -> list[Incident]:
    """The open incidents of a stream, oldest first."""
    rows = await connection.fetch(SELECT_INCIDENTS, stream, MAX_INCIDENTS)
    return [Incident.model_validate(dict(row)) for row in rows]
