"""Messages of the same id never travel side by side; on real brokers: integration/messaging."""

import asyncio
from collections.abc import Mapping
from typing import Any, cast

import pytest

from common.amqp.channel import Channel
from common.amqp.confirms import Confirmation, ConfirmTracker
from common.amqp.connection import ReconnectingConnection
from common.amqp.publisher import Publisher
from common.errors import (
    BrokerUnavailableError,
    NotConfirmedError,
    UnroutableError,
    UserStreamError,
)


class FakeChannel(Channel):
    """Keeps what is published; the test resolves it."""

    def __init__(self) -> None:
        self.is_lost = False
        self.published: list[Confirmation] = []
        self.confirms = ConfirmTracker()

    @property
    def closed(self) -> bool:
        return self.is_lost

    def publish(self, *_: Any, properties: Mapping[str, Any], **__: Any) -> Confirmation:
        confirmation = self.confirms.register(properties["message_id"])
        self.published.append(confirmation)
        return confirmation

    def settle(self, number: int, error: UserStreamError | None = None) -> None:
        self.confirms.resolve(number + 1, multiple=False, failure=error)

    def break_off(self) -> None:
        self.is_lost = True
        self.confirms.end(BrokerUnavailableError("lost"))


class FakeConnection:
    """Opens a new channel a moment after the first is lost."""

    blocked = False

    def __init__(self, *channels: FakeChannel) -> None:
        self.channels = channels

    async def channel(self, _seconds: float) -> FakeChannel:
        if self.channels[0].closed:
            await asyncio.sleep(0)
        return next(channel for channel in self.channels if not channel.closed)


def connected(*channels: FakeChannel) -> Publisher:
    publisher = Publisher("amqp://nowhere", service="sender", exchanges=[], queues=[])
    publisher._connection = cast(ReconnectingConnection, FakeConnection(*channels))
    return publisher


async def test_one_id_is_unconfirmed_once_also_after_the_connection_was_lost() -> None:
    old, new = FakeChannel(), FakeChannel()
    publisher = connected(old, new)

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
    answer: type[UserStreamError], error: type[Exception]
) -> None:
    channel = FakeChannel()
    publisher = connected(channel)

    def publish() -> asyncio.Task[None]:
        sent = publisher.send("x", "k", b"{}", properties={"message_id": "m-1"}, headers={})
        return asyncio.create_task(sent)

    written = publish()
    await _settle()
    channel.settle(0, answer("why"))
    with pytest.raises(error, match="why") as raised:
        await written
    assert raised.type is error

    publisher._connection.blocked = True  # so the next one is not written
    with pytest.raises(BrokerUnavailableError) as refused:
        await publish()
    assert refused.type is BrokerUnavailableError


async def _settle() -> None:
    """Let every task go as far as it can."""
    for _ in range(20):
        await asyncio.sleep(0)
