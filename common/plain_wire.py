"""The same as ``common.wire``, by aiormq's own methods: one write for every frame.

For a release of aiormq whose inside has changed: ``BATCHED_WRITES=false`` takes this path.
"""

import asyncio
from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from aiormq.channel import Channel
from pamqp.commands import Basic

from common.wire import CONFIRM_SECONDS, DRAIN_SECONDS, Confirmation, Line

PERSISTENT = 2
"""AMQP's delivery mode for what has to survive a restart of the broker."""


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
        publishing = self.channel.basic_publish(
            body,
            exchange=exchange,
            routing_key=routing_key,
            mandatory=True,
            properties=Basic.Properties(
                delivery_mode=PERSISTENT, headers=dict(headers) or None, **values
            ),
            timeout=CONFIRM_SECONDS,
        )
        message_id = properties["message_id"]
        confirmation: Confirmation = asyncio.ensure_future(publishing)
        self._under_way[message_id] = confirmation
        confirmation.add_done_callback(lambda _: self._under_way.pop(message_id, None))
        return confirmation

    def received(self, tag: int) -> None:
        """Nothing to note: every ack is for one delivery."""

    def acknowledge(self, tag: int) -> None:
        """Acknowledge one delivery of this channel."""
        task = asyncio.ensure_future(self.channel.basic_ack(tag))
        self._acks.add(task)
        task.add_done_callback(self._acks.discard)

    async def drain(self) -> None:
        """Wait until all that was acknowledged so far is on its way."""
        if self._acks:
            await asyncio.wait(self._acks, timeout=DRAIN_SECONDS)
