"""Claims: decides for each mail which sender may send it, in SQL, so that all agree."""

from collections.abc import Collection, Sequence
from uuid import UUID

import asyncpg

from common.contracts.notifications import LEASE_SECONDS, Claim, ClaimRequest, ClaimResult, Template
from database_service.connection import Connection
from database_service.translation import SerializationConflictError

HOURS_BETWEEN_NOTICES = 24
"""The owner of an address is told at most this often that it was registered again."""


async def answer_claims_of_owners(
    connection: Connection, claims: Sequence[ClaimRequest]
) -> dict[UUID, ClaimResult]:
    """Answer claims of which some tell the owner of an address; their users stay locked."""
    return await answer_claims(
        connection, claims, rate_limited=await _update_last_notices(connection, claims)
    )


async def answer_claims(
    connection: Connection,
    claims: Sequence[ClaimRequest],
    rate_limited: Collection[UUID] = frozenset(),
) -> dict[UUID, ClaimResult]:
    """Take up mails that are new, then those that are known: each is decided in one statement."""
    allowed = [claim.message_id not in rate_limited for claim in claims]
    try:
        answers = await _insert_new(connection, claims, allowed)
    except asyncpg.ForeignKeyViolationError as error:
        # The user was deleted between the join and the check.
        raise SerializationConflictError from error
    known = [claim.message_id not in answers for claim in claims]
    if any(known):
        answers |= await _update_known(connection, claims, allowed, known)
    if len(answers) < len(claims):
        raise SerializationConflictError
    return answers


SELECT_OWNERS_FOR_UPDATE = """
      SELECT id
        FROM users
       WHERE id = ANY ($1::bigint[])
          OR lower(email) = ANY (ARRAY(SELECT lower(address) FROM unnest($2::text[]) AS address))
    ORDER BY id
         FOR NO KEY UPDATE
"""

# The user's row names the one message that may tell its owner. Another one gets the place
# when it has grown old; a message that needs no place (sent, refused) does not take it.
# A claim without a user is decided by its address; an address without a user has no owner
# to protect.
UPDATE_LAST_NOTICES = """
    WITH asked AS (
             SELECT message_id,
                    position,
                    coalesce(item.user_id, owner.id) AS user_id
               FROM unnest($1::uuid[], $2::bigint[], $3::text[])
                    WITH ORDINALITY AS item (message_id, user_id, recipient, position)
          LEFT JOIN users AS owner
                 ON item.user_id IS NULL AND lower(owner.email) = lower(item.recipient)
         ),
         chosen AS (
             SELECT DISTINCT ON (users.id) users.id, asked.message_id
               FROM asked
               JOIN users ON users.id = asked.user_id
          LEFT JOIN notification_logs AS mail ON mail.message_id = asked.message_id
              WHERE (mail.id IS NULL
                     OR mail.status IN ('sending', 'deferred', 'unsure')
                     OR mail.resend_asked_at IS NOT NULL)
                AND (users.last_notice_by = asked.message_id
                     OR users.last_notice_at IS NULL
                     OR users.last_notice_at <= now() - make_interval(hours => $4))
           ORDER BY users.id,
                    users.last_notice_by = asked.message_id DESC NULLS LAST,
                    asked.position
         ),
         noticed AS (
             UPDATE users
                SET last_notice_by = chosen.message_id,
                    last_notice_at = now()
               FROM chosen
              WHERE users.id = chosen.id
          RETURNING users.last_notice_by
         )
    SELECT asked.message_id
      FROM asked
 LEFT JOIN noticed ON noticed.last_notice_by = asked.message_id
     WHERE asked.user_id IS NOT NULL
       AND noticed.last_notice_by IS NULL
"""


async def _update_last_notices(connection: Connection, claims: Sequence[ClaimRequest]) -> set[UUID]:
    """Choose the messages that may tell the owner of an address; return the rate-limited ones.

    The users' rows stay locked to the end of the transaction, so claims for one user that
    come at the same time are decided one after the other.
    """
    asked = [claim for claim in claims if claim.template is Template.ALREADY_REGISTERED]
    users = [claim.user_id for claim in asked]
    addresses = [claim.recipient for claim in asked]
    await connection.execute(
        SELECT_OWNERS_FOR_UPDATE,
        [user for user in users if user is not None],
        [claim.recipient for claim in asked if claim.user_id is None],
    )
    messages = [claim.message_id for claim in asked]
    rows = await connection.fetch(
        UPDATE_LAST_NOTICES, messages, users, addresses, HOURS_BETWEEN_NOTICES
    )
    return {row["message_id"] for row in rows}


# In the order of the ids: two batches wait for each other in one direction only.
INSERT_CLAIMS = """
    WITH asked AS (
             SELECT message_id, lease_id, template, recipient, user_id, registration_id, content,
                    is_allowed AND blocked.address IS NULL AS is_allowed,
                    blocked.address IS NOT NULL AS is_blocked
               FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[],
                           $6::uuid[], $7::boolean[], $9::jsonb[])
                    AS item (message_id, lease_id, template, recipient, user_id,
                             registration_id, is_allowed, content)
          LEFT JOIN suppressions_in_force AS blocked ON blocked.address = lower(item.recipient)
         ),
         mail AS (
             INSERT INTO notification_logs
                         (message_id, user_id, registration_id, recipient, notification_type,
                          status, attempts, lease_id, lease_until, content, error_message)
             SELECT message_id, users.id, registration_id, recipient, template,
                    CASE WHEN is_allowed THEN 'sending' ELSE 'suppressed' END,
                    is_allowed::integer,
                    CASE WHEN is_allowed THEN lease_id END,
                    CASE WHEN is_allowed THEN now() + make_interval(secs => $8) END,
                    content,
                    CASE WHEN is_blocked THEN 'The address is on the suppression list.'
                         WHEN NOT is_allowed THEN 'The owner was told within a day.' END
               FROM asked
          LEFT JOIN users ON users.id = asked.user_id
           ORDER BY message_id
        ON CONFLICT (message_id) DO NOTHING
          RETURNING id, message_id, lease_id, status
         ),
         attempt AS (
             INSERT INTO notification_attempts (notification_id, attempt, lease_id, status)
             SELECT id, 1, lease_id, 'sending'
               FROM mail
              WHERE status = 'sending'
         )
    SELECT message_id,
           CASE status WHEN 'sending' THEN 'granted' ELSE 'suppressed' END AS claim
      FROM mail
"""


