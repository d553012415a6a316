"""Keeps a queue subscribed, on whatever channel there is, and as widely as it may be.

Each channel begins narrow: with one delivery in hand. The first that is no suspect widens it to
the full prefetch. So a process that has just been started again takes a message that kills
alone, and no others with it. See ``common.messaging.quarantine``. Until the first is settled, one
more than the prefetch is in hand.
"""

import asyncio
from collections.abc import Awaitable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any, Protocol

import structlog

from common.amqp.channel import CHANNEL_LOST, Channel
from common.amqp.connection import ReconnectingConnection, check_topology, count_queues
from common.amqp.message import DELIVERY_COUNT, PREVIOUS_DELIVERIES, Delivery
from common.contracts.topology import Route, queues
from common.errors import BrokerUnavailableError
from common.messaging.quarantine import is_suspect

log = structlog.get_logger()

INITIAL_PREFETCH = 1
"""Prefetch of a channel on which no ordinary message has come yet."""

CANCEL_SECONDS = 5.0
"""Longest wait for the broker to answer a cancel."""

WATCH_INTERVAL = timedelta(seconds=15)
"""How often an idle subscription looks whether messages are waiting for it in vain."""

LONGEST_IDLE = timedelta(minutes=10)
"""After so long without a delivery the channel is renewed, whatever the broker counts."""


class Settler(Protocol):
    """What takes deliveries and settles them: ``common.messaging.consumer`` in production."""

    def begin(self, channel: Channel, tag: int, delivery: Delivery) -> bool:
        """Begin with an ordinary delivery; False if it has to wait for a suspect."""
        ...

    def handle_exclusively(self, channel: Channel, tag: int, delivery: Delivery) -> None:
        """Begin with a suspect, once it is alone; what comes after it has to wait."""
        ...

    def release_waiting(self) -> None:
        """Forget what is held: it will come again, by a new channel."""
        ...

    @property
    def is_open(self) -> bool:
        """Whether deliveries are to come freely; else one at a time, held beside the others."""
        ...

    @property
    def is_busy(self) -> bool:
        """Whether any are in hand."""
        ...


