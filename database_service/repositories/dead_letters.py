"""Dead letters that were discarded: by which person, when and why."""

from datetime import datetime

import asyncpg

from common.contracts.dead_letters import DeadLetterDiscard, DiscardedDeadLetter
from database_service.pool import Database


class DeadLetterRepository:
    """The table ``dead_letter_discards``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # A message that returns after it was discarded, and is discarded again: the last reason counts.
    INSERT_DISCARD = """
        INSERT INTO dead_letter_discards
                    (message_id, route, error_code, reason, discarded_by)
             VALUES ($1, $2, $3, $4, $5)
        ON CONFLICT (message_id, route) DO UPDATE
                SET error_code = excluded.error_code,
                    reason = excluded.reason,
                    discarded_by = excluded.discarded_by,
                    discarded_at = now()
          RETURNING discarded_at
    """

    async def insert_discard(self, discard: DeadLetterDiscard) -> DiscardedDeadLetter:
        """Record the reason; for the same message again, the new one."""
        async with self._database.connection() as connection:
            discarded_at: datetime = await connection.fetchval(
                self.INSERT_DISCARD,
                discard.message_id,
                discard.route,
                discard.error_code,
                discard.reason,
                discard.discarded_by,
            )
        return DiscardedDeadLetter(**dict(discard), discarded_at=discarded_at)

    SELECT_DISCARDS = """
          SELECT id, message_id, route, error_code, reason, discarded_by, discarded_at
            FROM dead_letter_discards
           WHERE id < $1
        ORDER BY id DESC
           LIMIT $2
    """

    async def select_discards(
        self, before: int, limit: int
    ) -> list[tuple[int, DiscardedDeadLetter]]:
        """Discarded messages with their numbers, below one, newest first."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(self.SELECT_DISCARDS, before, limit)
        return [_discard(row) for row in rows]


def _discard(row: asyncpg.Record) -> tuple[int, DiscardedDeadLetter]:
    values = dict(row)
    return values.pop("id"), DiscardedDeadLetter(**values)
