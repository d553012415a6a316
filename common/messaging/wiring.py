"""A service's side of the broker, from its settings: what it publishes, what it consumes.

``common.contracts.topology.BROKER_USERS`` lists those exchanges and queues.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from common.amqp.management import ManagementApi
from common.amqp.publisher import Publisher
from common.amqp.topology_check import AlarmCheck, BrokerCheck
from common.contracts.topology import BROKER_USERS
from common.messaging.consumer import Consumer
from common.messaging.dispatcher import Handlers
from common.readiness import Check, Readiness
from common.settings import BrokerSettings, ConsumerSettings


@asynccontextmanager
async def open_publisher(
    settings: BrokerSettings, *, service: str, readiness: Readiness
) -> AsyncIterator[Publisher]:
    """A publisher for all that the service writes to; ready when all of it is there."""
    user = BROKER_USERS[service]
    async with Publisher(
        str(settings.queue_url),
        service=service,
        exchanges=user.exchanges,
        queues=user.fed_queues,
    ) as publisher:
        if settings.queue_management_url is None:
            readiness.add("publisher", publisher.check)
        else:
            management = ManagementApi(str(settings.queue_management_url))
            alarms = AlarmCheck(management)

            async def check() -> None:
                await publisher.check()
                await alarms.check()

            readiness.add("publisher", check)
            readiness.add("topology", BrokerCheck(management, service).check)
        yield publisher


@asynccontextmanager
async def handling(
    settings: ConsumerSettings,
    handlers: Handlers,
    *,
    service: str,
    publisher: Publisher,
    readiness: Readiness,
    upstreams: Sequence[Check] = (),
    retry_factor: int = 2,
) -> AsyncIterator[None]:
    """Consume the handlers' route until the block is left; then drain.

    Args:
        settings: Prefetch, retries, and where the broker is.
        handlers: Which handler takes which contract, all of one route.
        service: Name that dead letters carry as the failing service.
        publisher: Publishes retries and dead letters.
        readiness: Gets the check of the consumer.
        upstreams: Checks of the services that the handlers need, beside the broker.
        retry_factor: By how much each wait is longer than the one before.

    Raises:
        SettingError: More retries are wanted than the route has steps.
    """

    async def ask() -> None:
        await asyncio.gather(publisher.ask(), *(check() for check in upstreams))

    async with Consumer(
        str(settings.queue_url),
        handlers,
        service=service,
        publisher=publisher,
        prefetch=settings.prefetch,
        retry_delays=settings.retry_delays(retry_factor),
        markers=settings.crash_marker_dir,
        ask=ask,
    ) as consumer:
        readiness.add("consumer", consumer.check)
        yield
