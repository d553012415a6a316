import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from common.amqp.connection import QueueCount
from common.contracts.topology import USER_REGISTRATION
from common.messaging import subscription
from common.messaging.consumer_state import ConsumerState
from common.messaging.subscription import Subscription


class Counting:
    """Stands for the broker where a queue is counted; ``answer`` is given, or raised."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    async def __call__(self, *_: object) -> list[QueueCount] | None:
        self.asked += 1
        if isinstance(self.answer, BaseException):
            raise self.answer
        counts: list[QueueCount] | None = self.answer
        return counts


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    counting = Counting(None)
    monkeypatch.setattr(subscription, "count_queues", counting)
    return counting


@pytest.fixture
async def subscribed() -> Subscription:
    state = ConsumerState(prefetch=5)
    state.channel = SimpleNamespace()  # type: ignore[assignment]
    return Subscription(
        "amqp://localhost",
        service="test",
        route=USER_REGISTRATION,
        state=state,
        on_channel=lambda: None,
        on_delivery=lambda _: None,
    )


async def test_a_broker_that_refuses_to_count_is_asked_once_on_each_channel(
    counting: Counting, subscribed: Subscription
) -> None:
    assert [await subscribed._count_waiting() for _ in range(3)] == [0, 0, 0]
    assert counting.asked == 1

    subscribed._state.channel = SimpleNamespace()  # type: ignore[assignment]
    counting.answer = [QueueCount(ready=7, consumers=1)]
    assert [await subscribed._count_waiting() for _ in range(2)] == [7, 7]
    assert counting.asked == 3


@pytest.mark.parametrize("error", [asyncio.CancelledError(), TimeoutError(), ConnectionError()])
async def test_a_channel_that_is_lost_while_the_queue_is_counted_does_not_end_the_watch(
    counting: Counting, subscribed: Subscription, error: BaseException
) -> None:
    counting.answer = error  # aiormq cancels what waits for a channel that goes away

    assert await subscribed._count_waiting() == 0
