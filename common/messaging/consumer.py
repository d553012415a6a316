"""Consumes a queue: handles deliveries, holds them through outages, settles each."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Self

import structlog

from common import metrics
from common.amqp.message import Delivery
from common.amqp.publisher import Publisher
from common.context import enter_message
from common.errors import UnavailableError
from common.failpoints import failpoint
from common.messaging.consumer_state import ConsumerState, Received
from common.messaging.dispatcher import Dispatcher, Handlers, Outcome
from common.messaging.pause import FIRST_PROBE_SECONDS, Ask, Case, Decision, OutageGate
from common.messaging.quarantine import CrashMarkers, Quarantine, exclusive_wait
from common.messaging.subscription import Subscription

log = structlog.get_logger()

DRAIN_SECONDS = 20.0
"""How long handlers may go on after SIGTERM; then they are cancelled and delivered again."""

CANCEL_GRACE_SECONDS = 5.0
"""How long cancelled handlers may take to record how far they came."""

MAX_DEFERRAL = timedelta(seconds=10)
"""Longest wait in a retry step, uncounted, while others probe in the message's place."""

LAST_TRIES = 5
"""How often a message on its last attempt fails by itself, deferred in between, until it is
dead-lettered over an unavailable service."""

Dispatch = Callable[[Delivery], Awaitable[Outcome]]


