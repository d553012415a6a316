"""Notifications: who may send which mail, and how each attempt ended."""

from collections.abc import Sequence
from functools import partial
from typing import TypeVar
from uuid import UUID

from common.contracts.notifications import (
    ClaimRequest,
    ClaimResult,
    DeliveryOutcomeOf,
    Notification,
    OutcomeResult,
    SuppressedMail,
    Template,
)
from common.errors import NotFoundError
from database_service.pool import Database
from database_service.repositories.claims import answer_claims, answer_claims_of_owners
from database_service.repositories.outcomes import record_outcomes
from database_service.repositories.resends import content_of

Item = TypeVar("Item", ClaimRequest, DeliveryOutcomeOf)


class NotificationRepository:
    """The tables ``notification_logs`` and ``notification_attempts``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def insert_claims(self, claims: Sequence[ClaimRequest]) -> list[ClaimResult]:
        """Decide for each claim whether its sender may send; answers in their order.

        A mail is granted to one lease at a time. The holder asking again renews its lease and
        counts no attempt; a lease that ran out, and a mail that was deferred or is unsure, go
        to the next who asks and count one. ``sent``, ``failed`` and ``bounced`` are final and
        answered as ``sent``, until a resend of the mail is requested: that is one more claim.
        An address on the suppression list is granted nothing.

        After a crash or a lost answer the sender asks again with the same lease and is told
        the same; if it never comes back, the lease runs out.
        """
        results: dict[int, ClaimResult] = {}
        for turn in _turns(claims):
            asked = [claim for _, claim in turn]
            answers = await (
                self._database.in_transaction(partial(answer_claims_of_owners, claims=asked))
                if any(claim.template is Template.ALREADY_REGISTERED for claim in asked)
                else self._database.with_retry(partial(answer_claims, claims=asked))
            )
            results |= {place: answers[claim.message_id] for place, claim in turn}
        return [results[place] for place in range(len(claims))]

    INSERT_SUPPRESSED = """
        INSERT INTO notification_logs
                    (message_id, user_id, registration_id, recipient, notification_type, status,
                     error_message)
             VALUES ($1, (SELECT id FROM users WHERE id = $2), $3, $4, $5, 'suppressed',
                     'It was mailed before the database was restored from a backup.')
        ON CONFLICT (message_id) DO NOTHING
    """

    async def insert_suppressed(self, mail: SuppressedMail) -> bool:
        """Record a mail as suppressed; False if something was known of it."""
        async with self._database.connection() as connection:
            done = await connection.execute(
                self.INSERT_SUPPRESSED,
                mail.message_id,
                mail.user_id,
                mail.registration_id,
                mail.recipient,
                mail.template,
            )
        return done == "INSERT 0 1"

    async def update_outcomes(self, outcomes: Sequence[DeliveryOutcomeOf]) -> list[OutcomeResult]:
        """Record how attempts ended; answers in their order.

        The outcome of the lease that holds the mail counts. Repeated, it is recorded once and
        answered alike. From a lease that has passed on, only ``sent`` counts: the mail server
        *has* accepted the mail, whichever lease it was. Any other outcome of such a lease is
        kept with its attempt and does not change the mail.
        ``sent`` is overwritten by a report that the mail came back, and by nothing else.
        """
        results: dict[int, OutcomeResult] = {}
        for turn in _turns(outcomes):
            work = partial(record_outcomes, outcomes=[outcome for _, outcome in turn])
            recorded = await self._database.with_retry(work)
            results |= {
                place: OutcomeResult(
                    message_id=outcome.message_id, recorded=recorded.get(outcome.message_id, False)
                )
                for place, outcome in turn
            }
        return [results[place] for place in range(len(outcomes))]

    SELECT_NOTIFICATION = """
        SELECT id, message_id AS notification_id, notification_type AS template, status,
               error_message AS reason, recipient, user_id, registration_id, content,
               created_at, updated_at, sent_at
          FROM notification_logs
         WHERE message_id = $1
    """

    SELECT_ATTEMPTS = """
          SELECT attempt, status, reply_code, reply_text, coalesce(ended_at, started_at) AS at
            FROM notification_attempts
           WHERE notification_id = $1
        ORDER BY attempt
    """

    SELECT_RESENDS = """
          SELECT asked_at, asked_by, reason, status_before, forced
            FROM notification_resends
           WHERE notification_id = $1
        ORDER BY id
    """

    SELECT_BOUNCES = """
          SELECT action, status, diagnostic, reported_at
            FROM notification_bounces
           WHERE notification_id = $1
        ORDER BY reported_at
    """

    async def select_notification(self, notification_id: UUID) -> Notification:
        """The state of a mail, attempt by attempt.

        Raises:
            NotFoundError: No sender has claimed it yet.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self.SELECT_NOTIFICATION, notification_id)
            if row is None:
                raise NotFoundError("No sender has claimed a mail with this id yet.")
            attempts = await connection.fetch(self.SELECT_ATTEMPTS, row["id"])
            resends = await connection.fetch(self.SELECT_RESENDS, row["id"])
            bounces = await connection.fetch(self.SELECT_BOUNCES, row["id"])
        return Notification.model_validate(
            {
                **row,
                "content": content_of(row["content"]),
                "attempts": [dict(attempt) for attempt in attempts],
                "resends": [dict(resend) for resend in resends],
                "bounces": [dict(bounce) for bounce in bounces],
            }
        )


def _turns(items: Sequence[Item]) -> list[list[tuple[int, Item]]]:
    """The items with their places, split so that no turn names a message twice.

    One statement cannot change a row twice, and the second item must see what the first did.
    """
    turns: list[list[tuple[int, Item]]] = []
    seen: dict[UUID, int] = {}
    for place, item in enumerate(items):
        turn = seen[item.message_id] = seen.get(item.message_id, -1) + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append((place, item))
    return turns
