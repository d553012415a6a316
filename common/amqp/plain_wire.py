"""The same as ``common.amqp.channel``, by aiormq's own methods alone.

Slower; for a release of aiormq whose inside has changed. ``FAST_FRAMES=false`` takes this path.
"""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from functools import partial
from typing import Any

from aio_pika.exceptions import AMQPError, DeliveryError, PublishError
from aiormq.abc import DeliveredMessage
from aiormq.channel import Channel
from pamqp.commands import Basic

from common.amqp.line import CONFIRM_SECONDS, Confirmation, Line, Received
from common.amqp.message import Delivery
from common.errors import BrokerUnavailableError, UnroutableError

PERSISTENT = 2
"""AMQP's delivery mode for what has to survive a restart of the broker."""

DRAIN_SECONDS = 1.0
"""Longest wait for the last acks to leave; those that do not are delivered again."""


class PlainWire(Line):
    """One channel, a write for each publish and each ack."""

    def __init__(self, channel: Channel) -> None:
        super().__init__(channel)
        self._acks: set[asyncio.Task[None]] = set()

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        expiration: timedelta | None = None,
    ) -> Confirmation:
        """Publish persistent and mandatory; see ``Confirmation`` for what comes back."""
        values = dict(properties)
        values["message_type"] = values.pop("type", None)
        if expiration is not None:
            values["expiration"] = str(round(expiration.total_seconds() * 1000))
        message_id = properties["message_id"]
        confirmation = asyncio.ensure_future(
            self._publish(
                exchange,
                routing_key,
                body,
                Basic.Properties(delivery_mode=PERSISTENT, headers=dict(headers) or None, **values),
            )
        )
        self._under_way[message_id] = confirmation
        confirmation.add_done_callback(partial(self._ended, message_id))
        return confirmation

    async def _publish(
        self, exchange: str, routing_key: str, body: bytes, properties: Basic.Properties
    ) -> None:
        try:
            await self.channel.basic_publish(
                body,
                exchange=exchange,
                routing_key=routing_key,
                mandatory=True,
                properties=properties,
                timeout=CONFIRM_SECONDS,
            )
        except PublishError as error:
            raise UnroutableError(
                "No queue is bound to the exchange; the message was not kept."
            ) from error
        except DeliveryError as error:
            raise BrokerUnavailableError(
                "The broker refused the message: a queue is full."
            ) from error
        except TimeoutError as error:
            raise BrokerUnavailableError(
                f"The broker did not confirm within {CONFIRM_SECONDS:g} s."
            ) from error
        except (AMQPError, OSError, RuntimeError) as error:
            raise BrokerUnavailableError("The connection broke before the confirm.") from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # It is the channel that was cancelled, and its confirmations with it.
            raise BrokerUnavailableError("The connection broke before the confirm.") from error

    async def consume(
        self,
        queue: str,
        tag: str,
        received: Received,
        *,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Subscribe to a queue; ``received`` is called with each delivery.

        One subscription at a time; of a stream, ``arguments`` say where to begin.
        """

        async def take(message: DeliveredMessage) -> None:
            received(message.delivery_tag or 0, _delivery(message))

        await self.channel.basic_consume(
            queue, take, consumer_tag=tag, arguments=dict(arguments or {})
        )

    def acknowledge(self, tag: int) -> None:
        """Acknowledge one delivery of this channel."""
        task = asyncio.ensure_future(self.channel.basic_ack(tag))
        self._acks.add(task)
        task.add_done_callback(self._acked)

    def _acked(self, task: asyncio.Task[None]) -> None:
        self._acks.discard(task)
        if not task.cancelled():
            task.exception()  # seen: the channel has gone, and the broker delivers again

    async def drain(self) -> None:
        """Wait until all that was acknowledged so far is on its way."""
        if self._acks:
            await asyncio.wait(self._acks, timeout=DRAIN_SECONDS)


def _delivery(message: DeliveredMessage) -> Delivery:
    properties = message.header.properties
    return Delivery(
        body=message.body,
        routing_key=message.routing_key or "",
        message_id=properties.message_id,
        correlation_id=properties.correlation_id,
        type=properties.message_type,
        content_type=properties.content_type,
        content_encoding=properties.content_encoding,
        app_id=properties.app_id,
        timestamp=properties.timestamp,
        priority=properties.priority,
        headers=dict(properties.headers or {}),
    )