class Consumer:
    """Takes deliveries of one queue, many at once, and settles each; an async context manager.

    Entering starts to connect and does not wait for the broker; leaving drains.

    Args:
        url: AMQP URL with the service's own user.
        handlers: Which handler takes which contract, all of one route.
        service: Name that dead letters carry as the failing service.
        publisher: Publishes retries and dead letters.
        prefetch: Deliveries in flight at once.
        retry_delays: Waits before each retry; at most the route's steps.
        markers: Folder for crash markers; without one, below the system's for temporary files.
        ask: Asks the services that the handlers need whether they are well.

    Raises:
        SettingError: More retries are wanted than the route has steps.
    """

    def __init__(
        self,
        url: str,
        handlers: Handlers,
        *,
        service: str,
        publisher: Publisher,
        prefetch: int,
        retry_delays: Sequence[timedelta],
        markers: Path | None = None,
        ask: Ask | None = None,
    ) -> None:
        self._dispatcher = Dispatcher(
            service=service, handlers=handlers, publisher=publisher, retry_delays=retry_delays
        )
        route = self._dispatcher.route
        self._queue = route.queue
        self._quarantine = Quarantine(self._dispatcher, CrashMarkers(route.queue, markers))
        self._state = ConsumerState(prefetch)
        self._subscription = Subscription(
            url,
            service=service,
            route=route,
            state=self._state,
            on_channel=self._release_held,
            on_delivery=self._received,
        )
        self._gate = OutageGate(on_pause=self._paused, on_resume=self._resumed, ask=ask)
        self._tasks: set[asyncio.Task[None]] = set()
        self._held: set[asyncio.Task[None]] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._announced: Received | None = None
        metrics.IN_FLIGHT.labels(self._queue).set_function(lambda: self._state.taken)
        # Looked up once: a lookup costs as much as counting.
        self._settled = {
            outcome: metrics.DELIVERIES.labels(self._queue, outcome) for outcome in Outcome
        }
        self._seconds = metrics.DELIVERY_SECONDS.labels(self._queue)

    # -- life -------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Start connecting; does not wait for the broker."""
        self._loop = asyncio.get_running_loop()
        await self._subscription.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Take nothing new, let what runs finish, leave the rest to redelivery."""
        self._state.drain()
        await self._subscription.end()
        self._release_held()
        if self._tasks:
            log.info("consumer.draining", queue=self._queue, in_flight=len(self._tasks))
            await asyncio.wait(self._tasks, timeout=DRAIN_SECONDS)
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_GRACE_SECONDS)
        await self._subscription.close()

    async def check(self) -> None:
        """Raise what keeps it from working, if anything does."""
        if (failure := self._gate.failure) is not None:
            raise type(failure)(f"Paused; nothing is lost. {failure.detail}")
        await self._subscription.check()

    # -- events -----------------------------------------------------------------------------

    def _received(self, received: Received) -> None:
        self._state.receive(received)
        self._proceed()

    def _finished(self, received: Received, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._state.finish(received)
        self._proceed()

    def _paused(self, error: UnavailableError) -> None:
        log.warning("consumer.paused", queue=self._queue, code=error.code, reason=error.detail)
        metrics.CONSUMER_PAUSED.labels(self._queue).set(1)
        metrics.CONSUMER_PAUSES.labels(self._queue, error.code).inc()
        self._state.pause()
        self._proceed()

    def _resumed(self) -> None:
        log.info("consumer.resumed", queue=self._queue, held=len(self._held))
        metrics.CONSUMER_PAUSED.labels(self._queue).set(0)
        self._state.resume()
        self._proceed()

    def _release_held(self) -> None:
        """Give up what is held through an outage: it will be delivered again."""
        self._quarantine.no_longer_exclusive()
        for task in list(self._held):
            task.cancel()

    def _proceed(self) -> None:
        """Do what follows from the state, after each event.

        Each delivery has a task of our own, not of the channel's: cancelled with it, a mail whose
        text is out would count as unsure and go out again, though its server is about to say 250.
        """
        state = self._state
        while (received := state.next(self._loop.time())) is not None:
            task = self._loop.create_task(self._settle(received))
            self._tasks.add(task)
            task.add_done_callback(partial(self._finished, received))
        self._subscription.update()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if (blocked := state.blocked) is not None:
            self._timer = self._loop.call_at(state.blocked_until, self._proceed)
            if blocked is not self._announced:
                self._announced = blocked
                others, seconds = len(self._tasks), exclusive_wait(blocked.delivery)
                log.info("quarantine.waiting", queue=self._queue, others=others, seconds=seconds)

    # -- deliveries -------------------------------------------------------------------------

    async def _settle(self, received: Received) -> None:
        """Handle one delivery and acknowledge it, or leave it to be delivered again."""
        started = time.perf_counter()
        dispatch: Dispatch = self._dispatcher.dispatch
        if received.quarantined:
            is_exclusive = partial(self._state.is_exclusive, received)
            dispatch = partial(
                self._quarantine.dispatch, is_exclusive=is_exclusive, defer=received.deferred
            )
        try:
            outcome = await self._handle_with_retry(received.delivery, dispatch)
            failpoint("w19")
            # Only on the channel it came by: on a newer one the same tag means another message.
            if self._state.is_current(received):
                received.channel.acknowledge(received.tag)
                self._settled[outcome].inc()
                self._seconds.observe(time.perf_counter() - started)
            else:
                # The work is done, but its channel is gone: it is delivered again, and every
                # handler is safe to run twice.
                metrics.DELIVERIES.labels(self._queue, "ack_lost").inc()
                log.info("delivery.ack_lost", queue=self._queue)
        except asyncio.CancelledError:
            self._requeue(received)
        except Exception:  # a fault of ours: unsettled, it would stay in flight for ever
            log.exception("delivery.failed_internally", queue=self._queue)
            self._requeue(received)

    def _requeue(self, received: Received) -> None:
        """Have it delivered again, where neither a stop nor a new channel does so."""
        metrics.DELIVERIES.labels(self._queue, "requeued").inc()
        if self._state.is_current(received) and not self._state.draining:
            self._subscription.reopen_channel()

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
            self._gate.succeeded(begun_at)
        return outcome

    async def _handle_as_probe(
        self, delivery: Delivery, dispatch: Dispatch, error: UnavailableError | None
    ) -> Outcome:
        """Hold a delivery until the outage is over, or until it has failed by itself."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - called by a task
        gate = self._gate
        case = gate.evidence.case(delivery.id)
        try:
            if error is not None and (outcome := await self._decide(delivery, case, error)):
                return outcome
            while True:
                self._held.add(task)
                if case.failures and not gate.paused:
                    await asyncio.sleep(FIRST_PROBE_SECONDS)
                async with gate.pass_through(case):
                    begun_at = gate.evidence.failures
                    self._held.discard(task)
                    try:
                        outcome = await dispatch(delivery)
                    except UnavailableError as again:
                        if outcome := await self._decide(delivery, case, again):
                            return outcome
                        continue
                    if outcome is Outcome.HANDLED:
                        gate.succeeded(begun_at)
                    else:
                        await gate.inconclusive(case)
                    return outcome
        finally:
            self._held.discard(task)

    async def _decide(
        self, delivery: Delivery, case: Case, error: UnavailableError
    ) -> Outcome | None:
        """Do with a delivery that met an outage as the gate decides; None if it is held."""
        if self._state.draining:
            raise asyncio.CancelledError
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - called by a task
        self._held.add(task)
        decision = await self._gate.failed(case, error)
        if decision is Decision.HOLD:
            return None
        self._held.discard(task)  # from here on a copy of it may exist
        try:
            if decision is Decision.RETRY and self._may_take_next_step(delivery, case):
                return await self._retry(delivery, error)
            return await self._dispatcher.defer(delivery, MAX_DEFERRAL, code=error.code)
        except UnavailableError:  # of the broker: held, and the next round decides
            self._held.add(task)
            return None

    def _may_take_next_step(self, delivery: Delivery, case: Case) -> bool:
        """Whether it may go to its next step; the last one is not taken lightly.

        A connection that breaks now and then looks to some messages as if others always got
        through. And one that no other came by may have met an outage that the service itself does
        not admit.
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
            return await self._dispatcher.defer(delivery, MAX_DEFERRAL, code=refused.code)
