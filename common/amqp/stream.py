"""Reads a RabbitMQ stream over AMQP 0-9-1: from any offset on, as far and as often as wanted.

Reading takes nothing out of a stream. The acks here only say that more may come.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Generic, Literal, Self, TypeVar

from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from aiormq.abc import AbstractChannel as UnderlyingChannel
from aiormq.exceptions import ChannelAccessRefused

from common.amqp.channel import Wire
from common.amqp.connection import Link
from common.amqp.message import Delivery
from common.errors import BrokerUnavailableError, TopologyMissingError

OFFSET = "x-stream-offset"

PREFETCH = 50
"""Messages of a portion: so many are on their way to us at once; streams insist on a bound."""

BATCH_SECONDS = 0.02
"""From the first message of a portion to asking for the next one, where nobody waits for them.

For each message that came alone the broker reads a chunk of its file: a thousand in one go hold up
everything else there for a tenth of a second. Whoever does wait has the next portion at once.
"""

FIRST_SECONDS = 3.0
"""Longest wait for the first message; after it, the broker is asked whether there is one."""

CALM_SECONDS = 0.25
"""After so long without a whole portion, the broker is asked whether that was the end."""

ANSWER_SECONDS = 5.0
"""Longest wait for the broker to answer a question or the end of a subscription."""

POLL_SECONDS = 0.02

Start = int | Literal["first"]

Item = TypeVar("Item")


class StreamReader:
    """A connection of its own on which streams are read, one reading at a time."""

    def __init__(self, url: str, *, service: str) -> None:
        self._service = service
        self._wire: Wire | None = None
        self._link = Link(url, service=service, purpose="audit", setup=self._prepare)
        self._one_at_a_time = asyncio.Lock()
        self._closing: set[asyncio.Future[None]] = set()

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str, *, service: str) -> AsyncIterator[Self]:
        """Start connecting, with the rights of a service; does not wait for the broker."""
        reader = cls(url, service=service)
        async with reader._link:
            yield reader

    async def read(
        self,
        stream: str,
        start: Start,
        take: Callable[[int, Delivery], Item | None],
        *,
        limit: int,
        throttled: bool = False,
    ) -> list[Item]:
        """What ``take`` makes of the messages from ``start`` on, until the end or the limit.

        Fewer than the limit: that was the end, by the broker's own word (see ``is_at_end``), at
        some moment after the reading had begun. Silence alone never is: the broker, the network
        or this process may be slow.

        Args:
            stream: Its name.
            start: Offset of the first message, or ``first`` for the oldest there is. Where
                the stream has forgotten that offset, it is the oldest, too.
            take: Gets offset and message; None leaves it out. Bodies are not kept.
            limit: Most messages looked at; at least 1.
            throttled: Whether to make pauses, because nobody waits for it.

        Raises:
            BrokerUnavailableError: It broke off, or did not say in time whether there is more;
                read again.
            TopologyMissingError: There is no such stream.
        """
        async with self._one_at_a_time:
            reading = _Reading(start, take, limit, throttled=throttled)
            with self._watched():
                async with asyncio.timeout(ANSWER_SECONDS):
                    wire = await self._usable_wire()
                    await wire.consume(
                        stream,
                        self._service,
                        lambda tag, delivery: reading.received(wire, tag, delivery),
                        arguments={OFFSET: start},
                    )
                await reading.done(wire)
                if self._service not in wire.channel.consumers:
                    raise ConnectionError("The broker ended it: the stream was deleted.")
                await wire.channel.basic_cancel(self._service, timeout=ANSWER_SECONDS)
                reading.acknowledge(wire)
            return reading.items

    async def count_ready(self, queues: Sequence[str]) -> dict[str, int] | None:
        """Messages ready in each queue, at this moment.

        None where the broker refuses to count for a service, as RabbitMQ 4.2.6 and 4.3.0 do.

        Raises:
            BrokerUnavailableError: The broker does not answer.
            TopologyMissingError: One of them does not exist.
        """
        async with self._one_at_a_time:
            with self._watched():
                async with asyncio.timeout(ANSWER_SECONDS):
                    # A channel of its own: a refusal closes the one on which it was asked.
                    connection = (await self._usable_wire()).channel.connection
                    asking = await connection.channel(publisher_confirms=False)
                    try:
                        counts = {queue: await _count(asking, queue) for queue in queues}
                    except ChannelAccessRefused:
                        return None
                    await asking.close()
                    return counts

    async def _usable_wire(self) -> Wire:
        while self._wire is None or self._wire.closed:
            await self._link.channel()
            if self._wire is None:  # given up, and the link has not noticed yet
                await asyncio.sleep(POLL_SECONDS)
        return self._wire

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Begin again on a new channel if anything goes wrong: who knows what the broker thinks.

        Raises:
            BrokerUnavailableError: It broke off.
            TopologyMissingError: What was asked for does not exist.
        """
        try:
            yield
        except asyncio.CancelledError as error:
            self._give_up_channel()
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # It is the channel that was cancelled, and what waited for it with it.
            raise BrokerUnavailableError("The broker broke off while a stream was read.") from error
        except (AMQPError, OSError, RuntimeError, TimeoutError) as error:
            is_connected = self._wire is not None and not self._wire.closed
            self._give_up_channel()
            if isinstance(error, ChannelNotFoundEntity):
                raise TopologyMissingError(
                    "A stream or queue does not exist. Import rabbitmq/definitions.json."
                ) from error
            if not is_connected:
                raise BrokerUnavailableError(self._link.failure.detail) from error
            raise BrokerUnavailableError("The broker broke off while a stream was read.") from error

    def _give_up_channel(self) -> None:
        """Close the channel without waiting; the link opens another one."""
        wire, self._wire = self._wire, None
        if wire is not None and not wire.closed:
            closing = asyncio.ensure_future(_close(wire))
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)

    async def _prepare(self, _channel: AbstractChannel, wire: Wire) -> None:
        await wire.channel.basic_qos(prefetch_count=PREFETCH)
        self._wire = wire


