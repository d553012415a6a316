"""Consumes a queue: subscribes, pauses, drains, and acknowledges what is settled."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from typing import Any

import structlog
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError
from aiormq.abc import DeliveredMessage

from common import metrics
from common.breaker import Breaker
from common.context import enter_message
from common.dispatcher import Dispatcher, Handlers, Outcome
from common.envelope import Delivery
from common.errors import UnavailableError
from common.link import Link, check_topology, wire_of
from common.plain_wire import PlainWire
from common.publisher import Publisher
from common.topology import Route, queues
from common.wire import Wire

log = structlog.get_logger()

DRAIN_SECONDS = 20.0
"""How long handlers may go on after SIGTERM; then they are cancelled and delivered again."""

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
        batched: bool,
    ) -> None:
        self._dispatcher = dispatcher
        self._route = dispatcher.route
        self._service = service
        self._prefetch = prefetch
        self._batched = batched
        self._link = Link(url, service=service, purpose="consume", setup=self._subscribe_on)
        self._breaker = Breaker(on_pause=self._paused, on_resume=self._resumed)
        self._wire: Wire | PlainWire | None = None
        self._subscribed = False
        self._stopping = False
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
        await self._link.__aenter__()

    async def drain(self) -> None:
        """Take nothing new, let what runs finish, leave the rest to redelivery."""
        self._stopping = True
        await self._unsubscribe()
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

    # -- subscription -----------------------------------------------------------------------

    async def _subscribe_on(self, channel: AbstractChannel) -> None:
        """Prepare a new channel: what was held on the old one is delivered again on this."""
        for task in list(self._waiting):
            task.cancel()
        await check_topology(channel, queues=queues(self._route))
        self._wire = await wire_of(channel, batched=self._batched)
        self._wire.channel.on_consumer_cancel_callbacks.add(self._cancelled_by_broker)
        await self._wire.channel.basic_qos(prefetch_count=self._prefetch)
        await self._subscribe()

    async def _subscribe(self) -> None:
        if self._wire is None or self._stopping:
            return
        await self._wire.channel.basic_consume(
            self._route.queue, self._received, consumer_tag=self._service
        )
        self._subscribed = True

    async def _unsubscribe(self) -> None:
        wire, subscribed = self._wire, self._subscribed
        self._subscribed = False
        if wire is not None and subscribed and not wire.closed:
            with suppress(AMQPError, OSError, RuntimeError, TimeoutError):
                await wire.channel.basic_cancel(self._service, timeout=5)

    def _cancelled_by_broker(self, *_: object) -> None:
        """The queue was deleted or its leader moved: begin again on a new channel."""
        log.warning("consumer.cancelled_by_broker", queue=self._route.queue)
        if self._wire is not None:
            self._in_background(self._wire.channel.close())

    def _paused(self, error: UnavailableError) -> None:
        log.warning(
            "consumer.paused", queue=self._route.queue, code=error.code, reason=error.detail
        )
        metrics.CONSUMER_PAUSED.labels(self._route.queue).set(1)
        metrics.CONSUMER_PAUSES.labels(self._route.queue, error.code).inc()
        self._in_background(self._unsubscribe())

    def _resumed(self) -> None:
        log.info("consumer.resumed", queue=self._route.queue, held=len(self._waiting))
        metrics.CONSUMER_PAUSED.labels(self._route.queue).set(0)
        self._in_background(self._subscribe_again())

    async def _subscribe_again(self) -> None:
        # A new subscription brings a new prefetch: first work off what is held.
        while len(self._in_hand) > self._prefetch // 2 and not self._breaker.paused:
            await asyncio.wait(self._in_hand, return_when=asyncio.FIRST_COMPLETED)
        if not self._breaker.paused and not self._subscribed:
            with suppress(AMQPError, OSError, RuntimeError):
                await self._subscribe()

    def _in_background(self, work: Awaitable[Any]) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # -- deliveries -------------------------------------------------------------------------

    async def _received(self, message: DeliveredMessage) -> None:
        """Handle and settle one delivery; runs as a task of its own."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - aiormq calls consumers in tasks
        queue = self._route.queue
        started = time.perf_counter()
        self._in_hand.add(task)
        try:
            outcome = await self._work_off(_delivery(message), task)
            self._acknowledge(message)
            self._settled[outcome].inc()
            self._seconds.observe(time.perf_counter() - started)
        except asyncio.CancelledError:
            # Drained, or its channel is gone: nobody settles it, so it is delivered again.
            metrics.DELIVERIES.labels(queue, "left_to_redelivery").inc()
        except (AMQPError, OSError, RuntimeError):
            # The work is done but the ack could not be sent: it is delivered again, and every
            # handler is safe to run twice.
            metrics.DELIVERIES.labels(queue, "ack_lost").inc()
            log.info("delivery.ack_lost", queue=queue)
        finally:
            self._in_hand.discard(task)

    def _acknowledge(self, message: DeliveredMessage) -> None:
        # Only on the channel it came by: on a newer one the same tag means another message.
        if self._wire is None or self._wire.closed or self._wire.channel is not message.channel:
            raise ConnectionResetError
        self._wire.acknowledge(message.delivery_tag or 0)

    async def _work_off(self, delivery: Delivery, task: asyncio.Task[None]) -> Outcome:
        """Repeat through outages until there is an outcome."""
        enter_message(str(delivery.id), delivery.sane_correlation_id, delivery.traceparent)
        while True:
            self._waiting.add(task)
            try:
                async with self._breaker.passage():
                    self._waiting.discard(task)
                    return await self._dispatcher.dispatch(delivery)
            except UnavailableError:
                continue
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
    batched: bool = True,
) -> AsyncIterator[Consumer]:
    """Consume the handlers' route until the block is left; then drain.

    Args:
        url: AMQP URL with the service's own user.
        handlers: Which handler takes which contract, all of one route.
        service: Name that dead letters carry as the failing service.
        publisher: Publishes retries and dead letters.
        prefetch: Deliveries in hand at once.
        retry_delays: Waits before each retry; at most the route's steps.
        batched: Acknowledge what ends in one turn of the event loop at once.

    Raises:
        SettingError: More retries are wanted than the route has steps.
    """
    dispatcher = Dispatcher(
        service=service, handlers=handlers, publisher=publisher, retry_delays=retry_delays
    )
    consumer = Consumer(
        url, service=service, dispatcher=dispatcher, prefetch=prefetch, batched=batched
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.drain()


def republished_to(route: Route) -> list[str]:
    """The exchanges that a consumer of ``route`` publishes to by itself."""
    return [*route.retries, route.dead_letter_exchange]


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
        headers=dict(properties.headers or {}),
        redelivered=bool(message.redelivered),
    )
