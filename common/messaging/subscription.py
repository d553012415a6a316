"""Keeps a queue subscribed, on whatever channel there is, as ``ConsumerState`` demands it."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from functools import partial
from itertools import count
from typing import Any

import structlog

from common.amqp.channel import CHANNEL_LOST, Channel
from common.amqp.connection import (
    ReconnectingConnection,
    check_topology,
    count_queues,
    translated,
)
from common.amqp.message import Delivery
from common.contracts.topology import Route, queues
from common.errors import BrokerUnavailableError, UnavailableError
from common.messaging.consumer_state import ConsumerState, Received
from common.messaging.quarantine import needs_quarantine

log = structlog.get_logger()

CANCEL_SECONDS = 5.0
"""Longest wait for the broker to answer a cancel."""

WATCH_INTERVAL = timedelta(seconds=15)
"""How often an idle subscription checks whether messages wait for it and do not come."""

LONGEST_IDLE = timedelta(minutes=10)
"""After so long without a delivery the channel is reopened, whatever the broker counts."""


class Subscription:
    """One queue as one consumer takes it.

    Args:
        url: AMQP URL with the service's own user.
        service: Name for the connection and the consumer tag.
        route: Whose work queue is taken.
        state: Says what to subscribe to; learns of each channel.
        on_channel: Called when a new channel takes the place of the last one, before deliveries.
        on_delivery: Called with each delivery.
    """

    def __init__(
        self,
        url: str,
        *,
        service: str,
        route: Route,
        state: ConsumerState,
        on_channel: Callable[[], None],
        on_delivery: Callable[[Received], None],
    ) -> None:
        self._route = route
        self._service = service
        self._state = state
        self._on_channel = on_channel
        self._on_delivery = on_delivery
        self._tag = ""
        self._tags = count(1)
        self._connection = ReconnectingConnection(
            url, service=service, purpose="consume", setup=self._subscribe_on
        )
        self._subscribed: tuple[int, bool] | None = None
        self._demanded: tuple[int, bool] | None = None
        """What ``update`` has seen last; a change and back again is another object."""
        self._subscribing = asyncio.Lock()
        self._deliveries = 0
        self._uncountable: Channel | None = None
        self._background: set[asyncio.Task[None]] = set()

    # -- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start connecting; does not wait for the broker."""
        await self._connection.__aenter__()
        self._in_background(self._watch())

    async def end(self) -> None:
        """Take nothing new, as the state demands now; what was taken can still be acknowledged."""
        for task in list(self._background):
            task.cancel()
        await self._reconcile()

    async def close(self) -> None:
        """Disconnect; what is not acknowledged is delivered again elsewhere."""
        if self._state.channel is not None:
            self._state.channel.flush()
        await self._connection.__aexit__()

    async def check(self) -> None:
        """Raise BrokerUnavailableError if nothing can come."""
        await self._connection.check()
        if not self._subscribed:
            raise BrokerUnavailableError("The consumer is not subscribed (yet).")

    def _in_background(self, work: Awaitable[Any]) -> None:
        """Do something that ``end`` cancels."""
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- subscribing ------------------------------------------------------------------------

    async def _subscribe_on(self, channel: Channel) -> None:
        """Prepare a new channel: what was held on the old one is delivered again on this.

        Also during an outage: something has to be in flight that can probe.
        """
        await check_topology(channel, queues=queues(self._route))
        async with self._subscribing:
            self._on_channel()
            self._state.open_channel(channel)
            self._subscribed = None
            channel.underlying.on_consumer_cancel_callbacks.add(self._cancelled_by_broker)
            if (demand := self._state.demand) is not None:
                await self._consume(channel, demand)

    def update(self) -> None:
        """Subscribe as the state demands now, if that has changed."""
        if self._state.demand is not self._demanded:
            self._demanded = self._state.demand
            self._in_background(self._reconcile())

    async def _reconcile(self) -> None:
        """Subscribe as is demanded now, or unsubscribe; one step at a time.

        A cancel may be answered after the next probe has got through: without the lock its
        answer would end the new subscription, unnoticed.
        """
        state = self._state
        async with self._subscribing:
            try:
                while state.demand != self._subscribed:
                    # ``reopen_channel`` may take it away while one of these waits for the broker.
                    if (channel := state.channel) is None or channel.closed:
                        return
                    if self._subscribed:
                        await channel.underlying.basic_cancel(self._tag, timeout=CANCEL_SECONDS)
                    self._subscribed = None
                    if (demand := state.demand) is not None:
                        await self._consume(channel, demand)
            except CHANNEL_LOST as error:
                # In doubt about what the broker thinks, begin again on a new channel.
                log.warning("consumer.unsure", queue=self._route.queue, reason=type(error).__name__)
                if state.channel is not None:
                    state.channel.close()

    async def _consume(self, channel: Channel, demand: tuple[int, bool]) -> None:
        # A tag of its own each time: where one is used again while deliveries of the first are
        # in flight, a quorum queue of RabbitMQ 3.10 loses count and the broker hangs up (541).
        self._tag = f"{self._service}-{next(self._tags)}"
        await channel.underlying.basic_qos(prefetch_count=demand[0])
        await channel.consume(self._route.queue, self._tag, partial(self._received, channel))
        self._subscribed = demand

    def _received(self, channel: Channel, tag: int, delivery: Delivery) -> None:
        self._deliveries += 1
        self._on_delivery(Received(channel, tag, delivery, needs_quarantine(delivery)))

    def reopen_channel(self) -> None:
        """Begin again on a new channel: the broker delivers all that is in flight again."""
        channel = self._state.channel
        self._state.open_channel(None)
        if channel is not None:
            channel.close()

    def _cancelled_by_broker(self, *_: object) -> None:
        """The queue was deleted or its leader moved."""
        log.warning("consumer.cancelled_by_broker", queue=self._route.queue)
        self.reopen_channel()

    # -- watching ---------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Begin on a new channel where the broker has forgotten the subscription.

        RabbitMQ 3.10 does when a queue is deleted and made again within milliseconds: it
        counts our consumer and sends it nothing, or counts as sent what never arrives.
        """
        idle = timedelta()
        while True:
            seen = self._deliveries
            await asyncio.sleep(WATCH_INTERVAL.total_seconds())
            if self._state.taken or self._deliveries != seen or not self._subscribed:
                idle = timedelta()
                continue
            idle += WATCH_INTERVAL
            waiting = await self._count_waiting()
            if (waiting and self._deliveries == seen) or idle >= LONGEST_IDLE:
                log.info("consumer.renewed", queue=self._route.queue, waiting=waiting)
                idle = timedelta()
                self.reopen_channel()

    async def _count_waiting(self) -> int:
        """How many wait; 0 where that cannot be known.

        A broker that refuses to count is asked once on each channel: it logs every refusal.
        """
        channel = self._state.channel
        if channel is None or channel is self._uncountable:
            return 0
        with suppress(UnavailableError), translated("The queue cannot be counted", ""):
            counts = await count_queues(channel, self._route.queue)
            if counts is not None:
                return counts[0].ready
            self._uncountable = channel
        return 0
