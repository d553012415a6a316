"""Sends lost registrations from the stream to the work queue again."""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Protocol
from uuid import UUID

import structlog

from common.amqp.headers import republish_headers, republish_properties, short_text
from common.amqp.message import ATTEMPT, WITHOUT_MAIL, Delivery
from common.amqp.stream import Start
from common.contracts.ledger import Ledger, MailChoice, MissingRegistration, Repair
from common.contracts.topology import USER_REGISTRATION
from queue_receiver.ledger.reader import CHUNK, STREAM

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Found:
    """One message of the stream; with its content if it is one of those looked for."""

    offset: int
    delivery: Delivery | None


class Log(Protocol):
    """The stream: ``common.amqp.stream`` in production."""

    async def read(
        self,
        stream: str,
        start: Start,
        take: Callable[[int, Delivery], Found | None],
        *,
        limit: int,
    ) -> list[Found]:
        """Messages from an offset on."""
        ...


class Publisher(Protocol):
    """Where messages go: ``common.amqp.publisher`` in production."""

    async def send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        expiration: timedelta | None = None,
    ) -> None:
        """Publish bytes; returns when the broker has confirmed them."""
        ...


class Auditor(Protocol):
    """Who knows what is lost: ``queue_receiver.ledger.auditor`` in production."""

    async def reconcile(self) -> Ledger:
        """Compare anew."""
        ...

    @property
    def lost(self) -> list[MissingRegistration]:
        """Everyone who was lost then."""
        ...


class Repairs:
    """Brings back what is lost, when a person asks for it."""

    def __init__(self, *, auditor: Auditor, log_: Log, publisher: Publisher) -> None:
        self._auditor = auditor
        self._log = log_
        self._publisher = publisher

    async def repair(self, mail: MailChoice = MailChoice.AUTO) -> Repair:
        """Compare anew, and send what is lost to the work queue; see ``repair`` below."""
        await self._auditor.reconcile()
        return await repair(
            self._auditor.lost, log_=self._log, publisher=self._publisher, mail=mail
        )


async def repair(
    lost: list[MissingRegistration],
    *,
    log_: Log,
    publisher: Publisher,
    mail: MailChoice = MailChoice.AUTO,
) -> Repair:
    """Publish the messages of lost registrations again, each under its own id.

    By the way back of retries, which leads into the work queue whatever else is bound. Safe to
    do twice, and to break off: who is stored already is stored only once.

    Raises:
        UnroutableError: The way back is missing, too; nothing of that message was kept.
        BrokerUnavailableError: Not confirmed; ask again.
    """
    wanted = {one.registration_id: one.stream_offset for one in lost}
    unmailed = {
        one.registration_id
        for one in lost
        if mail is MailChoice.NONE or (mail is MailChoice.AUTO and one.was_known)
    }
    republished, without_mail, forgotten = 0, 0, list[UUID]()

    def take(offset: int, delivery: Delivery) -> Found:
        return Found(offset, delivery if delivery.id in wanted else None)

    while wanted:
        first = min(wanted.values())
        piece = await log_.read(STREAM, first, take, limit=CHUNK)
        found = {one.delivery.id: one.delivery for one in piece if one.delivery is not None}
        await asyncio.gather(
            *(
                _republish(publisher, delivery, without_mail=key in unmailed)
                for key, delivery in found.items()
            )
        )
        republished += len(found)
        without_mail += len(unmailed & found.keys())
        end = piece[-1].offset if piece else max(wanted.values())
        passed = [key for key, offset in wanted.items() if offset <= end and key not in found]
        forgotten += passed
        for key in (*found, *passed):
            del wanted[key]
    log.info(
        "ledger.repaired",
        republished=republished,
        without_mail=without_mail,
        not_in_stream=len(forgotten),
    )
    return Repair(
        lost=len(lost),
        republished=republished,
        without_mail=without_mail,
        not_in_stream=forgotten,
    )


async def _republish(publisher: Publisher, delivery: Delivery, *, without_mail: bool) -> None:
    await publisher.send(
        USER_REGISTRATION.return_exchange,
        short_text(delivery.routing_key),
        delivery.body,
        properties=republish_properties(delivery),
        headers={
            **republish_headers(delivery),
            ATTEMPT: 1,
            **({WITHOUT_MAIL: True} if without_mail else {}),
        },
    )
