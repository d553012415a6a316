"""Decides what becomes of a delivery; the only code that does.

| outcome of the handler                | what happens                                        |
|---------------------------------------|-----------------------------------------------------|
| returns                               | ack                                                 |
| body is not the contract              | to the dead letters with a reason, confirmed, ack   |
| ``PermanentError``                    | to the dead letters with its code, confirmed, ack   |
| ``UnavailableError``                  | held by the consumer, nothing counted, unless       |
|                                       | others succeed: then as any other error             |
| ``InProgressError``                   | deferred in a retry step, not counted as an         |
|                                       | attempt, confirmed, ack                             |
| any other error                       | to the next retry step, confirmed, ack; after the   |
|                                       | last one to the dead letters                        |
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from datetime import timedelta
from enum import StrEnum
from typing import Any

import structlog

from common import metrics
from common.amqp.headers import (
    ATTEMPTS,
    ERROR_CODE,
    ERROR_DETAIL,
    FAILED_SERVICE,
    ORIGINAL_ROUTING_KEY,
    republish_headers,
    republish_properties,
    short_text,
)
from common.amqp.message import ATTEMPT, DEFERRALS, PREVIOUS_DELIVERIES, Delivery, Envelope, read
from common.amqp.publisher import Publisher
from common.contracts.base import Contract
from common.contracts.topology import Route
from common.errors import (
    InProgressError,
    PermanentError,
    SettingError,
    UnavailableError,
    UserStreamError,
)

log = structlog.get_logger()

Handler = Callable[[Envelope[Any]], Awaitable[bool | None]]
"""Returns False where nothing was to be done, which proves nothing about other services."""

Handlers = Mapping[type[Contract], Handler]
"""Which handler takes which contract, all of one route."""

SHORTEST_WAIT = timedelta(milliseconds=100)
"""A deferred message comes no sooner, whatever was asked for: no circle without a pause."""


class Outcome(StrEnum):
    """Where a delivery went; in each case it can be acknowledged now."""

    HANDLED = "handled"
    SKIPPED = "skipped"
    RETRIED = "retried"
    DEFERRED = "deferred"
    DEAD_LETTERED = "dead_lettered"


class Dispatcher:
    """Hands deliveries of one route to their handlers and deals with what those raise."""

    def __init__(
        self,
        *,
        service: str,
        handlers: Handlers,
        publisher: Publisher,
        retry_delays: Sequence[timedelta],
    ) -> None:
        self.route = _route_of(handlers)
        if len(retry_delays) > self.route.retry_steps:
            raise SettingError(
                f"MAX_RETRY_ATTEMPTS is {len(retry_delays)}, but {self.route.name} has "
                f"{self.route.retry_steps} retry steps."
            )
        for contract in handlers:
            contract.model_rebuild()  # its schema, now: not when a message waits for it
        self._service = service
        self._handlers = handlers
        self._publisher = publisher
        self._retry_delays = retry_delays

    async def dispatch(self, delivery: Delivery) -> Outcome:
        """Handle one delivery; when this returns, it lives on elsewhere or is done.

        Raises:
            UnavailableError: Another service is away; nothing has been decided.
        """
        try:
            envelope = read(delivery, self._handlers, len(self._retry_delays))
            done = await self._handlers[type(envelope.data)](envelope)
        except UnavailableError:
            raise
        except InProgressError as error:
            return await self.defer(delivery, error.again_after, code=error.code)
        except PermanentError as error:
            return await self.dead_letter(delivery, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, the message is kept
            return await self.retry(delivery, error)
        return Outcome.SKIPPED if done is False else Outcome.HANDLED

    async def defer(
        self, delivery: Delivery, again_after: timedelta, *, code: str, deferrals: int = 0
    ) -> Outcome:
        """Let it wait at the broker, not in flight: there it would delay others.

        In the longest step that is not too long, or for less than the first: in a step, a
        longer wait than the others' would delay those behind it. If it comes too early, it is
        deferred once more; it may come as much later as the first step is longer, behind others.

        Args:
            delivery: What waits.
            again_after: When it is to come again.
            code: Why, for the log.
            deferrals: How often a busy consumer was the reason, this time included.

        Raises:
            UnavailableError: The broker did not take it; nothing has been decided.
        """
        deferrals = deferrals or delivery.deferrals
        fitting = [delay for delay in self._retry_delays if delay <= again_after]
        delay = fitting[-1] if fitting else max(again_after, SHORTEST_WAIT)
        await self._republish(
            self.route.retry_step(len(fitting) or 1),
            delivery,
            {
                ATTEMPT: delivery.attempt,
                PREVIOUS_DELIVERIES: delivery.previous_deliveries,
                **({DEFERRALS: deferrals} if deferrals else {}),
            },
            expiration=delay,
        )
        log.info(
            "delivery.deferred",
            queue=self.route.queue,
            code=code,
            previous_deliveries=delivery.previous_deliveries,
            delay_seconds=delay.total_seconds(),
        )
        return Outcome.DEFERRED

    def is_last_attempt(self, delivery: Delivery) -> bool:
        """Whether there is no retry step left for it."""
        return delivery.attempt > len(self._retry_delays)

    async def retry(self, delivery: Delivery, error: Exception) -> Outcome:
        """Hand a delivery that failed to its next retry step; after the last, dead-letter it.

        Raises:
            UnavailableError: The broker did not take it; nothing has been decided.
        """
        known = error if isinstance(error, UserStreamError) else None
        code = known.code if known else type(error).__name__
        if self.is_last_attempt(delivery):
            return await self.dead_letter(delivery, error)
        delay = self._retry_delays[delivery.attempt - 1]
        await self._republish(
            self.route.retry_step(delivery.attempt),
            delivery,
            {ATTEMPT: delivery.attempt + 1},
            expiration=delay,
        )
        log.warning(
            "delivery.retried",
            queue=self.route.queue,
            code=code,
            attempt=delivery.attempt,
            delay_seconds=delay.total_seconds(),
            exc_info=None if known else error,
        )
        return Outcome.RETRIED

    async def dead_letter(self, delivery: Delivery, error: Exception) -> Outcome:
        """Hand a delivery to the dead letters, with the reason.

        Raises:
            UnavailableError: The broker did not take it; nothing has been decided.
        """
        known = error if isinstance(error, UserStreamError) else None
        code = known.code if known else "unexpected_error"
        await self._republish(
            self.route.dead_letter_exchange,
            delivery,
            {
                ATTEMPT: delivery.attempt,
                ERROR_CODE: code,
                ERROR_DETAIL: known.detail if known else type(error).__name__,
                ATTEMPTS: delivery.attempt,
                FAILED_SERVICE: self._service,
                ORIGINAL_ROUTING_KEY: delivery.routing_key,
            },
        )
        metrics.DEAD_LETTERS.labels(self.route.queue, code).inc()
        log.error(
            "delivery.dead_lettered",
            queue=self.route.queue,
            code=code,
            attempts=delivery.attempt,
            exc_info=None if known else error,
        )
        return Outcome.DEAD_LETTERED

    async def _republish(
        self,
        exchange: str,
        delivery: Delivery,
        headers: Mapping[str, object],
        *,
        expiration: timedelta | None = None,
    ) -> None:
        """Publish a copy, with what every copy keeps and these headers."""
        await self._publisher.send(
            exchange,
            short_text(delivery.routing_key),
            delivery.body,
            properties=republish_properties(delivery),
            headers={**republish_headers(delivery), **headers},
            expiration=expiration,
        )


def _route_of(handlers: Handlers) -> Route:
    routes = {contract.route for contract in handlers}
    if len(routes) != 1:
        raise ValueError("A consumer reads exactly one route.")
    return routes.pop()
