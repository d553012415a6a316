"""Mails sent again by hand: finds them, and opens them for one more claim each."""

from uuid import UUID

import asyncpg

from common.contracts.canary import FIRST_CANARY, LAST_CANARY
from common.contracts.notifications import SAME_FOR_EVERYBODY, MailContent
from common.contracts.resends import (
    NotificationQuery,
    NotificationSummary,
    ResendDecision,
    ResendMark,
    ResendMarked,
)
from database_service.connection import Connection
from database_service.pool import Database

LONGEST_JOURNEY_DAYS = 7
"""A mail that came to stand as it does on some day was asked for at most so long before.

It is tried for 26 hours, and waits as long as an outage lasts.
"""

LIST_SECONDS = 30.0
"""Longest time to look through the mails of a day: a million are a second of reading."""


class ResendRepository:
    """The table ``notification_resends``, and the mails that it is about."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # Days begin in UTC, as the session has it. PostgreSQL reckons with them: it has a day before
    # the first and after the last one of Python's.
    # The first part alone, so that the mails are found by their blocks. Finding the first few
    # in the order of their ids looks cheaper to a plan that knows no dates, and reads from the
    # very first mail there was.
    SELECT_NOTIFICATIONS = """
        WITH recent AS MATERIALIZED (
                 SELECT id, message_id, notification_type, status, error_message, recipient,
                        user_id, registration_id, content, created_at, updated_at
                   FROM notification_logs
                  WHERE created_at >= ($1::date - $2::integer)::timestamptz
                    AND created_at < ($1::date + 1)::timestamptz
                    AND updated_at >= $1::date::timestamptz
                    AND updated_at < ($1::date + 1)::timestamptz
                    AND ($3::text IS NULL OR status = $3)
                    AND ($4::text IS NULL OR notification_type = $4)
                    AND coalesce(registration_id NOT BETWEEN $7 AND $8, true)
             ),
             page AS MATERIALIZED (
                 SELECT id, message_id, notification_type, status, error_message, recipient,
                        user_id, registration_id, content, created_at, updated_at
                   FROM recent
                  WHERE id > $5
               ORDER BY id
                  LIMIT $6
             )
        SELECT page.id, message_id AS notification_id, notification_type AS template, page.status,
               error_message AS reason, recipient, user_id, registration_id, content,
               address IS NOT NULL AS is_suppressed, created_at, updated_at
          FROM page
     LEFT JOIN suppressions_in_force ON address = lower(recipient)
      ORDER BY page.id
    """

    async def select_notifications(
        self, query: NotificationQuery
    ) -> tuple[list[NotificationSummary], int | None]:
        """Up to ``query.limit`` mails of a day, oldest first, and where the next page begins.

        Without those of canaries, which are gone a moment later.
        """
        async with self._database.connection() as connection:
            rows = await connection.fetch(
                self.SELECT_NOTIFICATIONS,
                query.day,
                LONGEST_JOURNEY_DAYS,
                query.status,
                query.template,
                query.after or 0,
                query.limit + 1,
                FIRST_CANARY,
                LAST_CANARY,
                timeout=LIST_SECONDS,
            )
        page = rows[: query.limit]
        found = [NotificationSummary.model_validate(_values(row)) for row in page]
        return found, page[-1]["id"] if len(rows) > query.limit else None

    async def mark_resends(self, mark: ResendMark) -> list[ResendMarked]:
        """Open mails for one more claim each; answers in their order.

        A mail keeps its status until a sender takes it up, so after a crash it is found again
        and can be opened again; opened twice, it is sent once.
        """
        distinct = list(dict.fromkeys(mark.notification_ids))

        async def work(connection: Connection) -> dict[UUID, ResendMarked]:
            rows = await connection.fetch(
                UPDATE_RESENDS,
                distinct,
                mark.asked_by,
                mark.reason,
                mark.force,
                [template.value for template in SAME_FOR_EVERYBODY],
            )
            return {
                row["notification_id"]: ResendMarked.model_validate(_values(row)) for row in rows
            }

        marked = await self._database.with_retry(work)
        return [
            marked.get(item, ResendMarked(notification_id=item, decision=ResendDecision.UNKNOWN))
            for item in mark.notification_ids
        ]


UPDATE_RESENDS = """
    WITH mail AS (
             SELECT log.id, log.message_id, log.notification_type, log.status, log.recipient,
                    log.user_id, log.registration_id, log.content,
                    CASE
                        WHEN log.status = 'sending' AND (NOT $4 OR log.lease_until > now())
                            THEN 'sending'
                        WHEN NOT $4 AND log.status NOT IN ('failed', 'unsure') THEN 'not_failed'
                        WHEN blocked.address IS NOT NULL THEN 'suppressed'
                        WHEN log.content IS NULL AND log.notification_type <> ALL ($5::text[])
                            THEN 'unwritable'
                        ELSE 'opened'
                    END AS decision
               FROM unnest($1::uuid[]) AS asked (message_id)
               JOIN notification_logs AS log ON log.message_id = asked.message_id
          LEFT JOIN suppressions_in_force AS blocked ON blocked.address = lower(log.recipient)
           ORDER BY log.message_id
                FOR NO KEY UPDATE OF log
         ),
         opened AS (
             UPDATE notification_logs AS log
                SET resend_asked_at = now()
               FROM mail
              WHERE log.id = mail.id
                AND mail.decision = 'opened'
         ),
         noted AS (
             INSERT INTO notification_resends
                         (notification_id, asked_by, reason, status_before, forced)
             SELECT id, $2, $3, status, $4
               FROM mail
              WHERE decision = 'opened'
         )
    SELECT message_id AS notification_id, decision, status, notification_type AS template,
           recipient, user_id, registration_id, content
      FROM mail
"""


def content_of(text: str | None) -> MailContent | None:
    """What a mail is to say, as it was kept."""
    return MailContent.model_validate_json(text) if text is not None else None


def _values(row: asyncpg.Record) -> dict[str, object]:
    return {**row, "content": content_of(row["content"])}
