"""What leaves in one buffer, against a real broker."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractChannel

from common.amqp.channel import Wire
from common.amqp.connection import Link
from common.amqp.message import Delivery
from common.contracts.topology import USER_REGISTRATION
from common.errors import BrokerUnavailableError, UnroutableError
from tests.amqp import depth, eventually, opened, take
from tests.backends import TestBroker

EXCHANGE = USER_REGISTRATION.name
QUEUE = USER_REGISTRATION.queue


@asynccontextmanager
async def open_wire(url: str) -> AsyncIterator[Wire]:
    wires: list[Wire] = []

    async def keep(_channel: AbstractChannel, wire: Wire) -> None:
        wires.append(wire)

    async with Link(url, service="test", purpose="test", setup=keep) as link:
        await asyncio.wait_for(link.channel(), timeout=10)
        yield wires[0]


@pytest.fixture
async def wire(empty_broker: TestBroker) -> AsyncIterator[Wire]:
    async with open_wire(empty_broker.admin_url) as opened_wire:
        yield opened_wire


def published(wire: Wire, exchange: str = EXCHANGE, **properties: str) -> asyncio.Future[None]:
    properties = {"message_id": str(uuid4())} | properties
    return wire.publish(exchange, "key", b"{}", properties=properties, headers={})


async def test_confirms_come_back_for_all_that_left_together(
    wire: Wire, empty_broker: TestBroker
) -> None:
    await asyncio.gather(*(published(wire) for _ in range(300)))

    assert await depth(empty_broker.admin_url, QUEUE) == 300


async def test_every_property_arrives_as_it_was_given(wire: Wire, empty_broker: TestBroker) -> None:
    await wire.publish(
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


async def test_an_empty_body_is_published(wire: Wire, empty_broker: TestBroker) -> None:
    await wire.publish(EXCHANGE, "k", b"", properties={"message_id": "m"}, headers={})

    assert (await take(empty_broker.admin_url, QUEUE)).body == b""


async def test_only_what_comes_back_fails(wire: Wire, empty_broker: TestBroker) -> None:
    async with opened(empty_broker.admin_url) as channel:
        await channel.declare_exchange("bound.to.nothing", durable=True)
    try:
        results = await asyncio.gather(
            published(wire),
            published(wire, "bound.to.nothing"),
            published(wire),
            return_exceptions=True,
        )
    finally:
        empty_broker.management("DELETE", "/api/exchanges/%2F/bound.to.nothing")

    assert [isinstance(result, UnroutableError) for result in results] == [False, True, False]
    await published(wire)  # the channel lives on
    assert await depth(empty_broker.admin_url, QUEUE) == 3


async def test_a_return_for_somebody_who_gave_up_breaks_nothing(
    wire: Wire, empty_broker: TestBroker
) -> None:
    async with opened(empty_broker.admin_url) as channel:
        await channel.declare_exchange("bound.to.nothing", durable=True)
    try:
        waiting = asyncio.ensure_future(asyncio.shield(published(wire, "bound.to.nothing")))
        await asyncio.sleep(0)
        waiting.cancel()
        await published(wire)
    finally:
        empty_broker.management("DELETE", "/api/exchanges/%2F/bound.to.nothing")

    assert not wire.closed
    await published(wire)


async def test_a_full_queue_refuses(wire: Wire, empty_broker: TestBroker) -> None:
    policy = "/api/policies/%2F/full"
    definition = {"max-length": 1, "overflow": "reject-publish"}
    body = {"pattern": f"^{QUEUE}$", "definition": definition, "priority": 9, "apply-to": "queues"}
    empty_broker.management("PUT", policy, body)
    try:

        async def refused() -> bool:
            try:
                await published(wire)
            except BrokerUnavailableError:
                return True
            return False

        await eventually(refused, "refusing")
    finally:
        empty_broker.management("DELETE", policy)


async def test_the_same_id_waits_for_its_turn(wire: Wire) -> None:
    first = published(wire, message_id="same")
    turn = asyncio.ensure_future(wire.turn("same"))
    await asyncio.sleep(0)
    assert not turn.done()

    await first

    await turn
    await published(wire, message_id="same")


async def test_what_is_under_way_fails_when_the_connection_is_lost(
    wire: Wire, empty_broker: TestBroker
) -> None:
    await published(wire)
    empty_broker.freeze()
    under_way = [published(wire) for _ in range(5)]
    await asyncio.sleep(0)
    empty_broker.kill()
    try:
        results = await asyncio.wait_for(
            asyncio.gather(*under_way, return_exceptions=True), timeout=30
        )
    finally:
        empty_broker.start()

    assert all(isinstance(result, BrokerUnavailableError) for result in results), results
    assert wire.closed


async def test_acks_reach_exactly_what_was_acknowledged(
    wire: Wire, empty_broker: TestBroker
) -> None:
    for number in range(10):
        await wire.publish(
            EXCHANGE, "k", str(number).encode(), properties={"message_id": str(number)}, headers={}
        )
    async with open_wire(empty_broker.admin_url) as consuming:
        tags: dict[bytes, int] = {}
        await consuming.consume(QUEUE, "test", partial(_remember, tags))
        await eventually(lambda: len(tags) == 10, "delivery of all ten")
        for group in ([b"2", b"3"], [b"0"], [b"1", b"5"], [b"9"], [b"4"]):
            for body in group:
                consuming.acknowledge(tags[body])
            await consuming.drain()
        assert not consuming.closed

    left = {(await take(empty_broker.admin_url, QUEUE)).body for _ in range(3)}
    assert left == {b"6", b"7", b"8"}
    assert await depth(empty_broker.admin_url, QUEUE) == 0


def _remember(tags: dict[bytes, int], tag: int, delivery: Delivery) -> None:
    tags[delivery.body] = tag