class _Reading(Generic[Item]):
    """One subscription: what has come, and when it is enough."""

    def __init__(
        self,
        start: Start,
        take: Callable[[int, Delivery], Item | None],
        limit: int,
        *,
        throttled: bool,
    ) -> None:
        self.items: list[Item] = []
        self._first = start if isinstance(start, int) else 0
        self._take = take
        self._left = limit
        self._gently = throttled
        self._batch: list[int] = []
        self._whole_batches = 0
        self._received = 0
        self._acknowledged = 0
        self._next: asyncio.TimerHandle | None = None
        self._has_begun = asyncio.Event()
        self._is_full = asyncio.Event()

    def received(self, wire: Wire, tag: int, delivery: Delivery) -> None:
        """Take a message; those before the first belong to the piece that the broker sends."""
        self._batch.append(tag)
        self._received += 1
        if len(self._batch) == 1:
            loop = asyncio.get_running_loop()
            self._next = loop.call_later(BATCH_SECONDS, self.acknowledge, wire)
        if len(self._batch) == PREFETCH:
            self._whole_batches += 1
            if not self._gently:
                self.acknowledge(wire)
        offset = delivery.headers.get(OFFSET)
        if self._left and isinstance(offset, int) and offset >= self._first:
            self._left -= 1
            self._has_begun.set()
            if not self._left:
                self._is_full.set()
            item = self._take(offset, delivery)
            if item is not None:
                self.items.append(item)

    def acknowledge(self, wire: Wire) -> None:
        """Have the broker send more."""
        if self._next is not None:
            self._next.cancel()
        for tag in self._batch:
            wire.acknowledge(tag)
        self._acknowledged += len(self._batch)
        self._batch.clear()

    async def done(self, wire: Wire) -> None:
        """Return when the limit is reached, or the end.

        Raises:
            ConnectionError: The channel was lost.
            TimeoutError: The broker does not answer.
        """
        await _within(FIRST_SECONDS, self._has_begun)
        whole_batches = self._whole_batches
        while not await _within(CALM_SECONDS, self._is_full):
            is_calm = self._whole_batches == whole_batches
            whole_batches = self._whole_batches
            if is_calm and await self._is_at_end(wire):
                return

    async def _is_at_end(self, wire: Wire) -> bool:
        """Whether the broker had no more to give when it was asked.

        It does what it is told on a channel in turn. An ack makes it send at once as many messages
        as there are, up to the bound; so when it answers a question asked after the ack and has
        sent fewer than it might, it had come to the end. However slow it is, its answer comes
        behind its messages.
        """
        self.acknowledge(wire)
        might_be_sent = PREFETCH + self._acknowledged
        await wire.drain()
        async with asyncio.timeout(ANSWER_SECONDS):
            await wire.channel.basic_qos(prefetch_count=PREFETCH)  # any question will do
        if wire.closed:
            raise ConnectionError("The channel was lost.")
        return self._received < might_be_sent and not self._is_full.is_set()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether it happened in time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def _count(channel: UnderlyingChannel, queue: str) -> int:
    declared = await channel.queue_declare(queue, passive=True)
    return declared.message_count or 0


async def _close(wire: Wire) -> None:
    with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
        await wire.channel.close()
