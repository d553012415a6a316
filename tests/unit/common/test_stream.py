import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common import stream
from common.envelope import Delivery
from common.line import Received
from common.stream import OFFSET, PREFETCH, StreamReader
from common.wire import Wire


class SlowBroker:
    """Gives the messages of a stream, as many at once as are not acknowledged.

    Each acknowledged one makes place for another, which arrives ``seconds`` later.
    """

    closed = False

    def __init__(self, messages: int, *, seconds: float, apart: float = 0.0) -> None:
        self._messages = messages
        self._seconds = seconds
        self._apart = apart
        """Seconds between one message and the next."""
        self._given = 0
        self._next_at = 0.0
        self._in_hand: set[int] = set()
        self.most_in_hand = 0
        self.channel = SimpleNamespace(basic_cancel=self._cancel)

    async def consume(
        self, _queue: str, _tag: str, received: Received, *, arguments: dict[str, Any]
    ) -> None:
        """Begin to give."""
        assert arguments == {OFFSET: "first"}
        self._received = received
        for _ in range(PREFETCH):
            self._later()

    def acknowledge(self, tag: int) -> None:
        """Take an acknowledgement."""
        self._in_hand.remove(tag)
        self._later()

    def _later(self) -> None:
        loop = asyncio.get_running_loop()
        self._next_at = max(self._next_at + self._apart, loop.time() + self._seconds)
        loop.call_at(self._next_at, self._give)

    def _give(self) -> None:
        if self._given < self._messages:
            offset, self._given = self._given, self._given + 1
            self._in_hand.add(offset)
            self.most_in_hand = max(self.most_in_hand, len(self._in_hand))
            self._received(offset, Delivery(body=b"", routing_key="", headers={OFFSET: offset}))

    async def _cancel(self, _tag: str, **_options: float) -> None:
        self._messages = 0

    @property
    def owed(self) -> int:
        """Messages that were given and not acknowledged."""
        return len(self._in_hand)


async def read(broker: SlowBroker, *, limit: int, gently: bool) -> list[int]:
    reader = StreamReader("amqp://nobody@127.0.0.1:1", service="test", fast=True)
    reader._wire = cast(Wire, broker)
    return await reader.read(
        "stream", "first", lambda offset, _: offset, limit=limit, gently=gently
    )


@pytest.mark.parametrize("gently", [True, False])
@pytest.mark.parametrize("seconds", [0.001, 0.03, 0.06, 0.12])
async def test_a_broker_that_is_slow_has_not_come_to_the_end(
    seconds: float, *, gently: bool
) -> None:
    """Nor a process that is: its own work may be in the way for as long."""
    broker = SlowBroker(10_000, seconds=seconds)

    found = await read(broker, limit=400, gently=gently)

    assert found == list(range(400))
    assert broker.owed == 0
    assert broker.most_in_hand <= PREFETCH


@pytest.mark.parametrize("gently", [True, False])
@pytest.mark.parametrize("messages", [1, PREFETCH - 1, PREFETCH, PREFETCH + 1, 130])
async def test_the_end_of_a_stream_is_found(messages: int, *, gently: bool) -> None:
    broker = SlowBroker(messages, seconds=0.01)

    found = await read(broker, limit=400, gently=gently)

    assert found == list(range(messages))
    assert broker.owed == 0


async def test_where_messages_drip_there_is_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """No portion is ever whole in time, and still too many come for the end of a stream."""
    monkeypatch.setattr(stream, "CALM_MESSAGES", 20)  # of about 120
    broker = SlowBroker(10_000, seconds=0.001, apart=0.002)

    found = await read(broker, limit=250, gently=True)

    assert found == list(range(250))


@pytest.mark.parametrize(("gently", "read_in_time"), [(True, PREFETCH), (False, 400)])
async def test_only_where_nobody_waits_a_pause_follows_each_portion(
    monkeypatch: pytest.MonkeyPatch, *, gently: bool, read_in_time: int
) -> None:
    monkeypatch.setattr(stream, "PORTION_SECONDS", 60)
    broker = SlowBroker(10_000, seconds=0.001)

    found = await read(broker, limit=400, gently=gently)

    assert found == list(range(read_in_time))
