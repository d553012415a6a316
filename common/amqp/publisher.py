"""Publishes messages: persistent, mandatory, confirmed, within a deadline."""

import asyncio
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from functools import cache, partial
from typing import Any, Self
from uuid import UUID

from common import metrics
from common.amqp.channel import Channel
from common.amqp.connection import ReconnectingConnection, check_topology
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
one is: as long as messages are published, the latest attempt tells."""


class Publisher:
    """One confirmed channel on a connection of its own: an alarm blocks publishers only.

    Args:
        url: AMQP URL with the service's own user.
        service: Name that messages carry as ``app_id``.
        exchanges: Everything it will publish to; ready only when all of them exist.
        queues: Queues that must exist for it to make sense.
    """

    def __init__(
        self, url: str, *, service: str, exchanges: Sequence[str], queues: Sequence[str] = ()
    ) -> None:
        self._service = service
        self._failed_at = -math.inf
        self._connection = ReconnectingConnection(
            url,
            service=service,
            purpose="publish",
            setup=partial(check_topology, exchanges=exchanges, queues=queues),
        )

    async def __aenter__(self) -> Self:
        """Start connecting; does not wait for the broker."""
        await self._connection.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection."""
        await self._connection.__aexit__()

    async def ask(self) -> None:
        """Raise BrokerUnavailableError if there is no broker, or it takes no messages."""
        await self._connection.check()
        if self._connection.blocked:
            raise _blocked()

    async def check(self) -> None:
        """Raise what keeps it from publishing, if anything does.

        An open connection is not enough: what was published last must have been confirmed.
        Where nothing is published, a failure says nothing any more after a while.
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
            channel = await self._open_channel()
            while channel.confirms.is_unconfirmed(properties["message_id"]):
                await _wait_until_resolved(channel, properties["message_id"])
                channel = await self._open_channel()  # perhaps a new one
            try:
                confirmation = channel.publish(
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

    async def _open_channel(self) -> Channel:
        """The channel, unless the broker blocks us: a message written then arrives as a ghost."""
        channel = await self._connection.channel(CHANNEL_SECONDS)
        if self._connection.blocked:
            raise _blocked()
        return channel


async def _wait_until_resolved(channel: Channel, message_id: str) -> None:
    try:
        async with asyncio.timeout(CHANNEL_SECONDS):
            await channel.confirms.wait_until_resolved(message_id)
    except TimeoutError as error:
        raise BrokerUnavailableError(
            "A publish with this message id is still awaiting its confirm."
        ) from error


def _blocked() -> BrokerUnavailableError:
    return BrokerUnavailableError("The broker takes no messages: memory or disk alarm.")


# Looked up once: a lookup costs as much as counting.
_count = cache(metrics.PUBLISHES.labels)
_seconds = cache(metrics.PUBLISH_SECONDS.labels)
