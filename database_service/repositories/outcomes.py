"""Outcomes: records how attempts to send ended, so that the lease holder's outcome counts."""

from collections.abc import Sequence
from uuid import UUID

from common.contracts.notifications import DeliveryOutcomeOf
from database_service.connection import Connection

# A mail that has come back already was sent, which is what 'bounced' says.
# The attempt is the last one under that lease; a lease that was never granted has none, and
# so says nothing. An attempt keeps its first outcome, unless it turns out as sent after all;
# that is written with CASE, because PostgreSQL, knowing that hardly any attempt is 'sending',
# would look for those first and join each with the whole batch.
UPDATE_OUTCOMES = """
    WITH reported AS (
             SELECT message_id, lease_id, status, reply_code, reply_text
               FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::text[])
                    AS item (message_id, lease_id, status, reply_code, reply_text)
         ),
         mail AS (
             SELECT log.id,
                    log.message_id,
                    attempt.attempt,
                    reported.status,
                    reported.reply_code,
                    reported.reply_text,
                    log.status = 'sending' AND log.lease_id = reported.lease_id
                        OR reported.status = 'sent' AND log.status NOT IN ('sent', 'bounced')
                        AS is_news,
                    log.status = reported.status
                        AND (log.lease_id = reported.lease_id OR reported.status = 'sent')
                        OR reported.status = 'sent' AND log.status = 'bounced'
                        AS is_known
               FROM reported
               JOIN notification_logs AS log ON log.message_id = reported.message_id
         CROSS JOIN LATERAL (
                       SELECT attempt
                         FROM notification_attempts
                        WHERE notification_id = log.id
                          AND notification_attempts.lease_id = reported.lease_id
                     ORDER BY attempt DESC
                        LIMIT 1
                    ) AS attempt
           ORDER BY log.message_id
                FOR NO KEY UPDATE OF log
         ),
         changed AS (
             UPDATE notification_logs AS log
                SET status = mail.status,
                    error_message = CASE WHEN mail.status <> 'sent'
                        THEN concat_ws(' ', mail.reply_code, nullif(mail.reply_text, '')) END,
                    sent_at = CASE WHEN mail.status = 'sent' THEN now() END,
                    lease_until = NULL,
                    updated_at = now()
               FROM mail
              WHERE log.id = mail.id
                AND mail.is_news
         ),
         ended AS (
             UPDATE notification_attempts AS attempt
                SET status = mail.status,
                    reply_code = mail.reply_code,
                    reply_text = mail.reply_text,
                    ended_at = now()
               FROM mail
              WHERE attempt.notification_id = mail.id
                AND attempt.attempt = mail.attempt
                AND CASE mail.status
                        WHEN 'sent' THEN attempt.status <> 'sent'
                        ELSE attempt.status = 'sending'
                    END
         )
    SELECT message_id, is_news OR is_known AS recorded
      FROM mail
"""


async def record_outcomes(
    connection: Connection, outcomes: Sequence[DeliveryOutcomeOf]
) -> dict[UUID, bool]:
    """Message id to whether the outcome is on record; unknown messages and leases are absent."""
    rows = await connection.fetch(
        UPDATE_OUTCOMES,
        [outcome.message_id for outcome in outcomes],
        [outcome.lease_id for outcome in outcomes],
        [outcome.status for outcome in outcomes],
        [outcome.reply_code for outcome in outcomes],
        [outcome.reply_text for outcome in outcomes],
    )
    return {row["message_id"]: row["recorded"] for row in rows}
