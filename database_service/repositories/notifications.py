"""Notifications: who may send which mail, and how each attempt ended."""

from collections.abc import Sequence
from functools import partial
from typing import TypeVar
from uuid import UUID

import asyncpg

from common.contracts.notifications import (
    Claim,
    ClaimRequest,
    ClaimResult,
    DeliveryAttempt,
    DeliveryOutcomeOf,
    Notification,
    OutcomeResult,
    Template,
)
from common.errors import NotFoundError
from database_service.pool import Connection, Database
from database_service.translation import LostRaceError

LEASE_SECONDS = 30
"""How long a sender may send without a word; it renews in time. Counted by PostgreSQL's clock."""

TOLD_AGAIN_AFTER_HOURS = 24
"""The owner of an address is told at most this often that somebody registered it again."""

Item = TypeVar("Item", ClaimRequest, DeliveryOutcomeOf)


class NotificationRepository:
    """The tables ``notification_logs`` and ``notification_attempts``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_claims(self, claims: Sequence[ClaimRequest]) -> list[ClaimResult]:
        """Decide for each claim whether its sender may send; answers in their order.

        A mail is granted to one lease at a time. The holder asking again renews its lease and
        counts no attempt; a lease that ran out, and a mail that was deferred or is unsure, go
        to the next who asks and count one. ``sent`` and ``failed`` are final and answered as
        ``sent``.

        After a crash or a lost answer the sender asks again with the same lease and is told
        the same; if it never comes back, the lease runs out.
        """
        results: dict[int, ClaimResult] = {}
        for turn in _turns(claims):
            asked = [claim for _, claim in turn]
            answers = await (
                self._database.in_transaction(partial(_claim_of_owners, claims=asked))
                if any(claim.template is Template.ALREADY_REGISTERED for claim in asked)
                else self._database.by_statements(partial(_claim, claims=asked, withheld=set()))
            )
            results |= {place: answers[claim.message_id] for place, claim in turn}
        return [results[place] for place in range(len(claims))]

    async def update_outcomes(self, outcomes: Sequence[DeliveryOutcomeOf]) -> list[OutcomeResult]:
        """Record how attempts ended; answers in their order.

        The word of the lease that holds the mail counts. Said twice, it is recorded once and
        answered alike. From a lease that ran out and passed on, only ``sent`` counts: the mail
        server *has* taken the mail, and a record that says so beats the order of leases. What
        such a lease says else is kept with its attempt and does not change the mail.
        ``sent`` is never overwritten.
        """
        results: dict[int, OutcomeResult] = {}
        for turn in _turns(outcomes):
            work = partial(_update, outcomes=[outcome for _, outcome in turn])
            recorded = await self._database.by_statements(work)
            results |= {
                place: OutcomeResult(
                    message_id=outcome.message_id, recorded=recorded.get(outcome.message_id, False)
                )
                for place, outcome in turn
            }
        return [results[place] for place in range(len(outcomes))]

    SELECT_NOTIFICATION = """
        SELECT id, message_id AS notification_id, notification_type AS template, status,
               recipient, user_id, registration_id, created_at, updated_at, sent_at
          FROM notification_logs
         WHERE message_id = $1
    """

    SELECT_ATTEMPTS = """
          SELECT attempt, status, reply_code, reply_text, coalesce(ended_at, started_at) AS at
            FROM notification_attempts
           WHERE notification_id = $1
        ORDER BY attempt
    """

    async def select_notification(self, notification_id: UUID) -> Notification:
        """How a mail stands, attempt by attempt.

        Raises:
            NotFoundError: No sender has asked for it yet.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self.SELECT_NOTIFICATION, notification_id)
            if row is None:
                raise NotFoundError("No sender has taken up a mail with this id (yet).")
            attempts = await connection.fetch(self.SELECT_ATTEMPTS, row["id"])
        return Notification(
            **{name: value for name, value in row.items() if name != "id"},
            attempts=[DeliveryAttempt.model_validate(dict(attempt)) for attempt in attempts],
        )


def _turns(items: Sequence[Item]) -> list[list[tuple[int, Item]]]:
    """The items with their places, split so that no turn names a message twice.

    One statement can not change a row twice, and who comes second must see what the first did.
    """
    turns: list[list[tuple[int, Item]]] = []
    seen: dict[UUID, int] = {}
    for place, item in enumerate(items):
        turn = seen[item.message_id] = seen.get(item.message_id, -1) + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append((place, item))
    return turns


async def _claim_of_owners(
    connection: Connection, claims: Sequence[ClaimRequest]
) -> dict[UUID, ClaimResult]:
    """Claims of which some tell the owner of an address: their users stay locked meanwhile."""
    return await _claim(connection, claims, withheld=await _withheld(connection, claims))


