"""Reads a RabbitMQ stream over AMQP 0-9-1: from any offset on, as far and as often as wanted.

Reading takes nothing out of a stream. The acks here only say that more may come.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Generic, Literal, Self, TypeVar

from common.amqp.channel import CHANNEL_LOST, Channel
from common.amqp.connection import ReconnectingConnection, count_queues, translated
from common.amqp.message import Delivery

OFFSET = "x-stream-offset"

PREFETCH = 50
"""Messages of a batch: so many are on their way to us at once; streams insist on a bound."""

BATCH_SECONDS = 0.02
"""From the first message of a batch to asking for the next one, where reading is throttled.

For each message that came alone the broker reads a chunk of its file: a thousand in one go delay
everything else there for a tenth of a second. Unthrottled, the next batch is asked for at once.
"""

FIRST_SECONDS = 3.0
"""Longest wait for the first message; after it, the broker is asked whether there is one."""

CALM_SECONDS = 0.25
"""After so long without a whole batch, the broker is asked whether that was the end."""

ANSWER_SECONDS = 5.0
"""Longest wait for the broker to answer a question or the end of a subscription."""

Start = int | Literal["first"]

Item = TypeVar("Item")


class StreamReader:
    """A connection of its own, with the rights of a service, for one reading at a time."""

    def __init__(self, url: str, *, service: str) -> None:
        self._service = service
        self._connection = ReconnectingConnection(
            url, service=service, purpose="audit", setup=_set_prefetch
        )
        self._one_at_a_time = asyncio.Lock()

    async def __aenter__(self) -> Self:
        """Start connecting; does not wait for the broker."""
        await self._connection.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self._connection.__aexit__()

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
            throttled: Whether to make pauses, because the result is not urgent.

        Raises:
            BrokerUnavailableError: It broke off, or did not say in time whether there is more;
                read again.
            TopologyMissingError: There is no such stream.
        """
        async with self._channel() as channel:
            reading = _Reading(channel, start, take, limit, throttled=throttled)
            async with asyncio.timeout(ANSWER_SECONDS):
                await channel.consume(
                    stream, self._service, reading.received, arguments={OFFSET: start}
                )
            await reading.done()
            if self._service not in channel.underlying.consumers:
                raise ConnectionError("The broker ended it: the stream was deleted.")
            await channel.underlying.basic_cancel(self._service, timeout=ANSWER_SECONDS)
            reading.acknowledge()
            return reading.items

    async def count_ready(self, queues: Sequence[str]) -> dict[str, int] | None:
        """Count the messages ready in each queue; None where the broker refuses.

        Raises:
            BrokerUnavailableError: The broker does not answer.
            TopologyMissingError: One of them does not exist.
        """
        async with self._channel() as channel:
            counts = await count_queues(channel, *queues)
        if counts is None:
            return None
        return {queue: count.ready for queue, count in zip(queues, counts, strict=True)}

    @asynccontextmanager
    async def _channel(self) -> AsyncIterator[Channel]:
        """The channel, for one reading at a time; a new one is opened if anything goes wrong.

        Raises:
            BrokerUnavailableError: It broke off.
            TopologyMissingError: What was asked for does not exist.
        """
        async with self._one_at_a_time:
            channel = await self._connection.channel(ANSWER_SECONDS)
            with translated("Reading from the broker was interrupted", "Read again."):
                try:
                    yield channel
                except (asyncio.CancelledError, *CHANNEL_LOST):
                    channel.close()  # in doubt about what the broker thinks
                    raise


class _Reading(Generic[Item]):
    """One subscription: what has come, and when it is enough."""

    def __init__(
        self,
        channel: Channel,
        start: Start,
        take: Callable[[int, Delivery], Item | None],
        limit: int,
        *,
        throttled: bool,
    ) -> None:
        self.items: list[Item] = []
        self._channel = channel
        self._first = start if isinstance(start, int) else 0
        self._take = take
        self._left = limit
        self._throttled = throttled
        self._batch: list[int] = []
        self._whole_batches = 0
        self._received = 0
        self._acknowledged = 0
        self._next: asyncio.TimerHandle | None = None
        self._has_begun = asyncio.Event()
        self._is_full = asyncio.Event()

    def received(self, tag: int, delivery: Delivery) -> None:
        """Take a message; those before the first belong to the chunk that the broker sends."""
        self._batch.append(tag)
        self._received += 1
        if len(self._batch) == 1:
            loop = asyncio.get_running_loop()
            self._next = loop.call_later(BATCH_SECONDS, self.acknowledge)
        if len(self._batch) == PREFETCH:
            self._whole_batches += 1
            if not self._throttled:
                self.acknowledge()
        offset = delivery.headers.get(OFFSET)
        if self._left and isinstance(offset, int) and offset >= self._first:
            self._left -= 1
            self._has_begun.set()
            if not self._left:
                self._is_full.set()
            item = self._take(offset, delivery)
            if item is not None:
                self.items.append(item)

    def acknowledge(self) -> None:
        """Have the broker send more."""
        if self._next is not None:
            self._next.cancel()
        for tag in self._batch:
            self._channel.acknowledge(tag)
        self._acknowledged += len(self._batch)
        self._batch.clear()

    async def done(self) -> None:
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
            if is_calm and await self._is_at_end():
                return

    async def _is_at_end(self) -> bool:
        """Whether the broker had no more to give when it was asked.

        It does what it is told on a channel in turn. An ack makes it send at once as many messages
        as there are, up to the bound; so when it answers a question asked after the ack and has
        sent fewer than it might, it had come to the end. However slow it is, its answer comes
        behind its messages.
        """
        self.acknowledge()
        might_be_sent = PREFETCH + self._acknowledged
        self._channel.flush()
        async with asyncio.timeout(ANSWER_SECONDS):
            await _set_prefetch(self._channel)  # any question will do
        if self._channel.closed:
            raise ConnectionError("The channel was lost.")
        return self._received < might_be_sent and not self._is_full.is_set()


async def _within(seconds: float, event: asyncio.Event) -> bool:
    """Whether it happened in time."""
    try:
        async with asyncio.timeout(seconds):
            return await event.wait()
    except TimeoutError:
        return False


async def _set_prefetch(channel: Channel) -> None:
    await channel.underlying.basic_qos(prefetch_count=PREFETCH)
