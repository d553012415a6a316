"""Consumes a queue: subscribes, pauses, drains, and acknowledges what is settled."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from typing import Any

import structlog
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError

from common import metrics
from common.breaker import Breaker
from common.context import enter_message
from common.dispatcher import Dispatcher, Handlers, Outcome
from common.envelope import Delivery
from common.errors import BrokerUnavailableError, UnavailableError
from common.link import Link, check_topology
from common.plain_wire import PlainWire
from common.publisher import Publisher
from common.topology import queues
from common.wire import Wire

log = structlog.get_logger()

DRAIN_SECONDS = 20.0
"""How long handlers may go on after SIGTERM; then they are cancelled and delivered again."""

CANCEL_SECONDS = 5.0
"""Longest wait for the broker to answer a cancel."""

WATCH_INTERVAL = timedelta(seconds=15)
"""How often an idle consumer looks whether messages are waiting for it in vain."""

LONGEST_IDLE = timedelta(minutes=10)
"""After so long without a delivery the channel is renewed, whatever the broker counts."""

LAST_WORDS_SECONDS = 5.0
"""How long cancelled handlers may take to note how far they came."""


class Consumer:
    """Takes deliveries of one queue, many at once, and settles each."""

    def __init__(
        self,
        url: str,
        *,
        service: str,
        dispatcher: Dispatcher,
        prefetch: int,
        fast: bool,
    ) -> None:
        self._dispatcher = dispatcher
        self._route = dispatcher.route
        self._service = service
        self._prefetch = prefetch
        self._link = Link(
            url, service=service, purpose="consume", setup=self._subscribe_on, fast=fast
        )
        self._breaker = Breaker(on_pause=self._paused, on_resume=self._resumed)
        self._wire: Wire | PlainWire | None = None
        self._subscribed = False
        self._subscribing = asyncio.Lock()
        self._stopping = False
        self._deliveries = 0
        self._in_hand: set[asyncio.Task[None]] = set()
        self._waiting: set[asyncio.Task[None]] = set()
        self._background: set[asyncio.Task[None]] = set()
        queue = self._route.queue
        metrics.IN_HAND.labels(queue).set_function(lambda: len(self._in_hand))
        # Looked up once: a lookup costs as much as counting.
        self._settled = {outcome: metrics.DELIVERIES.labels(queue, outcome) for outcome in Outcome}
        self._seconds = metrics.DELIVERY_SECONDS.labels(queue)

    # -- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start connecting; does not wait for the broker."""
        self._loop = asyncio.get_running_loop()
        await self._link.__aenter__()
        self._in_background(self._watch())

    async def drain(self) -> None:
        """Take nothing new, let what runs finish, leave the rest to redelivery."""
        self._stopping = True
        for task in list(self._background):
            task.cancel()
        await self._reconcile()
        for task in list(self._waiting):
            task.cancel()
        if self._in_hand:
            log.info("consumer.draining", queue=self._route.queue, in_hand=len(self._in_hand))
            await asyncio.wait(self._in_hand, timeout=DRAIN_SECONDS)
        for task in list(self._in_hand):
            task.cancel()
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=LAST_WORDS_SECONDS)
        if self._wire is not None:
            await self._wire.drain()
        await self._link.__aexit__()

    async def check(self) -> None:
        """Raise what keeps it from working, if anything does."""
        await self._link.check()
        if self._breaker.failure is not None:
            raise self._breaker.failure
        if not self._subscribed:
            raise BrokerUnavailableError("The consumer is not subscribed (yet).")

    # -- subscription -----------------------------------------------------------------------

    async def _subscribe_on(self, channel: AbstractChannel, wire: Wire | PlainWire) -> None:
        """Prepare a new channel: what was held on the old one is delivered again on this.

        Also during an outage: something has to be in hand that can probe.
        """
        for task in list(self._waiting):
            task.cancel()
        await check_topology(channel, queues=queues(self._route))
        async with self._subscribing:
            self._subscribed = False
            self._wire = wire
            wire.channel.on_consumer_cancel_callbacks.add(self._cancelled_by_broker)
            await wire.channel.basic_qos(prefetch_count=self._prefetch)
            if not self._stopping:
                await self._consume(wire)

    async def _reconcile(self) -> None:
        """Subscribe while nothing is away, unsubscribe otherwise; one step at a time.

        A cancel may be answered after the next probe has got through: without the lock its
        answer would end the new subscription, and nobody would notice.
        """
        async with self._subscribing:
            wire = self._wire
            try:
                while wire is not None and not wire.closed and self._wanted != self._subscribed:
                    if self._wanted:
                        await self._consume(wire)
                    else:
                        await wire.channel.basic_cancel(self._service, timeout=CANCEL_SECONDS)
                        self._subscribed = False
            except (AMQPError, OSError, RuntimeError, TimeoutError) as error:
                # In doubt about what the broker thinks, begin again on a new channel.
                log.warning("consumer.unsure", queue=self._route.queue, reason=type(error).__name__)
                await self._give_up_channel()

    async def _consume(self, wire: Wire | PlainWire) -> None:
        await wire.consume(self._route.queue, self._service, partial(self._received, wire))
        self._subscribed = True

    @property
    def _wanted(self) -> bool:
        return not self._breaker.paused and not self._stopping

    async def _give_up_channel(self) -> None:
        """Close the channel; the link opens another one, and the broker delivers again."""
        if self._wire is not None:
            with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
                await self._wire.channel.close()

    def _cancelled_by_broker(self, *_: object) -> None:
        """The queue was deleted or its leader moved."""
        log.warning("consumer.cancelled_by_broker", queue=self._route.queue)
        self._in_background(self._give_up_channel())

    def _paused(self, error: UnavailableError) -> None:
        log.warning(
            "consumer.paused", queue=self._route.queue, code=error.code, reason=error.detail
        )
        metrics.CONSUMER_PAUSED.labels(self._route.queue).set(1)
        metrics.CONSUMER_PAUSES.labels(self._route.queue, error.code).inc()
        self._in_background(self._reconcile())

    def _resumed(self) -> None:
        log.info("consumer.resumed", queue=self._route.queue, held=len(self._waiting))
        metrics.CONSUMER_PAUSED.labels(self._route.queue).set(0)
        self._in_background(self._subscribe_again())

    async def _subscribe_again(self) -> None:
        # A new subscription brings a new prefetch: first work off what is held.
        while len(self._in_hand) > self._prefetch // 2 and not self._breaker.paused:
            await asyncio.wait(self._in_hand, return_when=asyncio.FIRST_COMPLETED)
        await self._reconcile()

    async def _watch(self) -> None:
        """Begin on a new channel where the broker has forgotten that we subscribed.

        RabbitMQ 3.10 does when a queue is deleted and made again within milliseconds: it
        counts our consumer and gives it nothing, or counts as given what never arrives.
        """
        idle = timedelta()
        while True:
            seen = self._deliveries
            await asyncio.sleep(WATCH_INTERVAL.total_seconds())
            if self._in_hand or self._deliveries != seen or not self._subscribed:
                idle = timedelta()
                continue
            idle += WATCH_INTERVAL
            waiting = await self._count_waiting()
            if (waiting and self._deliveries == seen) or idle >= LONGEST_IDLE:
                log.info("consumer.renewed", queue=self._route.queue, waiting=waiting)
                idle = timedelta()
                await self._give_up_channel()

    async def _count_waiting(self) -> int:
        if self._wire is None:
            return 0
        with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
            declared = await self._wire.channel.queue_declare(
                self._route.queue, passive=True, timeout=CANCEL_SECONDS
            )
            return declared.message_count or 0
        return 0

    def _in_background(self, work: Awaitable[Any]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- deliveries -------------------------------------------------------------------------

    def _received(self, wire: Wire | PlainWire, tag: int, delivery: Delivery) -> None:
        """Begin with one delivery, in a task of our own.

        Not of the channel's: cancelled with it, a mail whose text is out would count as
        unsure and go out again, though its server is about to say 250.
        """
        if wire is self._wire:
            self._deliveries += 1
            task = self._loop.create_task(self._settle(wire, tag, delivery))
            self._in_hand.add(task)
            task.add_done_callback(self._in_hand.discard)

    async def _settle(self, wire: Wire | PlainWire, tag: int, delivery: Delivery) -> None:
        """Handle one delivery and acknowledge it, or leave it to be delivered again."""
        queue = self._route.queue
        started = time.perf_counter()
        try:
            outcome = await self._work_off(delivery)
            # Only on the channel it came by: on a newer one the same tag means another message.
            if wire is self._wire and not wire.closed:
                wire.acknowledge(tag)
                self._settled[outcome].inc()
                self._seconds.observe(time.perf_counter() - started)
            else:
                # The work is done, but its channel is gone: it is delivered again, and every
                # handler is safe to run twice.
                metrics.DELIVERIES.labels(queue, "ack_lost").inc()
                log.info("delivery.ack_lost", queue=queue)
        except asyncio.CancelledError:
            metrics.DELIVERIES.labels(queue, "left_to_redelivery").inc()
        except Exception:  # a fault of ours: unsettled, it would stay in hand for ever
            metrics.DELIVERIES.labels(queue, "left_to_redelivery").inc()
            log.exception("delivery.unsettled", queue=queue)
            await self._give_up_channel()

    async def _work_off(self, delivery: Delivery) -> Outcome:
        """Repeat through outages until there is an outcome."""
        enter_message(str(delivery.id), delivery.sane_correlation_id, delivery.traceparent)
        while True:
            try:
                if self._breaker.paused:
                    return await self._work_off_in_turn(delivery)
                return await self._dispatcher.dispatch(delivery)
            except UnavailableError as error:
                self._breaker.trip(error)
                if self._stopping:
                    raise asyncio.CancelledError from None

    async def _work_off_in_turn(self, delivery: Delivery) -> Outcome:
        """Hold a delivery until the neighbours are back, or until it is its turn to probe."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - called by a task
        self._waiting.add(task)
        try:
            async with self._breaker.passage():
                self._waiting.discard(task)
                return await self._dispatcher.dispatch(delivery)
        finally:
            self._waiting.discard(task)


@asynccontextmanager
async def consuming(
    url: str,
    handlers: Handlers,
    *,
    service: str,
    publisher: Publisher,
    prefetch: int,
    retry_delays: Sequence[timedelta],
    fast: bool = True,
) -> AsyncIterator[Consumer]:
    """Consume the handlers' route until the block is left; then drain.

    Args:
        url: AMQP URL with the service's own user.
        handlers: Which handler takes which contract, all of one route.
        service: Name that dead letters carry as the failing service.
        publisher: Publishes retries and dead letters.
        prefetch: Deliveries in hand at once.
        retry_delays: Waits before each retry; at most the route's steps.
        fast: Read and write the busy frames ourselves.

    Raises:
        SettingError: More retries are wanted than the route has steps.
    """
    dispatcher = Dispatcher(
        service=service, handlers=handlers, publisher=publisher, retry_delays=retry_delays
    )
    consumer = Consumer(url, service=service, dispatcher=dispatcher, prefetch=prefetch, fast=fast)
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.drain()
