"""Canaries: stored as any registration, never listed, removed when they have been mailed."""

from datetime import timedelta
from uuid import UUID

from common.contracts.canary import FIRST_CANARY, LAST_CANARY
from database_service.connection import Connection
from database_service.pool import Database

STALE_AFTER = timedelta(hours=1)
"""Age at which a canary is removed with any other one: its frontend was stopped."""


class CanaryRepository:
    """What canaries leave in ``registrations`` and ``notification_logs``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Nothing but a canary is in that range of ids, whatever $3 says.
    DELETE_CANARIES = """
        WITH mail AS (
            DELETE FROM notification_logs
                  WHERE registration_id BETWEEN $1 AND $2
                    AND (registration_id = $3 OR created_at < now() - $4::interval)
        )
        DELETE FROM registrations
              WHERE registration_id BETWEEN $1 AND $2
                AND (registration_id = $3 OR stored_at < now() - $4::interval)
          RETURNING registration_id
    """

    async def delete_canaries(self, canary_id: UUID) -> int:
        """Remove one canary, and stale ones; return how many there were.

        One in flight may be redelivered after a crash: it is stored again, and removed when it
        is stale.
        """

        async def work(connection: Connection) -> int:
            rows = await connection.fetch(
                self.DELETE_CANARIES, FIRST_CANARY, LAST_CANARY, canary_id, STALE_AFTER
            )
            return len(rows)

        return await self._database.with_retry(work)
