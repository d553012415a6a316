"""Messages of the same id never travel side by side; on real brokers: integration/messaging."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from common.amqp.channel import Wire
from common.amqp.confirms import Confirmation
from common.amqp.connection import Link
from common.amqp.publisher import Publisher
from common.errors import BrokerUnavailableError, NotConfirmedError, UnroutableError


class FakeWire(Wire):
    """Keeps what is published; the test says what becomes of it."""

    def __init__(self) -> None:
        self.is_lost = False
        self.published: list[Confirmation] = []
        self._loop = asyncio.get_running_loop()
        self._under_way = {}
        self._turns = {}

    @property
    def closed(self) -> bool:
        return self.is_lost

    def publish(self, *_: Any, properties: Mapping[str, Any], **__: Any) -> Confirmation:
        confirmation: Confirmation = asyncio.get_running_loop().create_future()
        self._under_way[properties["message_id"]] = confirmation
        self.published.append(confirmation)
        return confirmation

    def settle(self, number: int, error: Exception | None = None) -> None:
        confirmation = self.published[number]
        self._ended("m-1", confirmation)
        confirmation.set_exception(error) if error else confirmation.set_result(None)

    def break_off(self) -> None:
        self.is_lost = True
        self.settle(0, BrokerUnavailableError("lost"))


class FakeLink:
    """Comes back after a moment, with a new channel."""

    blocked = False

    def __init__(self, publisher: Publisher, successor: FakeWire) -> None:
        self.publisher, self.successor = publisher, successor

    async def channel(self) -> None:
        await asyncio.sleep(0)
        self.publisher._wire = cast(Wire, self.successor)


async def test_one_id_is_under_way_once_also_after_the_connection_was_lost() -> None:
    publisher = Publisher("amqp://nowhere", service="sender", exchanges=[], queues=[])
    old, new = FakeWire(), FakeWire()
    publisher._wire = cast(Wire, old)
    publisher._link = cast(Link, FakeLink(publisher, new))

    def publish() -> asyncio.Task[None]:
        sent = publisher.send("x", "k", b"{}", properties={"message_id": "m-1"}, headers={})
        return asyncio.create_task(sent)

    first, second, third = publish(), publish(), publish()
    await _settle()
    old.break_off()
    await _settle()

    assert len(old.published) == len(new.published) == 1
    with pytest.raises(BrokerUnavailableError):
        await first
    new.settle(0)
    await _settle()
    assert len(new.published) == 2
    new.settle(1)
    await asyncio.gather(second, third)


@pytest.mark.parametrize(
    ("answer", "error"),
    [(BrokerUnavailableError, NotConfirmedError), (UnroutableError, UnroutableError)],
)
async def test_only_what_the_broker_may_have_kept_is_not_confirmed(
    answer: type[Exception], error: type[Exception]
) -> None:
    publisher = Publisher("amqp://nowhere", service="sender", exchanges=[], queues=[])
    wire = FakeWire()
    publisher._wire = cast(Wire, wire)

    def publish() -> asyncio.Task[None]:
        sent = publisher.send("x", "k", b"{}", properties={"message_id": "m-1"}, headers={})
        return asyncio.create_task(sent)

    written = publish()
    await _settle()
    wire.settle(0, answer("why"))
    with pytest.raises(error, match="why") as raised:
        await written
    assert raised.type is error

    publisher._link.blocked = True  # so the next one is not written
    with pytest.raises(BrokerUnavailableError) as refused:
        await publish()
    assert refused.type is BrokerUnavailableError


async def _settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)
