"""Bounces: what mail servers report later, and the addresses that therefore get no mails."""

from datetime import timedelta
from types import MappingProxyType

import asyncpg

from common.contracts.bounces import BounceRecorded, BounceReport, SuppressedAddress
from common.contracts.mail_status import Refusal, refusal_in_report
from common.contracts.notifications import ReportAction
from common.errors import NotFoundError
from database_service.connection import Connection
from database_service.pool import Database

SUPPRESSED_FOR = MappingProxyType(
    {
        Refusal.NO_SUCH_ADDRESS: None,
        Refusal.NO_SUCH_DOMAIN: timedelta(days=30),  # not renewed, or soon another owner's
        Refusal.MAILBOX_FULL: timedelta(days=7),
    }
)
"""How long an address gets no mails, by what a report says; None: until a person decides.

Anything else does not concern the address: a block list, a size, a server that was away.
"""

LONGEST_RETURN_DAYS = 14
"""Longest time after which a mail comes back: servers give up after five days."""


class BounceRepository:
    """The tables ``notification_bounces`` and ``suppressed_addresses``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    SELECT_USER_ADDRESS = """
        SELECT lower(email)
          FROM users
         WHERE lower(email) = lower($1)
    """

    async def insert_bounce(self, report: BounceReport) -> BounceRecorded:
        """Record a report once, and act on it.

        Where it says that a mail came back, the mail is ``bounced``; where the reason lies with
        the address, that is suppressed as well. A report that names no mail of ours, because a
        server gave it an id of its own, counts if its recipient is a user: it is about the last
        mail that was sent there. Other addresses cannot fill the list.
        """

        async def work(connection: Connection) -> BounceRecorded:
            mail = await _select_mail(connection, report)
            address: str | None = (
                mail["address"]
                if mail
                else await connection.fetchval(self.SELECT_USER_ADDRESS, report.recipient)
            )
            is_new = address is not None and bool(
                await connection.fetchval(
                    INSERT_BOUNCE,
                    report.bounce_id,
                    mail["id"] if mail else None,
                    report.action,
                    report.status,
                    report.diagnostic,
                )
            )
            if is_new and report.action is ReportAction.FAILED:
                await _apply(connection, report, mail, address)
            return BounceRecorded(
                notification_id=mail["message_id"] if mail else None,
                action=report.action,
                status=report.status,
                is_known=address is not None,
                is_new=is_new,
                suppressed=await connection.fetchval(SELECT_IS_SUPPRESSED, address),
            )

        return await self._database.in_transaction(work)

    SELECT_SUPPRESSIONS_AFTER = """
          SELECT address, status, diagnostic, suppressed_at, reason, expires_at
            FROM suppressions_in_force
           WHERE address > $1
        ORDER BY address
           LIMIT $2
    """

    async def select_suppressions_after(self, after: str, limit: int) -> list[SuppressedAddress]:
        """Up to ``limit`` addresses that get no more mails, in their own order."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(self.SELECT_SUPPRESSIONS_AFTER, after, limit)
        return [SuppressedAddress.model_validate(dict(row)) for row in rows]

    SELECT_SUPPRESSION = """
        SELECT address, status, diagnostic, suppressed_at, reason, expires_at
          FROM suppressions_in_force
         WHERE address = lower($1)
    """

    async def select_suppression(self, address: str) -> SuppressedAddress:
        """Why an address gets no more mails.

        Raises:
            NotFoundError: It does get them.
        """
        async with self._database.connection() as connection:
            row = await connection.fetchrow(self.SELECT_SUPPRESSION, address)
        if row is None:
            raise NotFoundError("That address is not on the suppression list: it gets its mails.")
        return SuppressedAddress.model_validate(dict(row))

    DELETE_SUPPRESSION = """
           DELETE FROM suppressed_addresses
            WHERE address = lower($1)
        RETURNING address
    """

    async def delete_suppression(self, address: str) -> None:
        """Let an address get mails again.

        Raises:
            NotFoundError: It was not on the list.
        """
        async with self._database.connection() as connection:
            if await connection.fetchval(self.DELETE_SUPPRESSION, address) is None:
                raise NotFoundError("That address is not on the suppression list.")


SELECT_MAIL_FOR_UPDATE = """
    SELECT id, message_id, lower(recipient) AS address
      FROM notification_logs
     WHERE message_id = $1
       FOR NO KEY UPDATE
"""

SELECT_LAST_MAIL_FOR_UPDATE = """
    SELECT mail.id, mail.message_id, lower(mail.recipient) AS address
      FROM users
      JOIN notification_logs AS mail ON mail.user_id = users.id
     WHERE lower(users.email) = lower($1)
       AND lower(mail.recipient) = lower($1)
       AND mail.status IN ('sent', 'unsure', 'bounced')
       AND mail.updated_at > now() - make_interval(days => $2)
  ORDER BY mail.status = 'bounced', mail.id DESC
     LIMIT 1
       FOR NO KEY UPDATE OF mail
"""

INSERT_BOUNCE = """
    INSERT INTO notification_bounces (bounce_id, notification_id, action, status, diagnostic)
         VALUES ($1, $2, $3, $4, $5)
    ON CONFLICT (bounce_id) DO NOTHING
      RETURNING bounce_id
"""

# What was refused at once stays 'failed': that is what happened first.
UPDATE_BOUNCED = """
    UPDATE notification_logs
       SET status = 'bounced',
           error_message = concat_ws(' ', $2::text, nullif($3::text, '')),
           lease_until = NULL,
           resend_asked_at = NULL,
           updated_at = now()
     WHERE id = $1
       AND status IN ('sent', 'unsure', 'deferred', 'sending')
"""

# What ends later counts, and what never ends stays.
INSERT_SUPPRESSION = """
    INSERT INTO suppressed_addresses AS known
                (address, bounce_id, status, diagnostic, reason, expires_at)
         VALUES ($1, $2, $3, $4, $5, now() + $6::interval)
    ON CONFLICT (address) DO UPDATE
            SET bounce_id = EXCLUDED.bounce_id,
                status = EXCLUDED.status,
                diagnostic = EXCLUDED.diagnostic,
                reason = EXCLUDED.reason,
                expires_at = EXCLUDED.expires_at,
                suppressed_at = now()
          WHERE known.expires_at < coalesce(EXCLUDED.expires_at, 'infinity')
"""

SELECT_IS_SUPPRESSED = """
    SELECT EXISTS (SELECT FROM suppressions_in_force WHERE address = $1)
"""


async def _select_mail(connection: Connection, report: BounceReport) -> asyncpg.Record | None:
    """The mail that a report is about."""
    if report.notification_id is None:
        return await connection.fetchrow(
            SELECT_LAST_MAIL_FOR_UPDATE, report.recipient, LONGEST_RETURN_DAYS
        )
    return await connection.fetchrow(SELECT_MAIL_FOR_UPDATE, report.notification_id)


async def _apply(
    connection: Connection, report: BounceReport, mail: asyncpg.Record | None, address: str | None
) -> None:
    if mail:
        await connection.execute(UPDATE_BOUNCED, mail["id"], report.status, report.diagnostic)
    refusal = refusal_in_report(report.status, report.diagnostic)
    if refusal in SUPPRESSED_FOR:
        await connection.execute(
            INSERT_SUPPRESSION,
            address,
            report.bounce_id,
            report.status,
            report.diagnostic,
            refusal,
            SUPPRESSED_FOR[refusal],
        )