class Subscription:
    """One queue as one consumer takes it.

    Args:
        url: AMQP URL with the service's own user.
        service: Name for the connection and the consumer tag.
        route: Whose work queue is taken.
        prefetch: Deliveries in hand at once, once the channel is wide.
        settler: Gets what is delivered.
    """

    def __init__(
        self,
        url: str,
        *,
        service: str,
        route: Route,
        prefetch: int,
        settler: Settler,
    ) -> None:
        self._route = route
        self._service = service
        self._tag = ""
        self._tags = count(1)
        self._full = prefetch
        self._settler = settler
        self._connection = ReconnectingConnection(
            url, service=service, purpose="consume", setup=self._subscribe_on
        )
        self.channel: Channel | None = None
        """Where deliveries come from; on any other nothing can be acknowledged any more."""
        self._prefetch = INITIAL_PREFETCH
        self._subscribed: tuple[int, bool] | None = None
        """With which of ``_due`` it is."""
        self._ended = False
        self._subscribing = asyncio.Lock()
        self._deliveries = 0
        self._background: set[asyncio.Task[None]] = set()

    # -- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start connecting; does not wait for the broker."""
        await self._connection.__aenter__()
        self.in_background(self._watch())

    async def end(self) -> None:
        """Take nothing new; what was taken can still be acknowledged."""
        self._ended = True
        for task in list(self._background):
            task.cancel()
        await self.reconcile()

    async def close(self) -> None:
        """Disconnect; what is not acknowledged is delivered again elsewhere."""
        if self.channel is not None:
            self.channel.flush()
        await self._connection.__aexit__()

    async def check(self) -> None:
        """Raise BrokerUnavailableError if nothing can come."""
        await self._connection.check()
        if not self._subscribed:
            raise BrokerUnavailableError("The consumer is not subscribed (yet).")

    def in_background(self, work: Awaitable[Any]) -> None:
        """Do something that ``end`` breaks off."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- subscribing ------------------------------------------------------------------------

    async def _subscribe_on(self, channel: Channel) -> None:
        """Prepare a new channel: what was held on the old one is delivered again on this.

        Also during an outage: something has to be in hand that can probe.
        """
        await check_topology(channel, queues=queues(self._route))
        async with self._subscribing:
            self._settler.release_waiting()
            self.channel, self._prefetch, self._subscribed = channel, INITIAL_PREFETCH, None
            channel.underlying.on_consumer_cancel_callbacks.add(self._cancelled_by_broker)
            if (due := self._due) is not None:
                await self._consume(channel, due)

    async def reconcile(self) -> None:
        """Subscribe as is due now, or unsubscribe; one step at a time.

        A cancel may be answered after the next probe has got through: without the lock its
        answer would end the new subscription, and nobody would notice.
        """
        async with self._subscribing:
            try:
                while self._due != self._subscribed:
                    # ``reopen_channel`` may take it away while one of these waits for the broker.
                    if (channel := self.channel) is None or channel.closed:
                        return
                    if self._subscribed:
                        await channel.underlying.basic_cancel(self._tag, timeout=CANCEL_SECONDS)
                    self._subscribed = None
                    if (due := self._due) is not None:
                        await self._consume(channel, due)
            except CHANNEL_LOST as error:
                # In doubt about what the broker thinks, begin again on a new channel.
                log.warning("consumer.unsure", queue=self._route.queue, reason=type(error).__name__)
                if self.channel is not None:
                    self.channel.close()

    @property
    def _due(self) -> tuple[int, bool] | None:
        """The prefetch that is due now, and whether the neighbours are there; None for nothing.

        During an outage one delivery more than what is held: if all that is held fails for
        reasons of its own, somebody else has to show it.
        """
        if self._ended:
            return None
        is_open = self._settler.is_open
        return (self._prefetch if is_open else INITIAL_PREFETCH), is_open

    async def _consume(self, channel: Channel, due: tuple[int, bool]) -> None:
        # A tag of its own each time: where one is used again while deliveries of the first are
        # in hand, a quorum queue of RabbitMQ 3.10 loses count and the broker hangs up (541).
        self._tag = f"{self._service}-{next(self._tags)}"
        await channel.underlying.basic_qos(prefetch_count=due[0])
        await channel.consume(self._route.queue, self._tag, partial(self._received, channel))
        self._subscribed = due

    def reopen_channel(self) -> None:
        """Begin again on a new channel: the broker delivers all again that is in hand."""
        channel, self.channel = self.channel, None
        if channel is not None:
            channel.close()

    def _cancelled_by_broker(self, *_: object) -> None:
        """The queue was deleted or its leader moved."""
        log.warning("consumer.cancelled_by_broker", queue=self._route.queue)
        self.reopen_channel()

    # -- deliveries -------------------------------------------------------------------------

    def _received(self, channel: Channel, tag: int, delivery: Delivery) -> None:
        if channel is not self.channel:
            return
        self._deliveries += 1
        headers = delivery.headers
        if (DELIVERY_COUNT in headers or PREVIOUS_DELIVERIES in headers) and is_suspect(delivery):
            self._settler.handle_exclusively(channel, tag, delivery)
        elif self._settler.begin(channel, tag, delivery) and self._prefetch != self._full:
            self.raise_prefetch()

    def raise_prefetch(self) -> None:
        """Have as much in hand as allowed: an ordinary message was begun with."""
        if self._prefetch != self._full:
            self._prefetch = self._full
            self.in_background(self.reconcile())

    # -- watching ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Begin on a new channel where the broker has forgotten that we subscribed.

        RabbitMQ 3.10 does when a queue is deleted and made again within milliseconds: it
        counts our consumer and gives it nothing, or counts as given what never arrives.
        """
        idle = timedelta()
        while True:
            seen = self._deliveries
            await asyncio.sleep(WATCH_INTERVAL.total_seconds())
            if self._settler.is_busy or self._deliveries != seen or not self._subscribed:
                idle = timedelta()
                continue
            idle += WATCH_INTERVAL
            waiting = await self._count_waiting()
            if (waiting and self._deliveries == seen) or idle >= LONGEST_IDLE:
                log.info("consumer.renewed", queue=self._route.queue, waiting=waiting)
                idle = timedelta()
                self.reopen_channel()

    async def _count_waiting(self) -> int:
        counts = None
        if self.channel is not None:
            with suppress(*CHANNEL_LOST):
                counts = await count_queues(self.channel, self._route.queue)
        return counts[0].ready if counts else 0
