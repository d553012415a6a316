"""The right to send one mail: taken from database_service, renewed while it is in use."""

import asyncio
from datetime import timedelta
from typing import Protocol, Self
from uuid import UUID, uuid4

import structlog

from common.amqp.message import Envelope
from common.contracts.notifications import (
    LEASE_SECONDS,
    Claim,
    ClaimRequest,
    ClaimResult,
    DeliveryOutcomeOf,
    EmailRequested,
    MailContent,
)
from common.errors import InProgressError, TransientError, UnavailableError, UserStreamError
from sender.mailer import Outcome

log = structlog.get_logger()

RENEW_SECONDS = 10.0
"""A third of the lease: two renewals may fail before it ends."""

FIRST_RECORD_PAUSE_SECONDS = 1.0
LONGEST_RECORD_PAUSE_SECONDS = 30.0
"""Between attempts to record: doubling from the first to the longest."""

REPLY_TEXT_LIMIT = 1000
"""Characters of a reply that are recorded; ``DeliveryOutcome`` takes no more."""


class LeaseLostError(TransientError):
    """This process stood still for longer than the lease: another may have sent the mail."""

    code = "lease_lost"


class Deliveries(Protocol):
    """Where deliveries are kept: ``common.database_client.client`` in production."""

    async def claim(self, request: ClaimRequest) -> ClaimResult:
        """Ask for the right to send a mail, or renew it."""
        ...

    async def record_outcome(self, outcome: DeliveryOutcomeOf) -> bool:
        """Record how an attempt ended; False if the lease had passed to another sender."""
        ...


class Lease:
    """One granted claim; renews itself inside ``async with``."""

    def __init__(self, deliveries: Deliveries, request: ClaimRequest, *, granted_at: float) -> None:
        self._deliveries = deliveries
        self._request = request
        self._ends_at = granted_at + LEASE_SECONDS
        self._timer: asyncio.TimerHandle | None = None
        self._renewal: asyncio.Task[None] | None = None
        self.committed = False
        """Whether the mail's text may have been sent."""

    async def __aenter__(self) -> Self:
        # A timer, not a task: nearly every mail is gone before the first renewal is due.
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(RENEW_SECONDS, self._start_renewing)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._renewal is not None:
            self._renewal.cancel()

    def commit(self) -> None:
        """Mark the mail as sent, if the lease still holds.

        Checked against this process's clock, just before the text is sent: a process that was
        frozen may resume long after another sender has taken over.

        Raises:
            LeaseLostError: It has run out.
        """
        if _now() >= self._ends_at:
            raise LeaseLostError("The lease ran out before the mail was sent.")
        self.committed = True

    async def record(self, outcome: Outcome) -> None:
        """Record how the attempt ended, however long database_service is away.

        Giving up after the mail server's 250 would send the mail a second time.
        """
        pause = FIRST_RECORD_PAUSE_SECONDS
        while True:
            try:
                await self.record_once(outcome)
            except (UnavailableError, TransientError) as error:
                log.warning("email.unrecorded", status=outcome.status, code=error.code)
                await asyncio.sleep(pause)
                pause = min(pause * 2, LONGEST_RECORD_PAUSE_SECONDS)
            else:
                return

    async def record_once(self, outcome: Outcome) -> None:
        """Record it, or raise."""
        reply = outcome.reply
        recorded = await self._deliveries.record_outcome(
            DeliveryOutcomeOf(
                message_id=self._request.message_id,
                lease_id=self._request.lease_id,
                status=outcome.status,
                reply_code=reply.code if reply else None,
                reply_text=(reply.text if reply else outcome.reason)[:REPLY_TEXT_LIMIT],
            )
        )
        if not recorded:  # the other sender's outcome counts
            log.warning("email.lease_lost", status=outcome.status)

    def _start_renewing(self) -> None:
        self._renewal = asyncio.get_running_loop().create_task(self._renew())

    async def _renew(self) -> None:
        while True:
            asked_at = _now()
            try:
                result = await self._deliveries.claim(self._request)
            except UserStreamError as error:
                # The lease runs on; ``commit`` knows when it is over.
                log.info("email.lease_not_renewed", code=error.code)
            else:
                if result.claim is not Claim.GRANTED:
                    self._ends_at = asked_at
                    return
                self._ends_at = asked_at + LEASE_SECONDS
            await asyncio.sleep(RENEW_SECONDS)


async def take_lease(envelope: Envelope[EmailRequested], deliveries: Deliveries) -> Lease | None:
    """Claim the right to send this mail; None if it is not to be sent (again).

    Raises:
        InProgressError: Another sender has it. Not waited for in flight: those of a sender that
            died would fill this one, and a mail that may have killed it would delay all others.
    """
    request = _claim_request(envelope.id, envelope.data)
    asked_at = _now()
    result = await deliveries.claim(request)
    if result.claim is Claim.GRANTED:
        return Lease(deliveries, request, granted_at=asked_at)
    if result.claim is Claim.BUSY:
        raise InProgressError(again_after=timedelta(milliseconds=result.retry_after_ms))
    log.info("email.skipped", template=envelope.data.template, claim=result.claim)
    return None


def _claim_request(message_id: UUID, request: EmailRequested) -> ClaimRequest:
    return ClaimRequest(  # pydantic checks it in half the time in which it would construct it
        message_id=message_id,
        lease_id=uuid4(),
        template=request.template,
        recipient=request.to,
        user_id=request.user_id,
        registration_id=request.registration_id,
        # What must be kept to write the mail again; nothing, of nearly all mails.
        content=MailContent.model_construct(subject=request.subject, data=request.data)
        if request.data or request.subject is not None
        else None,
    )


def _now() -> float:
    return asyncio.get_running_loop().time()
