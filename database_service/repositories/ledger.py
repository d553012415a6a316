"""The ledger: what was read of the stream of registrations, compared by id with what is stored."""

import asyncpg

from common.contracts.ledger import (
    MAX_INCIDENTS,
    AcknowledgeIncidents,
    Incident,
    LedgerBatch,
    LedgerPosition,
    Reconciliation,
    ReconciliationRequest,
    UnpromisedPublications,
)
from database_service.connection import Connection
from database_service.pool import Database
from database_service.repositories.ledger_entries import insert_entries, insert_unpromised
from database_service.repositories.ledger_incidents import insert_incidents
from database_service.repositories.reconciliation import (
    reconcile_entries,
    select_reconciliation,
    verify_entries,
)


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
        """How far a stream was read; its beginning, if it was not read yet."""
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self.SELECT_POSITION, stream)
        return _position(row) if row else LedgerPosition(next_offset=0)

    async def insert_entries(self, batch: LedgerBatch) -> LedgerPosition:
        """Write a batch, unless another reader was first; whole or not at all.

        After a crash or a lost answer the caller asks for the position and continues from there.
        """

        async def work(connection: Connection) -> LedgerPosition:
            before = await _lock_position(connection, batch.stream)
            if before["next_offset"] != batch.from_offset:
                return _position(before, advanced=False)
            await insert_incidents(connection, batch)
            return _position(await insert_entries(connection, batch))

        return await self._database.in_transaction(work)

    async def reconcile_entries(self, request: ReconciliationRequest) -> Reconciliation:
        """Compare a turn of entries with what is stored; return the totals and what is missing."""

        async def work(connection: Connection) -> Reconciliation:
            position = await _lock_position(connection, request.stream)
            await reconcile_entries(connection, request.stream, position)
            if request.verify:
                await verify_entries(connection, request.stream, position, most=request.verify)
            return await select_reconciliation(connection, request)

        return await self._database.in_transaction(work)

    async def insert_unpromised(self, request: UnpromisedPublications) -> int:
        """Record what was published and answered with 503; return how many are new.

        Its entries may have been read, or be read later. The position is locked as by a reader:
        else each of two could miss what the other one writes.
        """

        async def work(connection: Connection) -> int:
            await _lock_position(connection, request.stream)
            return await insert_unpromised(connection, request.publications)

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
        """Close every open incident of a stream, with the reason; return them, oldest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                self.UPDATE_INCIDENTS, request.stream, request.acknowledged_by, request.reason
            )
        closed = [Incident.model_validate(dict(row)) for row in rows]
        return sorted(closed, key=lambda incident: incident.incident_id)[:MAX_INCIDENTS]


# An update, since that locks the row whether it is new or not.
LOCK_POSITION = """
    INSERT INTO ledger_positions (stream)
         VALUES ($1)
    ON CONFLICT (stream) DO UPDATE
            SET stream = excluded.stream
      RETURNING next_offset, last_id, read_at, settled_to, unpromised_to, verified_to
"""


async def _lock_position(connection: Connection, stream: str) -> asyncpg.Record:
    """The position; until the transaction ends no other one writes to the ledger."""
    (row,) = await connection.fetch(LOCK_POSITION, stream)
    return row


def _position(row: asyncpg.Record, *, advanced: bool = True) -> LedgerPosition:
    return LedgerPosition(
        next_offset=row["next_offset"],
        last_id=row["last_id"],
        read_at=row["read_at"],
        advanced=advanced,
    )
