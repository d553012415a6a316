"""Publishes messages: persistent, mandatory, confirmed, within a deadline."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any
from uuid import UUID

from aio_pika.abc import AbstractChannel

from common import metrics
from common.amqp.channel import Wire
from common.amqp.connection import Link, check_topology
from common.amqp.message import TRACEPARENT
from common.context import current
from common.contracts.base import Contract
from common.errors import (
    BrokerUnavailableError,
    NotConfirmedError,
    UnavailableError,
    UnroutableError,
)

CHANNEL_SECONDS = 1.0
"""Longest wait for a lost connection to come back before giving up on this message."""


FAILURE_COUNTS_SECONDS = 30.0
"""So long a message that was not confirmed keeps a publisher from being ready, unless another
one is: as long as somebody publishes, the latest attempt tells."""


class Publisher:
    """One confirmed channel on a connection of its own: an alarm blocks publishers only."""

    def __init__(
        self,
        url: str,
        *,
        service: str,
        exchanges: Sequence[str],
        queues: Sequence[str],
    ) -> None:
        self._service = service
        self._exchanges = exchanges
        self._queues = queues
        self._wire: Wire | None = None
        self._failed_at = -math.inf
        self._link = Link(url, service=service, purpose="publish", setup=self._prepare)

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        url: str,
        *,
        service: str,
        exchanges: Sequence[str],
        queues: Sequence[str] = (),
    ) -> AsyncIterator["Publisher"]:
        """Start connecting.

        Args:
            url: AMQP URL with the service's own user.
            service: Name that messages carry as ``app_id``.
            exchanges: Everything it will publish to; ready only when all of them exist.
            queues: Queues that must exist for it to make sense.
        """
        publisher = cls(url, service=service, exchanges=exchanges, queues=queues)
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(publisher._link)
            yield publisher

    async def ask(self) -> None:
        """Raise BrokerUnavailableError if the broker says that it takes nothing."""
        await self._link.check()
        if self._link.blocked:
            raise _blocked()

    async def check(self) -> None:
        """Raise what keeps it from publishing, if anything does.

        An open connection is not enough: what was published last must have been confirmed.
        Where nobody publishes, a failure says nothing any more after a while.
        """
        await self.ask()
        if time.monotonic() - self._failed_at < FAILURE_COUNTS_SECONDS:
            raise BrokerUnavailableError("The broker did not confirm the latest message.")

    async def publish(self, data: Contract, *, message_id: UUID, correlation_id: str) -> None:
        """Publish a message of our own; when this returns, the broker has it on disk.

        Raises:
            BrokerUnavailableError: Not promised; repeat it with the same id.
            NotConfirmedError: The same, and it may have arrived, or arrive yet.
            UnroutableError: No queue is bound; the broker has not kept it.
        """
        await self.send(
            data.route.name,
            data.type_name,
            data.model_dump_json(by_alias=True, exclude_none=True).encode(),
            properties={
                "message_id": str(message_id),
                "correlation_id": correlation_id,
                "type": data.type_name,
                "timestamp": datetime.now(UTC),
                "app_id": self._service,
                "content_type": "application/json",
            },
            headers={TRACEPARENT: current().traceparent} if current().traceparent else {},
        )

    async def send(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        expiration: timedelta | None = None,
    ) -> None:
        """Publish bytes with a ``message_id``; ``publish`` says what is raised."""
        started = time.perf_counter()
        outcome = "unavailable"
        try:
            wire = await self._wire_within_reach()
            while wire.is_under_way(properties["message_id"]):  # perhaps on a new channel, too
                wire = await self._wire_after(wire, properties["message_id"])
            try:
                confirmation = wire.publish(
                    exchange,
                    routing_key,
                    body,
                    properties=properties,
                    headers=headers,
                    expiration=expiration,
                )
                try:
                    await confirmation
                except BrokerUnavailableError as error:
                    raise NotConfirmedError(error.detail) from error
            except UnavailableError:
                self._failed_at = time.monotonic()
                raise
            self._failed_at = -math.inf
            outcome = "confirmed"
        except UnroutableError:
            outcome = "returned"
            raise
        finally:
            _count(exchange, outcome).inc()
            _seconds(exchange).observe(time.perf_counter() - started)

    async def _wire_within_reach(self) -> Wire:
        """The channel, unless the broker blocks us: a message written then arrives as a ghost."""
        if self._wire is None or self._wire.closed:
            try:
                async with asyncio.timeout(CHANNEL_SECONDS):
                    await self._link.channel()
            except TimeoutError as error:
                raise self._link.failure from error
        if self._link.blocked:
            raise _blocked()
        assert self._wire is not None  # noqa: S101 - set before the link hands out its channel
        return self._wire

    async def _wire_after(self, wire: Wire, message_id: str) -> Wire:
        """The channel once no other message of that id is under way."""
        try:
            async with asyncio.timeout(CHANNEL_SECONDS):
                await wire.turn(message_id)
        except TimeoutError as error:
            raise BrokerUnavailableError(
                "A publish with this message id is still awaiting its confirm."
            ) from error
        return await self._wire_within_reach()

    async def _prepare(self, channel: AbstractChannel, wire: Wire) -> None:
        await check_topology(channel, exchanges=self._exchanges, queues=self._queues)
        self._wire = wire


def _blocked() -> BrokerUnavailableError:
    return BrokerUnavailableError("The broker takes no messages: memory or disk alarm.")


# Looked up once: a lookup costs as much as counting.
_count = cache(metrics.PUBLISHES.labels)
_seconds = cache(metrics.PUBLISH_SECONDS.labels)
