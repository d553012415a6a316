"""All messages that the sender handles."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Protocol
from uuid import UUID

import structlog

from common import metrics
from common.amqp.message import Envelope
from common.contracts.canary import is_canary
from common.contracts.notifications import DeliveryStatus, EmailRequested
from common.errors import (
    DestinationBusyError,
    MailDeferredError,
    MailServerUnavailableError,
    MailUnsureError,
    UserStreamError,
)
from common.failpoints import failpoint
from sender.lease import Deliveries, Lease, take_lease
from sender.mailer import Outcome
from sender.smtp.connection import Mail

log = structlog.get_logger()

_emails = cache(metrics.EMAILS.labels)
"""The counter of one template and status; to look it up takes longer than to count."""

CANCEL_GRACE_SECONDS = 3.0
"""Longest time to record an interrupted attempt; less than the consumer grants."""

_STOPPED = Outcome(DeliveryStatus.DEFERRED, reason="The sender was stopped before the text went.")
_STOPPED_AFTER_TEXT = Outcome(
    DeliveryStatus.UNSURE, reason="The sender was stopped before the server answered."
)


class Mailer(Protocol):
    """Delivers e-mails: ``sender.mailer`` in production."""

    async def ensure(self) -> None:
        """Return if mails can go out; raises MailServerUnavailableError."""
        ...

    async def send(self, mail: Mail, *, before_text: Callable[[], None]) -> Outcome:
        """Deliver; calls ``before_text`` where the mail cannot be withdrawn any more."""
        ...


class CanaryMailer:
    """Accepts a canary's mail and delivers it nowhere; all else is as for any mail."""

    async def ensure(self) -> None:
        """Return: there is no server to ask."""

    async def send(self, _mail: Mail, *, before_text: Callable[[], None]) -> Outcome:
        """Return that it was sent."""
        before_text()
        return Outcome(DeliveryStatus.SENT, reason="canary")


CANARY_MAILER = CanaryMailer()


class Writer(Protocol):
    """Writes mails: ``sender.mime`` in production."""

    def write(self, request: EmailRequested, *, message_id: UUID) -> Mail:
        """The mail; raises TemplateDataMissingError."""
        ...


async def send_email(
    envelope: Envelope[EmailRequested],
    *,
    writer: Writer,
    mailer: Mailer,
    deliveries: Deliveries,
) -> bool:
    """Send the e-mail, unless this message was sent before.

    What a crash leaves behind, always with the delivery unacknowledged, so that it is redelivered:

    * before the text was sent: a lease that runs out within 30 s; until then the message is
      deferred, then the mail is sent;
    * after the text, before the record: the mail is sent again with the same ``Message-ID``.
      SMTP has no transaction that could prevent it (RFC 5321, 4.5.3.2.6);
    * after the record: the claim answers ``sent``, and nothing is sent.

    Returns:
        Whether the mail server has taken or refused it.

    Raises:
        TemplateDataMissingError: The request cannot be made into a mail.
        InProgressError: Another sender holds the lease.
        MailServerUnavailableError: No mail would be accepted now.
        DestinationBusyError: Too many slow mails to the same domain are in progress.
        MailDeferredError: The mail server deferred this one.
        MailUnsureError: The mail server may have accepted this one.
    """
    template = envelope.data.template
    mailer = CANARY_MAILER if is_canary(envelope.data.registration_id) else mailer
    mail = writer.write(envelope.data, message_id=envelope.id)
    # Before the claim: an outage would otherwise leave an attempt behind with each probe.
    await mailer.ensure()
    lease = await take_lease(envelope, deliveries)
    if lease is None:
        _emails(template, "skipped").inc()
        return False
    async with lease:
        outcome = await _hand_over(mail, mailer, lease)
    _emails(template, "canary" if mailer is CANARY_MAILER else outcome.status).inc()
    _conclude(envelope, outcome)
    return mailer is not CANARY_MAILER


async def _hand_over(mail: Mail, mailer: Mailer, lease: Lease) -> Outcome:
    """Send and record; an aborted attempt gives its lease back where it can."""
    outcome: Outcome | None = None
    try:
        failpoint("w23")
        outcome = await mailer.send(mail, before_text=lease.commit)
        failpoint("w24")
        await lease.record(outcome)
        failpoint("w29")
    except (MailServerUnavailableError, DestinationBusyError) as error:
        with suppress(UserStreamError):  # without it, the lease runs out by itself
            await lease.record_once(Outcome(DeliveryStatus.DEFERRED, reason=error.detail))
        raise
    except asyncio.CancelledError:
        interrupted = outcome or (_STOPPED_AFTER_TEXT if lease.committed else _STOPPED)
        log.warning("email.interrupted", status=interrupted.status)
        with suppress(TimeoutError, UserStreamError):
            async with asyncio.timeout(CANCEL_GRACE_SECONDS):
                await asyncio.shield(lease.record_once(interrupted))
        raise
    return outcome


def _conclude(envelope: Envelope[EmailRequested], outcome: Outcome) -> None:
    """Log the outcome, and raise unless the message is done.

    A refused recipient is recorded, and nothing is left to do.
    """
    facts = {
        "template": envelope.data.template,
        "reply": outcome.summary,
        "attempt": envelope.attempt,
        "user_id": envelope.data.user_id,
    }
    match outcome.status:
        case DeliveryStatus.SENT:
            log.info("email.sent", **facts)
        case DeliveryStatus.DEFERRED:
            log.warning("email.deferred", **facts)
            raise MailDeferredError(f"The mail server deferred the mail: {outcome.summary}")
        case DeliveryStatus.UNSURE:
            log.warning("email.unsure", **facts)
            raise MailUnsureError(f"The mail may have been accepted: {outcome.summary}")
        case _:
            log.warning("email.failed", **facts)
