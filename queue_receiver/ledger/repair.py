"""Sends lost registrations from the stream to the work queue again."""

import asyncio
from uuid import UUID

import structlog

from common.amqp.headers import republish_headers, republish_properties, short_text
from common.amqp.message import ATTEMPT, WITHOUT_MAIL, Delivery
from common.amqp.publisher import Publisher
from common.contracts.ledger import MailChoice, MissingRegistration, Repair
from common.contracts.topology import USER_REGISTRATION
from queue_receiver.ledger.reader import CHUNK, STREAM, Stream

log = structlog.get_logger()


class Repairs:
    """Brings lost registrations back."""

    def __init__(self, *, stream: Stream, publisher: Publisher) -> None:
        self._stream = stream
        self._publisher = publisher

    async def repair(
        self, lost: list[MissingRegistration], mail: MailChoice = MailChoice.AUTO
    ) -> Repair:
        """Publish the messages of lost registrations again, each under its own id.

        They go through the return exchange of retries, which leads to the work queue whatever
        else is bound. Safe to repeat and to interrupt: a registration is stored only once.

        Raises:
            UnroutableError: The way back is missing, too; nothing of that message was kept.
            BrokerUnavailableError: Not confirmed; repeat it.
        """
        wanted = {one.registration_id: one.stream_offset for one in lost}
        unmailed = {
            one.registration_id
            for one in lost
            if mail is MailChoice.NONE or (mail is MailChoice.AUTO and one.was_known)
        }
        republished, without_mail, not_in_stream = 0, 0, list[UUID]()

        def take(offset: int, delivery: Delivery) -> tuple[int, Delivery | None]:
            return offset, delivery if delivery.id in wanted else None

        while wanted:
            first = min(wanted.values())
            chunk = await self._stream.read(STREAM, first, take, limit=CHUNK)
            found = {delivery.id: delivery for _, delivery in chunk if delivery is not None}
            await asyncio.gather(
                *(
                    self._republish(delivery, without_mail=key in unmailed)
                    for key, delivery in found.items()
                )
            )
            republished += len(found)
            without_mail += len(unmailed & found.keys())
            end = chunk[-1][0] if chunk else max(wanted.values())
            passed = [key for key, offset in wanted.items() if offset <= end and key not in found]
            not_in_stream += passed
            for key in (*found, *passed):
                del wanted[key]
        log.info(
            "ledger.repaired",
            republished=republished,
            without_mail=without_mail,
            not_in_stream=len(not_in_stream),
        )
        return Repair(
            lost=len(lost),
            republished=republished,
            without_mail=without_mail,
            not_in_stream=not_in_stream,
        )

    async def _republish(self, delivery: Delivery, *, without_mail: bool) -> None:
        await self._publisher.send(
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
