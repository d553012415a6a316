"""A broker that wants the right to configure for a passive declaration: RabbitMQ 4.2.6 and 4.3.0.

A proxy takes the ``passive`` bit out of every declaration, so that a real broker of any version
refuses it to a user who may configure nothing, in just the way in which those two do.
"""

import asyncio
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from urllib.parse import urlsplit
from uuid import UUID, uuid4

import pytest

from common.amqp.dead_letter_queue import DeadLetterQueue
from common.amqp.management import ManagementApi
from common.amqp.message import Delivery, Envelope
from common.amqp.publisher import Publisher
from common.amqp.queue_depths import QueueDepths
from common.amqp.stream import StreamReader
from common.contracts.registrations import RegistrationSubmitted
from common.contracts.topology import BROKER_USERS, USER_REGISTRATION
from common.errors import BrokerUnavailableError
from common.messaging import subscription
from common.messaging.consumer import Consumer
from tests.amqp import a_registration, eventually, publish
from tests.backends import TestBroker

SERVICE = "queue_receiver"
USER = BROKER_USERS[SERVICE]
HEAD = struct.Struct("!BHI")
METHOD = 1
EXCHANGE_DECLARE, QUEUE_DECLARE = (40, 10), (50, 10)
PASSIVE = 1


def demanding(payload: bytes) -> bytes:
    """A method's bytes, without the passive bit where it is a declaration."""
    method = struct.unpack_from("!HH", payload)
    at = 6  # class, method, and a field that is reserved
    if method == EXCHANGE_DECLARE:
        at += 1 + payload[at]  # the name
        at += 1 + payload[at]  # the type
    elif method == QUEUE_DECLARE:
        at += 1 + payload[at]
    else:
        return payload
    return payload[:at] + bytes([payload[at] & ~PASSIVE]) + payload[at + 1 :]


async def _hand_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65_536):
        writer.write(data)
    writer.close()


async def _hand_on_frames(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(await reader.readexactly(8))
    while True:
        head = await reader.readexactly(HEAD.size)
        kind, _, size = HEAD.unpack(head)
        payload = await reader.readexactly(size + 1)
        writer.write(head + (demanding(payload) if kind == METHOD else payload))


@asynccontextmanager
async def demanding_broker(broker: TestBroker, user: str = SERVICE) -> AsyncIterator[str]:
    """The URL of a service's user at the proxy."""
    real = urlsplit(broker.url(user))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, onward = await asyncio.open_connection(real.hostname, real.port)
        with_frames = asyncio.ensure_future(_hand_on_frames(reader, onward))
        back = asyncio.ensure_future(_hand_on(behind, writer))
        await asyncio.wait([with_frames, back], return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, onward):
            each.close()
        await asyncio.gather(with_frames, back, return_exceptions=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        port = server.sockets[0].getsockname()[1]
        yield real._replace(netloc=f"{real.username}:{real.password}@127.0.0.1:{port}").geturl()
    finally:
        server.close()


@pytest.fixture
async def url(empty_broker: TestBroker) -> AsyncIterator[str]:
    async with demanding_broker(empty_broker) as url:
        yield url


async def test_messages_are_published_and_consumed(url: str, empty_broker: TestBroker) -> None:
    handled: list[UUID] = []

    async def handle(envelope: Envelope[RegistrationSubmitted]) -> None:
        handled.append(envelope.id)

    frontend = BROKER_USERS["frontend"]
    async with (
        demanding_broker(empty_broker, "frontend") as frontend_url,
        Publisher(
            frontend_url,
            service="frontend",
            exchanges=frontend.exchanges,
            queues=frontend.fed_queues,
        ) as publisher,
        Publisher(
            url, service=SERVICE, exchanges=USER.exchanges, queues=USER.fed_queues
        ) as republisher,
        Consumer(
            url,
            {RegistrationSubmitted: handle},
            service=SERVICE,
            publisher=republisher,
            prefetch=10,
            retry_delays=[],
        ) as consumer,
    ):

        async def is_ready() -> bool:
            try:
                for each in (publisher, republisher, consumer):
                    await each.check()
            except BrokerUnavailableError:
                return False
            return True

        await eventually(is_ready, "connecting")
        message_id = uuid4()
        await publisher.publish(a_registration(), message_id=message_id, correlation_id="c")
        await eventually(lambda: handled == [message_id], "handling")


async def test_an_idle_consumer_does_not_lose_its_channel_by_counting(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subscription, "WATCH_INTERVAL", timedelta(seconds=0.05))
    async with (
        Publisher(url, service=SERVICE, exchanges=USER.exchanges) as republisher,
        Consumer(
            url,
            {RegistrationSubmitted: never},
            service=SERVICE,
            publisher=republisher,
            prefetch=10,
            retry_delays=[],
        ) as consumer,
    ):
        channel = await eventually(lambda: consumer._state.channel, "subscribing")
        for _ in range(20):
            await asyncio.sleep(0.05)  # each time it looks whether anything waits
            assert consumer._state.channel is channel
        assert not channel.closed


async def never(_: Envelope[RegistrationSubmitted]) -> None:
    raise AssertionError("nothing was published")


async def test_the_ledger_counts_by_the_management_api(url: str, empty_broker: TestBroker) -> None:
    await publish(empty_broker.admin_url, USER_REGISTRATION.name, b"{}", message_id=str(uuid4()))
    async with StreamReader(url, service=SERVICE) as reader:
        management = ManagementApi(empty_broker.monitor_url)
        depths = QueueDepths(reader, management=management, route=USER_REGISTRATION)

        async def counted() -> bool:
            with suppress(BrokerUnavailableError):  # not counted yet
                depth = await depths.read()
                return (depth.ready, depth.retrying, depth.dead) == (1, 0, 0)
            return False

        await eventually(counted, "counting")

        blind = QueueDepths(reader, management=None, route=USER_REGISTRATION)
        with pytest.raises(BrokerUnavailableError, match="QUEUE_MANAGEMENT_URL"):
            await blind.read()
        assert await reader.read(USER_REGISTRATION.log, "first", at, limit=1)  # lives on


def at(offset: int, _delivery: Delivery) -> int:
    return offset


async def test_dead_letters_are_read_and_sent_back(url: str, empty_broker: TestBroker) -> None:
    message_id = uuid4()
    await publish(
        empty_broker.admin_url,
        USER_REGISTRATION.dead_letter_exchange,
        b"{}",
        routing_key="user.registration.submitted.v1",
        message_id=str(message_id),
    )
    management = ManagementApi(empty_broker.monitor_url)
    queue = DeadLetterQueue(url, USER_REGISTRATION, service=SERVICE, management=management)

    async def counts(expected: int) -> bool:
        with suppress(BrokerUnavailableError):  # not counted yet
            return await queue.count() == expected
        return False

    await eventually(lambda: counts(1), "counting")
    async with queue.held() as held:
        assert [each.id for each in held.messages] == [message_id]
        await held.send_back(held.messages[0])

    await eventually(lambda: counts(0), "counting")


async def test_without_the_management_api_dead_letters_say_what_is_missing(url: str) -> None:
    queue = DeadLetterQueue(url, USER_REGISTRATION, service=SERVICE)

    with pytest.raises(BrokerUnavailableError, match="QUEUE_MANAGEMENT_URL"):
        await queue.count()