async def _claim(
    connection: Connection, claims: Sequence[ClaimRequest], withheld: set[UUID]
) -> dict[UUID, ClaimResult]:
    """Take up mails that are new, then those that are known: each is decided in one statement."""
    allowed = [claim.message_id not in withheld for claim in claims]
    try:
        answers = await _insert_new(connection, claims, allowed)
    except asyncpg.ForeignKeyViolationError as error:
        # The user was deleted between the join and the check.
        raise LostRaceError from error
    known = [claim.message_id not in answers for claim in claims]
    if any(known):
        answers |= await _update_known(connection, claims, allowed, known)
    if len(answers) < len(claims):
        raise LostRaceError
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
# A claim without a user is judged by its address; an address that nobody is registered
# under has no owner to protect.
UPDATE_TOLD = """
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
              WHERE (mail.id IS NULL OR mail.status IN ('sending', 'deferred', 'unsure'))
                AND (users.told_by = asked.message_id
                     OR users.told_at IS NULL
                     OR users.told_at <= now() - make_interval(hours => $4))
           ORDER BY users.id, users.told_by = asked.message_id DESC NULLS LAST, asked.position
         ),
         told AS (
             UPDATE users
                SET told_by = chosen.message_id,
                    told_at = now()
               FROM chosen
              WHERE users.id = chosen.id
          RETURNING users.told_by
         )
    SELECT asked.message_id
      FROM asked
 LEFT JOIN told ON told.told_by = asked.message_id
     WHERE asked.user_id IS NOT NULL
       AND told.told_by IS NULL
"""


async def _withheld(connection: Connection, claims: Sequence[ClaimRequest]) -> set[UUID]:
    """Messages that must not tell the owner of an address again.

    The users' rows stay locked to the end of the transaction, so claims for one user that
    come at the same time are judged one after the other.
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
    rows = await connection.fetch(UPDATE_TOLD, messages, users, addresses, TOLD_AGAIN_AFTER_HOURS)
    return {row["message_id"] for row in rows}


# In the order of the ids: two batches wait for each other in one direction only.
INSERT_CLAIMS = """
    WITH asked AS (
             SELECT message_id, lease_id, template, recipient, user_id, registration_id,
                    is_allowed
               FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::text[], $5::bigint[],
                           $6::uuid[], $7::boolean[])
                    AS item (message_id, lease_id, template, recipient, user_id,
                             registration_id, is_allowed)
         ),
         mail AS (
             INSERT INTO notification_logs
                         (message_id, user_id, registration_id, recipient, notification_type,
                          status, attempts, lease_id, lease_until)
             SELECT message_id, users.id, registration_id, recipient, template,
                    CASE WHEN is_allowed THEN 'sending' ELSE 'suppressed' END,
                    is_allowed::integer,
                    CASE WHEN is_allowed THEN lease_id END,
                    CASE WHEN is_allowed THEN now() + make_interval(secs => $8) END
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
    """Answers to the claims for mails that nobody has asked for before."""
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
    )
    return _claim_results(rows)


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
                    asked.is_allowed,
                    mail.status = 'sending' AND mail.lease_id = asked.lease_id AS is_renewal,
                    mail.status IN ('deferred', 'unsure')
                        OR mail.status = 'sending'
                           AND (mail.lease_id = asked.lease_id OR mail.lease_until <= now())
                        AS is_free
               FROM notification_logs AS mail
               JOIN asked ON asked.message_id = mail.message_id
           ORDER BY mail.message_id
                FOR NO KEY UPDATE OF mail
         ),
         changed AS (
             UPDATE notification_logs AS log
                SET status = CASE WHEN is_allowed THEN 'sending' ELSE 'suppressed' END,
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
    """Answers to the claims for mails that somebody has asked for before."""
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


# The attempt is the last one under that lease; a lease that was never granted has none, and
# so says nothing. An attempt keeps its first outcome, unless it turns out as sent after all;
# that is said with CASE, because PostgreSQL, knowing that hardly any attempt is 'sending',
# would look for those first and join each with the whole batch.
UPDATE_OUTCOMES = """
    WITH said AS (
             SELECT message_id, lease_id, status, reply_code, reply_text
               FROM unnest($1::uuid[], $2::uuid[], $3::text[], $4::integer[], $5::text[])
                    AS item (message_id, lease_id, status, reply_code, reply_text)
         ),
         mail AS (
             SELECT log.id,
                    log.message_id,
                    attempt.attempt,
                    said.status,
                    said.reply_code,
                    said.reply_text,
                    log.status = 'sending' AND log.lease_id = said.lease_id
                        OR said.status = 'sent' AND log.status <> 'sent' AS is_news,
                    log.status = said.status
                        AND (log.lease_id = said.lease_id OR said.status = 'sent') AS is_known
               FROM said
               JOIN notification_logs AS log ON log.message_id = said.message_id
         CROSS JOIN LATERAL (
                       SELECT attempt
                         FROM notification_attempts
                        WHERE notification_id = log.id
                          AND notification_attempts.lease_id = said.lease_id
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


async def _update(
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
