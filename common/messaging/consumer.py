"""Consumes a queue: handles deliveries, holds them while neighbours are away, settles each."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import structlog

from common import metrics
from common.amqp.channel import Channel
from common.amqp.message import Delivery
from common.amqp.publisher import Publisher
from common.context import enter_message
from common.errors import UnavailableError
from common.failpoints import failpoint
from common.messaging.dispatcher import Dispatcher, Handlers, Outcome
from common.messaging.pause import FIRST_PROBE_SECONDS, Ask, Case, OutageGate, Verdict
from common.messaging.quarantine import (
    EXCLUSIVE_WAIT_SECONDS,
    CrashMarkers,
    Quarantine,
    exclusive_wait,
    is_suspect,
)
from common.messaging.subscription import Subscription

log = structlog.get_logger()

DRAIN_SECONDS = 20.0
"""How long handlers may go on after SIGTERM; then they are cancelled and delivered again."""

CANCEL_GRACE_SECONDS = 5.0
"""How long cancelled handlers may take to marker how far they came."""

ASIDE_LASTS = timedelta(seconds=10)
"""How long at most a message waits in a retry step, uncounted, while others probe in its place."""

LAST_TRIES = 5
"""So often a message whose tries are used up fails by itself, put aside in between, until it is
dead-lettered over an unavailable neighbour."""

Dispatch = Callable[[Delivery], Awaitable[Outcome]]


class Consumer:
    """Takes deliveries of one queue, many at once, and settles each."""

    def __init__(
        self,
        url: str,
        *,
        service: str,
        dispatcher: Dispatcher,
        prefetch: int,
        markers: Path | None = None,
        ask: Ask | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._route = dispatcher.route
        self._prefetch = prefetch
        self._suspects = Quarantine(dispatcher, CrashMarkers.of(self._route.queue, markers))
        self._subscription = Subscription(
            url, service=service, route=self._route, prefetch=prefetch, settler=self
        )
        self._gate = OutageGate(on_pause=self._paused, on_resume=self._resumed, ask=ask)
        self._stopping = False
        self._in_hand: set[asyncio.Task[None]] = set()
        self._backlog: deque[tuple[Channel, int, Delivery]] = deque()
        self._waiting: set[asyncio.Task[None]] = set()
        queue = self._route.queue
        metrics.IN_FLIGHT.labels(queue).set_function(self._count_in_hand)
        # Looked up once: a lookup costs as much as counting.
        self._settled = {outcome: metrics.DELIVERIES.labels(queue, outcome) for outcome in Outcome}
        self._seconds = metrics.DELIVERY_SECONDS.labels(queue)

    # -- life -------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start connecting; does not wait for the broker."""
        self._loop = asyncio.get_running_loop()
        await self._subscription.start()

    async def drain(self) -> None:
        """Take nothing new, let what runs finish, leave the rest to redelivery."""
        self._stopping = True
        await self._subscription.end()
        self.release_waiting()
        if self._in_hand:
            log.info("consumer.draining", queue=self._route.queue, in_flight=self._count_in_hand())
            await asyncio.wait(self._in_hand, timeout=DRAIN_SECONDS)
        for task in list(self._in_hand):
            task.cancel()
        if self._in_hand:
            await asyncio.wait(self._in_hand, timeout=CANCEL_GRACE_SECONDS)
        await self._subscription.close()

    async def check(self) -> None:
        """Raise what keeps it from working, if anything does."""
        if (failure := self._gate.failure) is not None:
            raise type(failure)(f"Paused; nothing is lost. {failure.detail}")
        await self._subscription.check()

    # -- outages ----------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        """Whether deliveries are to come freely: while a neighbour is away, one by one."""
        return not self._gate.paused

    @property
    def is_busy(self) -> bool:
        """Whether any delivery is in hand."""
        return bool(self._in_hand)

    def _count_in_hand(self) -> int:
        """Deliveries begun, and those in line; the one at its head is both."""
        return len(self._in_hand) + max(len(self._backlog) - 1, 0)

    def release_waiting(self) -> None:
        """Forget what waits for its turn: it will be delivered again."""
        self._suspects.no_longer_exclusive()
        for task in list(self._waiting):
            task.cancel()

    def _paused(self, error: UnavailableError) -> None:
        log.warning(
            "consumer.paused", queue=self._route.queue, code=error.code, reason=error.detail
        )
        metrics.CONSUMER_PAUSED.labels(self._route.queue).set(1)
        metrics.CONSUMER_PAUSES.labels(self._route.queue, error.code).inc()
        self._subscription.in_background(self._subscription.reconcile())

    def _resumed(self) -> None:
        log.info("consumer.resumed", queue=self._route.queue, held=len(self._waiting))
        metrics.CONSUMER_PAUSED.labels(self._route.queue).set(0)
        self._subscription.in_background(self._subscribe_again())

    async def _subscribe_again(self) -> None:
        # A new subscription brings a new prefetch: first work off what is held.
        while self._count_in_hand() > self._prefetch // 2 and not self._gate.paused:
            await asyncio.wait(self._in_hand, return_when=asyncio.FIRST_COMPLETED)
        await self._subscription.reconcile()

    # -- deliveries -------------------------------------------------------------------------

    def begin(self, channel: Channel, tag: int, delivery: Delivery) -> bool:
        """Begin with one delivery, in a task of our own; False if it has to wait for a suspect.

        Not of the channel's: cancelled with it, a mail whose text is out would count as
        unsure and go out again, though its server is about to say 250.
        """
        if self._backlog:
            self._backlog.append((channel, tag, delivery))
            return False
        self._start(self._settle(channel, tag, delivery, self._dispatcher.dispatch))
        return True

    def handle_exclusively(self, channel: Channel, tag: int, delivery: Delivery) -> None:
        """Begin with a suspect once nothing else is in hand; what comes after it waits."""
        self._backlog.append((channel, tag, delivery))
        if len(self._backlog) == 1:
            self._start(self._drain_backlog())

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._in_hand.add(task)
        task.add_done_callback(self._in_hand.discard)

    async def _drain_backlog(self) -> None:
        """Suspects one after the other, each alone; what came behind them side by side.

        The one that is being handled stays at the head: as long as there is one, nothing
        begins by itself.
        """
        since: dict[asyncio.Task[None], float] = {}
        ordinary = False
        try:
            while self._backlog:
                channel, tag, delivery = self._backlog[0]
                if self._stopping or not self._is_current(channel):
                    pass  # it is delivered again
                elif is_suspect(delivery):
                    await self._settle_alone(channel, tag, delivery, since)
                else:
                    ordinary = True
                    self._start(self._settle(channel, tag, delivery, self._dispatcher.dispatch))
                self._backlog.popleft()
            if ordinary and not self._stopping:
                self._subscription.raise_prefetch()
        finally:
            if self._backlog:  # cancelled, or a fault of ours: nobody else would begin with these
                self._backlog.clear()
                self._renew_unless_done(channel)

    async def _settle_alone(
        self, channel: Channel, tag: int, delivery: Delivery, since: dict[asyncio.Task[None], float]
    ) -> None:
        """Handle a suspect, or put it aside if what is in hand outlasts its wait.

        Args:
            channel: Where it came from.
            tag: Its tag there.
            delivery: The suspect.
            since: From when on this line has waited for a task; for this suspect, or for others
                before it.
        """
        deferrals = not await self._is_alone_in_time(channel, delivery, since)

        def alone() -> bool:
            return self._is_current(channel) and len(self._in_hand) == 1

        dispatch = partial(self._suspects.dispatch, alone=alone, defer=deferrals)
        if self._is_current(channel) and not self._stopping:
            await self._settle(channel, tag, delivery, dispatch)

    async def _is_alone_in_time(
        self, channel: Channel, delivery: Delivery, since: dict[asyncio.Task[None], float]
    ) -> bool:
        """Wait until nothing else is in hand; an outage that holds the others is not counted."""
        allowed = exclusive_wait(delivery)
        told = False
        while others := self._in_hand - {asyncio.current_task()}:
            now = self._loop.time()
            if self._gate.paused:
                since.clear()
            elif now - min(since.setdefault(task, now) for task in others) >= allowed:
                return False
            if self._stopping or not self._is_current(channel):
                return False
            if not told:
                told = True
                queue = self._route.queue
                log.info("quarantine.waiting", queue=queue, others=len(others), seconds=allowed)
            await asyncio.wait(others, timeout=min(allowed, EXCLUSIVE_WAIT_SECONDS))
        return True

    async def _settle(
        self, channel: Channel, tag: int, delivery: Delivery, dispatch: Dispatch
    ) -> None:
        """Handle one delivery and acknowledge it, or leave it to be delivered again."""
        queue = self._route.queue
        started = time.perf_counter()
        try:
            outcome = await self._handle_with_retry(delivery, dispatch)
            failpoint("w19")
            # Only on the channel it came by: on a newer one the same tag means another message.
            if self._is_current(channel):
                channel.acknowledge(tag)
                self._settled[outcome].inc()
                self._seconds.observe(time.perf_counter() - started)
            else:
                # The work is done, but its channel is gone: it is delivered again, and every
                # handler is safe to run twice.
                metrics.DELIVERIES.labels(queue, "ack_lost").inc()
                log.info("delivery.ack_lost", queue=queue)
        except asyncio.CancelledError:
            metrics.DELIVERIES.labels(queue, "requeued").inc()
            self._renew_unless_done(channel)
        except Exception:  # a fault of ours: unsettled, it would stay in hand for ever
            metrics.DELIVERIES.labels(queue, "requeued").inc()
            log.exception("delivery.failed_internally", queue=queue)
            self._subscription.reopen_channel()

    def _renew_unless_done(self, channel: Channel) -> None:
        """Have unsettled deliveries given again, where neither a stop nor a new channel does so."""
        if self._is_current(channel) and not self._stopping:
            self._subscription.reopen_channel()

    def _is_current(self, channel: Channel) -> bool:
        return channel is self._subscription.channel and not channel.closed

    async def _handle_with_retry(self, delivery: Delivery, dispatch: Dispatch) -> Outcome:
        """Repeat through outages until there is an outcome."""
        enter_message(str(delivery.id), delivery.valid_correlation_id, delivery.traceparent)
        if self._gate.paused:
            return await self._handle_as_probe(delivery, dispatch, None)
        evidence = self._gate.evidence
        begun_at = evidence.failures
        try:
            outcome = await dispatch(delivery)
        except UnavailableError as error:
            return await self._handle_as_probe(delivery, dispatch, error)
        if outcome is Outcome.HANDLED and evidence.is_doubtful:
            self._gate.got_through(begun_at)
        return outcome

    async def _handle_as_probe(
        self, delivery: Delivery, dispatch: Dispatch, error: UnavailableError | None
    ) -> Outcome:
        """Hold a delivery until the neighbours are back, or until it has failed by itself."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - called by a task
        gate = self._gate
        case = gate.evidence.case(delivery.id)
        try:
            if error is not None and (outcome := await self._judge(delivery, case, error)):
                return outcome
            while True:
                self._waiting.add(task)
                if case.failures and not gate.paused:
                    await asyncio.sleep(FIRST_PROBE_SECONDS)
                async with gate.pass_through(case):
                    begun_at = gate.evidence.failures
                    self._waiting.discard(task)
                    try:
                        outcome = await dispatch(delivery)
                    except UnavailableError as again:
                        if outcome := await self._judge(delivery, case, again):
                            return outcome
                        continue
                    if outcome is Outcome.HANDLED:
                        gate.got_through(begun_at)
                    else:
                        await gate.told_nothing(case)
                    return outcome
        finally:
            self._waiting.discard(task)

    async def _judge(
        self, delivery: Delivery, case: Case, error: UnavailableError
    ) -> Outcome | None:
        """Say what becomes of a delivery that met an unavailable neighbour; None: it is held."""
        if self._stopping:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - called by a task
        self._waiting.add(task)
        verdict = await self._gate.failed(case, error)
        if verdict is Verdict.HOLD:
            return None
        self._waiting.discard(task)  # from here on it may live on elsewhere
        try:
            if verdict is Verdict.OWN and self._may_take_next_step(delivery, case):
                return await self._retry(delivery, error)
            return await self._dispatcher.defer(delivery, ASIDE_LASTS, code=error.code)
        except UnavailableError:  # of the broker: held, and the next round will tell
            self._waiting.add(task)
            return None

    def _may_take_next_step(self, delivery: Delivery, case: Case) -> bool:
        """Whether it may go to its next step; the last one is not taken lightly.

        A link that breaks now and then looks to some messages as if others always got through. And
        one that nobody else came by may have met an outage that the neighbour does not admit.
        """
        if not self._dispatcher.is_last_attempt(delivery):
            return True
        if not case.refuted:
            return False
        case.last_tries += 1
        return case.last_tries >= LAST_TRIES

    async def _retry(self, delivery: Delivery, error: UnavailableError) -> Outcome:
        """To the next retry step, or to the dead letters; if those are full, wait elsewhere."""
        try:
            return await self._dispatcher.retry(delivery, error)
        except UnavailableError as refused:
            return await self._dispatcher.defer(delivery, ASIDE_LASTS, code=refused.code)


@asynccontextmanager
async def consuming(
    url: str,
    handlers: Handlers,
    *,
    service: str,
    publisher: Publisher,
    prefetch: int,
    retry_delays: Sequence[timedelta],
    markers: Path | None = None,
    ask: Ask | None = None,
) -> AsyncIterator[Consumer]:
    """Consume the handlers' route until the block is left; then drain.

    Args:
        url: AMQP URL with the service's own user.
        handlers: Which handler takes which contract, all of one route.
        service: Name that dead letters carry as the failing service.
        publisher: Publishes retries and dead letters.
        prefetch: Deliveries in hand at once.
        retry_delays: Waits before each retry; at most the route's steps.
        markers: Folder for markers about messages that may kill their process.
        ask: Asks the neighbours of the handlers whether they are well.

    Raises:
        SettingError: More retries are wanted than the route has steps.
    """
    dispatcher = Dispatcher(
        service=service, handlers=handlers, publisher=publisher, retry_delays=retry_delays
    )
    consumer = Consumer(
        url,
        service=service,
        dispatcher=dispatcher,
        prefetch=prefetch,
        markers=markers,
        ask=ask,
    )
    await consumer.start()
    try:
        yield consumer
    finally:
        await consumer.drain()