async def _insert_new(
    connection: Connection, claims: Sequence[ClaimRequest], allowed: Sequence[bool]
) -> dict[UUID, ClaimResult]:
    """Insert the mails that no claim named before; answer their claims."""
    rows = await connection.fetch(
        INSERT_CLAIMS,
        [claim.message_id for claim in claims],
        [claim.lease_id for claim in claims],
        [claim.template for claim in claims],
        [claim.recipient for claim in claims],
        [claim.user_id for claim in claims],
        [claim.registration_id for claim in claims],
        allowed,
        LEASE_SECONDS,
        [claim.content.model_dump_json() if claim.content else None for claim in claims],
    )
    return _claim_results(rows)


# A sender that is at work finishes, whatever was forbidden meanwhile. A mail that a person
# wants sent again, and that is forbidden, stays what it was.
UPDATE_CLAIMS = """
    WITH asked AS (
             SELECT message_id, lease_id, is_allowed
               FROM unnest($1::uuid[], $2::uuid[], $3::boolean[])
                    AS item (message_id, lease_id, is_allowed)
         ),
         mail AS (
             SELECT mail.id,
                    mail.message_id,
                    mail.status,
                    mail.lease_until,
                    asked.lease_id,
                    asked.is_allowed
                        AND (blocked.address IS NULL
                             OR mail.status = 'sending' AND mail.lease_id = asked.lease_id)
                        AS is_allowed,
                    mail.status = 'sending' AND mail.lease_id = asked.lease_id AS is_renewal,
                    mail.status IN ('deferred', 'unsure')
                        OR mail.status = 'sending'
                           AND (mail.lease_id = asked.lease_id OR mail.lease_until <= now())
                        OR mail.status <> 'sending' AND mail.resend_asked_at IS NOT NULL
                        AS is_free
               FROM notification_logs AS mail
               JOIN asked ON asked.message_id = mail.message_id
          LEFT JOIN suppressions_in_force AS blocked ON blocked.address = lower(mail.recipient)
           ORDER BY mail.message_id
                FOR NO KEY UPDATE OF mail
         ),
         changed AS (
             UPDATE notification_logs AS log
                SET status = CASE
                        WHEN is_allowed THEN 'sending'
                        WHEN mail.status IN ('sending', 'deferred', 'unsure') THEN 'suppressed'
                        ELSE mail.status
                    END,
                    resend_asked_at = NULL,
                    attempts = attempts + (is_allowed AND NOT is_renewal)::integer,
                    lease_id = CASE WHEN is_allowed THEN mail.lease_id ELSE log.lease_id END,
                    lease_until =
                        CASE WHEN is_allowed THEN now() + make_interval(secs => $4) END,
                    updated_at = now()
               FROM mail
              WHERE log.id = mail.id
                AND mail.is_free
          RETURNING log.id, log.message_id, log.attempts, log.lease_id, log.status,
                    mail.is_renewal
         ),
         attempt AS (
             INSERT INTO notification_attempts (notification_id, attempt, lease_id, status)
             SELECT id, attempts, lease_id, 'sending'
               FROM changed
              WHERE status = 'sending'
                AND NOT is_renewal
         )
    SELECT mail.message_id,
           CASE coalesce(changed.status, mail.status)
                WHEN 'suppressed' THEN 'suppressed'
                WHEN 'sending' THEN CASE WHEN mail.is_free THEN 'granted' ELSE 'busy' END
                ELSE 'sent'
           END AS claim,
           CASE WHEN mail.is_free THEN 0
                ELSE coalesce(ceil(extract(epoch FROM mail.lease_until - now()) * 1000), 0)
           END::integer AS retry_after_ms
      FROM mail
 LEFT JOIN changed USING (message_id)
"""


async def _update_known(
    connection: Connection,
    claims: Sequence[ClaimRequest],
    allowed: Sequence[bool],
    known: Sequence[bool],
) -> dict[UUID, ClaimResult]:
    """Update the mails that are known; answer their claims."""
    asked = [(claim, yes) for claim, yes, old in zip(claims, allowed, known, strict=True) if old]
    rows = await connection.fetch(
        UPDATE_CLAIMS,
        [claim.message_id for claim, _ in asked],
        [claim.lease_id for claim, _ in asked],
        [yes for _, yes in asked],
        LEASE_SECONDS,
    )
    return _claim_results(rows)


def _claim_results(rows: list[asyncpg.Record]) -> dict[UUID, ClaimResult]:
    return {
        row["message_id"]: ClaimResult(
            message_id=row["message_id"],
            claim=Claim(row["claim"]),
            retry_after_ms=row.get("retry_after_ms", 0),
        )
        for row in rows
    }
