"""The fake publisher and the real one do the same with a message."""

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import uuid4

import pytest
from aio_pika.abc import AbstractIncomingMessage

from common.amqp.message import TRACEPARENT
from common.amqp.publisher import Publisher
from common.context import current, enter_message
from common.contracts.topology import USER_REGISTRATION
from common.errors import UnroutableError
from tests.amqp import a_registration, depth, take
from tests.backends import TestBroker
from tests.fakes.publisher import FakePublisher, Sent

DELIVERY_COUNT = "x-delivery-count"
"""The queue adds it."""

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class ByFake:
    def __init__(self) -> None:
        self.publisher = self.fake = FakePublisher()

    async def arrived(self) -> list[Sent]:
        return self.fake.sent

    @contextmanager
    def without_a_queue(self) -> Iterator[None]:
        self.fake.error = UnroutableError()
        try:
            yield
        finally:
            self.fake.error = None


class ByBroker:
    def __init__(self, broker: TestBroker, publisher: Publisher) -> None:
        self.broker, self.publisher = broker, publisher

    async def arrived(self) -> list[Sent]:
        queue, url = USER_REGISTRATION.queue, self.broker.admin_url
        messages = [await take(url, queue) for _ in range(await depth(url, queue))]
        return [
            Sent(
                message.exchange or "",
                message.routing_key or "",
                message.body,
                {
                    name: getattr(message, name)
                    for name in (
                        *("message_id", "correlation_id", "type"),
                        *("timestamp", "app_id", "content_type"),
                    )
                },
                {k: v for k, v in message.headers.items() if k != DELIVERY_COUNT},
                _expiration(message),
            )
            for message in messages
        ]

    @contextmanager
    def without_a_queue(self) -> Iterator[None]:
        exchange = f"/api/bindings/%2F/e/{USER_REGISTRATION.name}/q"
        queues = (USER_REGISTRATION.queue, USER_REGISTRATION.log)
        for queue in queues:
            self.broker.management("DELETE", f"{exchange}/{queue}/%23")
        try:
            yield
        finally:
            for queue in queues:
                self.broker.management("POST", f"{exchange}/{queue}", {"routing_key": "#"})


def _expiration(message: AbstractIncomingMessage) -> timedelta | None:
    seconds = message.expiration
    return None if seconds is None else timedelta(seconds=float(cast("float", seconds)))


@pytest.fixture(params=["fake", "real"])
async def publishing(request: pytest.FixtureRequest) -> AsyncIterator[ByFake | ByBroker]:
    if request.param == "fake":
        yield ByFake()
        return
    broker: TestBroker = request.getfixturevalue("empty_broker")
    async with Publisher(
        broker.url("frontend"), service="test", exchanges=[USER_REGISTRATION.name]
    ) as publisher:
        yield ByBroker(broker, publisher)


async def test_a_contract_arrives_with_its_properties(publishing: ByFake | ByBroker) -> None:
    registration, message_id = a_registration(), uuid4()
    enter_message("", "c-1", TRACE)

    await publishing.publisher.publish(registration, message_id=message_id, correlation_id="c-1")

    [message] = await publishing.arrived()
    assert message.id == message_id
    assert message.exchange == USER_REGISTRATION.name
    assert message.routing_key == message.properties["type"] == registration.type_name
    assert message.properties["correlation_id"] == "c-1"
    assert message.properties["app_id"] == "test"
    assert message.properties["content_type"] == "application/json"
    assert abs(message.properties["timestamp"] - datetime.now(UTC)) < timedelta(hours=1)
    assert type(registration).model_validate_json(message.body) == registration
    assert message.headers == {TRACEPARENT: current().traceparent}


async def test_bytes_arrive_as_they_are(publishing: ByFake | ByBroker) -> None:
    await publishing.publisher.send(
        USER_REGISTRATION.name,
        "anything",
        b"\x00 no JSON",
        properties={"message_id": str(uuid4()), "type": "x"},
        headers={"mood": "good"},
        expiration=timedelta(hours=1),
    )

    [message] = await publishing.arrived()
    assert (message.routing_key, message.body) == ("anything", b"\x00 no JSON")
    assert message.properties["type"] == "x"
    assert message.headers == {"mood": "good"}
    assert message.expiration == timedelta(hours=1)


async def test_what_is_not_confirmed_did_not_arrive_and_can_be_published_again(
    publishing: ByFake | ByBroker,
) -> None:
    registration, message_id = a_registration(), uuid4()

    with publishing.without_a_queue(), pytest.raises(UnroutableError):
        await publishing.publisher.publish(
            registration, message_id=message_id, correlation_id="c-1"
        )
    assert await publishing.arrived() == []

    await publishing.publisher.publish(registration, message_id=message_id, correlation_id="c-1")
    assert [message.id for message in await publishing.arrived()] == [message_id]
