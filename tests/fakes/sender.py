"""Stand-ins for what ``send_email`` talks to.

``tests/integration/fakes/test_deliveries.py`` asks FakeDeliveries and the real
database_service the same questions.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from common.amqp.message import Envelope
from common.contracts.notifications import (
    Claim,
    ClaimRequest,
    ClaimResult,
    DeliveryOutcomeOf,
    DeliveryStatus,
    EmailRequested,
    Template,
)
from sender.mailer import Outcome
from sender.smtp.connection import Mail
from sender.smtp.replies import Reply


@dataclass(slots=True)
class FakeDeliveries:
    """Keeps deliveries as database_service does; leases end only by ``expire``."""

    holders: dict[UUID, UUID] = field(default_factory=dict)
    final: dict[UUID, Claim] = field(default_factory=dict)
    claims: list[ClaimRequest] = field(default_factory=list)
    outcomes: list[DeliveryOutcomeOf] = field(default_factory=list)
    claim_errors: list[Exception] = field(default_factory=list)
    record_errors: list[Exception] = field(default_factory=list)
    busy_ms: int = 1

    @property
    def statuses(self) -> list[DeliveryStatus]:
        return [outcome.status for outcome in self.outcomes]

    def expire(self, message_id: UUID) -> None:
        self.holders.pop(message_id, None)

    async def claim(self, request: ClaimRequest) -> ClaimResult:
        await asyncio.sleep(0)
        if self.claim_errors:
            raise self.claim_errors.pop(0)
        self.claims.append(request)
        if claim := self.final.get(request.message_id):
            return ClaimResult(message_id=request.message_id, claim=claim)
        holder = self.holders.setdefault(request.message_id, request.lease_id)
        if holder != request.lease_id:
            return ClaimResult(
                message_id=request.message_id, claim=Claim.BUSY, retry_after_ms=self.busy_ms
            )
        return ClaimResult(message_id=request.message_id, claim=Claim.GRANTED)

    async def record_outcome(self, outcome: DeliveryOutcomeOf) -> bool:
        await asyncio.sleep(0)
        if self.record_errors:
            raise self.record_errors.pop(0)
        if self.holders.get(outcome.message_id) != outcome.lease_id:
            return False
        self.outcomes.append(outcome)
        del self.holders[outcome.message_id]
        if outcome.status in (DeliveryStatus.SENT, DeliveryStatus.FAILED):
            self.final[outcome.message_id] = Claim.SENT
        return True


@dataclass(slots=True)
class FakeMailer:
    """Delivers into a list, or does what it is told instead."""

    sent: list[Mail] = field(default_factory=list)
    outcomes: list[Outcome | Exception] = field(default_factory=list)
    away: Exception | None = None
    hold_before_text: asyncio.Event | None = None
    hold_after_text: asyncio.Event | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when it has come to where it is held."""

    async def ensure(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise self.away

    async def send(self, mail: Mail, *, before_text: Callable[[], None]) -> Outcome:
        outcome = self.outcomes.pop(0) if self.outcomes else accepted()
        if isinstance(outcome, Exception):
            raise outcome
        await self._hold(self.hold_before_text)
        before_text()
        self.sent.append(mail)
        await self._hold(self.hold_after_text)
        return outcome

    async def _hold(self, event: asyncio.Event | None) -> None:
        if event is not None:
            self.reached.set()
            await event.wait()


def accepted() -> Outcome:
    return Outcome(DeliveryStatus.SENT, Reply(250, "2.0.0 queued"))


def refused() -> Outcome:
    return Outcome(DeliveryStatus.FAILED, Reply(550, "5.1.1 <ada@example.org> no such mailbox"))


def deferred() -> Outcome:
    return Outcome(DeliveryStatus.DEFERRED, Reply(451, "4.7.1 <ada@example.org> greylisted"))


def unsure() -> Outcome:
    return Outcome(DeliveryStatus.UNSURE, reason="The connection was lost")


def an_envelope(message_id: UUID | None = None, **changes: Any) -> Envelope[EmailRequested]:
    values: dict[str, Any] = {
        "to": "ada@example.org",
        "template": Template.WELCOME,
        "user_id": 42,
        **changes,
    }
    return Envelope(id=message_id or uuid4(), correlation_id="test", data=EmailRequested(**values))
