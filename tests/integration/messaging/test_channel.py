"""What leaves in one buffer, against a real broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import pytest

from common.amqp.channel import Channel
from common.amqp.connection import ReconnectingConnection
from common.amqp.message import Delivery
from common.contracts.topology import USER_REGISTRATION
from common.errors import BrokerUnavailableError, UnroutableError
from tests.amqp import depth, eventually, opened, take
from tests.backends import TestBroker

EXCHANGE = USER_REGISTRATION.name
QUEUE = USER_REGISTRATION.queue


@asynccontextmanager
async def open_channel(url: str) -> AsyncIterator[Channel]:
    async def no_setup(_: Channel) -> None:
        """Nothing to prepare."""

    async with ReconnectingConnection(
        url, service="test", purpose="test", setup=no_setup
    ) as connection:
        yield await connection.channel(10)


@pytest.fixture
async def channel(empty_broker: TestBroker) -> AsyncIterator[Channel]:
    async with open_channel(empty_broker.admin_url) as opened_channel:
        yield opened_channel


def published(
    channel: Channel, exchange: str = EXCHANGE, **properties: str
) -> asyncio.Future[None]:
    properties = {"message_id": str(uuid4())} | properties
    return channel.publish(exchange, "key", b"{}", properties=properties, headers={})


async def test_confirms_come_back_for_all_that_left_together(
    channel: Channel, empty_broker: TestBroker
) -> None:
    await asyncio.gather(*(published(channel) for _ in range(300)))

    assert await depth(empty_broker.admin_url, QUEUE) == 300


async def test_every_property_arrives_as_it_was_given(
    channel: Channel, empty_broker: TestBroker
) -> None:
    await channel.publish(
        EXCHANGE,
        "schlüssel",
        b"body",
        properties={
            "message_id": "m",
            "correlation_id": "c",
            "type": "t",
            "app_id": "a",
            "content_type": "application/json",
            "content_encoding": "utf-8",
        },
        headers={"x-attempt": 2, "x-error-detail": "Grüße", "x-more": {"deep": [1, True, None]}},
    )

    message = await take(empty_broker.admin_url, QUEUE)
    assert (message.body, message.routing_key) == (b"body", "schlüssel")
    assert (message.message_id, message.correlation_id) == ("m", "c")
    assert (message.type, message.app_id) == ("t", "a")
    assert (message.content_type, message.content_encoding) == ("application/json", "utf-8")
    assert message.delivery_mode == 2
    assert message.headers | {"x-delivery-count": 0} == {
        "x-delivery-count": 0,  # the broker's own
        "x-attempt": 2,
        "x-error-detail": "Grüße",
        "x-more": {"deep": [1, True, None]},
    }


async def test_an_empty_body_is_published(channel: Channel, empty_broker: TestBroker) -> None:
    await channel.publish(EXCHANGE, "k", b"", properties={"message_id": "m"}, headers={})

    assert (await take(empty_broker.admin_url, QUEUE)).body == b""


async def test_only_what_comes_back_fails(channel: Channel, empty_broker: TestBroker) -> None:
    async with opened(empty_broker.admin_url) as foreign:
        await foreign.declare_exchange("bound.to.nothing", durable=True)
    try:
        results = await asyncio.gather(
            published(channel),
            published(channel, "bound.to.nothing"),
            published(channel),
            return_exceptions=True,
        )
    finally:
        empty_broker.management("DELETE", "/api/exchanges/%2F/bound.to.nothing")

    assert [isinstance(result, UnroutableError) for result in results] == [False, True, False]
    await published(channel)  # the channel lives on
    assert await depth(empty_broker.admin_url, QUEUE) == 3


async def test_a_return_for_a_publisher_that_gave_up_breaks_nothing(
    channel: Channel, empty_broker: TestBroker
) -> None:
    async with opened(empty_broker.admin_url) as foreign:
        await foreign.declare_exchange("bound.to.nothing", durable=True)
    try:
        waiting = asyncio.ensure_future(asyncio.shield(published(channel, "bound.to.nothing")))
        await asyncio.sleep(0)
        waiting.cancel()
        await published(channel)
    finally:
        empty_broker.management("DELETE", "/api/exchanges/%2F/bound.to.nothing")

    assert not channel.closed
    await published(channel)


async def test_a_full_queue_refuses(channel: Channel, empty_broker: TestBroker) -> None:
    policy = "/api/policies/%2F/full"
    definition = {"max-length": 1, "overflow": "reject-publish"}
    body = {"pattern": f"^{QUEUE}$", "definition": definition, "priority": 9, "apply-to": "queues"}
    empty_broker.management("PUT", policy, body)
    try:

        async def refused() -> bool:
            try:
                await published(channel)
            except BrokerUnavailableError:
                return True
            return False

        await eventually(refused, "refusing")
    finally:
        empty_broker.management("DELETE", policy)


async def test_the_same_id_waits_for_its_turn(channel: Channel) -> None:
    first = published(channel, message_id="same")
    turn = asyncio.ensure_future(channel.confirms.wait_until_resolved("same"))
    await asyncio.sleep(0)
    assert not turn.done()

    await first

    await turn
    await published(channel, message_id="same")


async def test_what_is_unconfirmed_fails_when_the_connection_is_lost(
    channel: Channel, empty_broker: TestBroker
) -> None:
    await published(channel)
    empty_broker.freeze()
    unconfirmed = [published(channel) for _ in range(5)]
    await asyncio.sleep(0)
    empty_broker.kill()
    try:
        results = await asyncio.wait_for(
            asyncio.gather(*unconfirmed, return_exceptions=True), timeout=30
        )
    finally:
        empty_broker.start()

    assert all(isinstance(result, BrokerUnavailableError) for result in results), results
    assert channel.closed


async def test_acks_reach_exactly_what_was_acknowledged(
    channel: Channel, empty_broker: TestBroker
) -> None:
    for number in range(10):
        await channel.publish(
            EXCHANGE, "k", str(number).encode(), properties={"message_id": str(number)}, headers={}
        )
    async with open_channel(empty_broker.admin_url) as consuming:
        tags: dict[bytes, int] = {}
        await consuming.consume(QUEUE, "test", partial(_remember, tags))
        await eventually(lambda: len(tags) == 10, "delivery of all ten")
        for group in ([b"2", b"3"], [b"0"], [b"1", b"5"], [b"9"], [b"4"]):
            for body in group:
                consuming.acknowledge(tags[body])
            consuming.flush()
        assert not consuming.closed

    left = {(await take(empty_broker.admin_url, QUEUE)).body for _ in range(3)}
    assert left == {b"6", b"7", b"8"}
    assert await depth(empty_broker.admin_url, QUEUE) == 0


def _remember(tags: dict[bytes, int], tag: int, delivery: Delivery) -> None:
    tags[delivery.body] = tag
