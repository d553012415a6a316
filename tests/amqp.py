"""What another program may do at the broker: publish any bytes, look into queues."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any
from uuid import uuid4

import aio_pika
import aiormq
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from aiormq.abc import ChannelFrame
from aiormq.channel import Channel
from pamqp import frame
from pamqp.body import ContentBody
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from common.contracts.registrations import RegistrationSubmitted

PATIENCE_SECONDS = 120.0
"""Long enough for a machine with a load of 20; only a failing test waits it out."""

BODY_FRAME_BYTES = 100_000
"""Less than the 128 KiB that client and broker agree on for a frame."""


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[AbstractChannel]:
    """A channel of its own with confirms."""
    connection = await aio_pika.connect(url)
    async with connection:
        yield await connection.channel(publisher_confirms=True, on_return_raises=True)


async def publish(
    url: str, exchange: str, body: bytes, *, routing_key: str = "", **properties: Any
) -> None:
    """Publish as a foreign program would."""
    async with opened(url) as channel:
        target = await channel.get_exchange(exchange, ensure=False)
        message = aio_pika.Message(body, delivery_mode=2, **properties)
        await target.publish(message, routing_key or "anything")


class RawPublisher:
    """Writes the frames of a publish itself, with bytes in them that no codec would write."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        properties: Basic.Properties,
        body: bytes,
        altered: Mapping[bytes, bytes] | None = None,
    ) -> None:
        """Publish without a confirm; each key of ``altered`` becomes its value, as long as it."""
        parts = (
            Basic.Publish(exchange=exchange, routing_key=routing_key, mandatory=True),
            ContentHeader(0, len(body), properties),
        )
        wire = b"".join(frame.marshal(part, self._channel.number) for part in parts)
        for found, replacement in (altered or {}).items():
            assert found in wire
            assert len(found) == len(replacement)
            wire = wire.replace(found, replacement)
        for start in range(0, len(body), BODY_FRAME_BYTES):
            chunk = ContentBody(body[start : start + BODY_FRAME_BYTES])
            wire += frame.marshal(chunk, self._channel.number)
        await self._channel.write_queue.put(
            ChannelFrame(wire, should_close=False, drain_future=None)
        )

    async def settle(self) -> None:
        """Return when the broker has taken all of it; raise if it has closed the channel."""
        await self._channel.queue_declare("user.registration", passive=True)


@asynccontextmanager
async def publishing_raw(url: str) -> AsyncIterator[RawPublisher]:
    """A raw publisher on a connection of its own; all of its messages are taken at the end."""
    connection = await aiormq.connect(url)
    try:
        channel = await connection.channel(publisher_confirms=False)
        assert isinstance(channel, Channel)
        publisher = RawPublisher(channel)
        yield publisher
        await publisher.settle()
    finally:
        await connection.close()


async def publish_altered(
    url: str, exchange: str, properties: Basic.Properties, found: bytes, replacement: bytes
) -> None:
    """Publish ``{}`` under the routing key AAAA with some bytes of its frames replaced."""
    properties.delivery_mode = 2
    async with publishing_raw(url) as publisher:
        await publisher.publish(exchange, "AAAA", properties, b"{}", {found: replacement})


async def depth(url: str, queue: str) -> int:
    """Messages ready in a queue."""
    async with opened(url) as channel:
        declared = await channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0


async def take(url: str, queue: str) -> AbstractIncomingMessage:
    """Take the next message out of a queue, waiting for it."""
    async with opened(url) as channel:
        source = await channel.get_queue(queue, ensure=False)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            message = await source.get(no_ack=True, fail=False)
            if message is not None:
                return message
            await asyncio.sleep(0.05)
    raise AssertionError(f"{queue} stayed empty for {PATIENCE_SECONDS:g} s")


async def eventually(
    condition: Callable[[], Awaitable[Any]] | Callable[[], Any],
    what: str,
    seconds: float = PATIENCE_SECONDS,
) -> Any:
    """Poll until ``condition`` is true; the failure names the last value seen."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if asyncio.iscoroutine(value):
            value = await value
        if value:
            return value
        assert time.monotonic() < deadline, f"{what} did not happen in {seconds:g} s: {value!r}"
        await asyncio.sleep(0.05)


def a_registration(**changes: Any) -> RegistrationSubmitted:
    """A valid registration with an address of its own."""
    values = {"name": "Ada", "surname": "Lovelace", "email": f"ada-{uuid4().hex}@example.org"}
    return RegistrationSubmitted.model_validate(values | changes)
