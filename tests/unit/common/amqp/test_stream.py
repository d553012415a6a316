import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest

from common.amqp import stream
from common.amqp.channel import Channel, Received
from common.amqp.message import Delivery
from common.amqp.stream import OFFSET, PREFETCH, StreamReader
from common.errors import BrokerUnavailableError


class SlowBroker:
    """Gives the messages of a stream, as many at once as are not acknowledged.

    Each acknowledged one makes place for another, which arrives ``seconds`` later.
    """

    closed = False

    def __init__(
        self,
        messages: int,
        *,
        seconds: float,
        apart: float = 0.0,
        stall_after: int = 0,
        stall_seconds: float = 0.0,
        falls_silent: bool = False,
    ) -> None:
        self._messages = messages
        self._seconds = seconds
        self._apart = apart
        """Seconds between one message and the next."""
        self._stall_after = stall_after
        self._stall_seconds = stall_seconds
        """Pause after each so many messages."""
        self._falls_silent = falls_silent
        """Says nothing any more once all was given."""
        self._given = 0
        self._planned = 0
        self._next_at = 0.0
        self._in_flight: set[int] = set()
        self.most_in_flight = 0
        self.underlying = SimpleNamespace(
            basic_cancel=self._cancel, basic_qos=self._answer, consumers={"test": None}
        )

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
        self._in_flight.remove(tag)
        self._later()

    def _later(self) -> None:
        loop = asyncio.get_running_loop()
        self._planned += 1
        self._next_at = max(self._next_at + self._apart, loop.time() + self._seconds)
        if self._stall_after and self._planned % self._stall_after == 0:
            self._next_at += self._stall_seconds
        loop.call_at(self._next_at, self._give)

    def _give(self) -> None:
        if self._given < self._messages:
            offset, self._given = self._given, self._given + 1
            self._in_flight.add(offset)
            self.most_in_flight = max(self.most_in_flight, len(self._in_flight))
            self._received(offset, Delivery(body=b"", routing_key="", headers={OFFSET: offset}))

    async def _answer(self, **_options: int) -> None:
        """Answer behind all messages that an ack has made place for, as a broker does."""
        if self._falls_silent:
            await asyncio.Event().wait()
        loop = asyncio.get_running_loop()
        await asyncio.sleep(max(self._next_at, loop.time() + self._seconds) - loop.time() + 0.01)

    def flush(self) -> None:
        """Everything leaves at once."""

    def close(self) -> None:
        """Nothing more is read."""

    async def _cancel(self, _tag: str, **_options: float) -> None:
        self._messages = 0

    @property
    def owed(self) -> int:
        """Messages that were given and not acknowledged."""
        return len(self._in_flight)


async def read(broker: SlowBroker, *, limit: int, throttled: bool) -> list[int]:
    reader = StreamReader("amqp://nobody@127.0.0.1:1", service="test")
    reader._connection._channel.set_result(cast(Channel, broker))
    return await reader.read(
        "stream", "first", lambda offset, _: offset, limit=limit, throttled=throttled
    )


@pytest.mark.slow
@pytest.mark.parametrize("throttled", [True, False])
@pytest.mark.parametrize("seconds", [0.001, 0.03, 0.06, 0.12])
async def test_a_broker_that_is_slow_has_not_come_to_the_end(
    seconds: float, *, throttled: bool
) -> None:
    """Nor a process that is: its own work may be in the way for as long."""
    broker = SlowBroker(10_000, seconds=seconds)

    found = await read(broker, limit=400, throttled=throttled)

    assert found == list(range(400))
    assert broker.owed == 0
    assert broker.most_in_flight <= PREFETCH


@pytest.mark.parametrize("throttled", [True, False])
@pytest.mark.parametrize("messages", [1, PREFETCH - 1, PREFETCH, PREFETCH + 1, 130])
async def test_the_end_of_a_stream_is_found(
    messages: int, monkeypatch: pytest.MonkeyPatch, *, throttled: bool
) -> None:
    monkeypatch.setattr(stream, "CALM_SECONDS", 0.05)
    broker = SlowBroker(messages, seconds=0.01)

    found = await read(broker, limit=400, throttled=throttled)

    assert found == list(range(messages))
    assert broker.owed == 0


@pytest.mark.slow
@pytest.mark.parametrize("throttled", [True, False])
async def test_where_messages_drip_there_is_more(*, throttled: bool) -> None:
    """No batch is ever whole in time."""
    broker = SlowBroker(10_000, seconds=0.001, apart=0.01)

    found = await read(broker, limit=120, throttled=throttled)

    assert found == list(range(120))


@pytest.mark.slow
@pytest.mark.parametrize("throttled", [True, False])
@pytest.mark.parametrize("stall_after", [7, 10, PREFETCH])
async def test_a_broker_that_stalls_has_not_come_to_the_end(
    stall_after: int, monkeypatch: pytest.MonkeyPatch, *, throttled: bool
) -> None:
    monkeypatch.setattr(stream, "CALM_SECONDS", 0.02)
    monkeypatch.setattr(stream, "FIRST_SECONDS", 0.02)
    broker = SlowBroker(140, seconds=0.001, stall_after=stall_after, stall_seconds=0.1)

    found = await read(broker, limit=1000, throttled=throttled)

    assert found == list(range(140))


@pytest.mark.parametrize("messages", [0, 3, PREFETCH])
async def test_a_broker_that_falls_silent_has_not_come_to_the_end(
    messages: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(stream, "ANSWER_SECONDS", 0.2)
    broker = SlowBroker(messages, seconds=0.001, falls_silent=True)

    with pytest.raises(BrokerUnavailableError):
        await read(broker, limit=1000, throttled=False)


async def test_a_stream_that_is_deleted_meanwhile_has_no_end() -> None:
    broker = SlowBroker(3, seconds=0.001)
    broker.underlying.consumers.clear()

    with pytest.raises(BrokerUnavailableError):
        await read(broker, limit=1000, throttled=False)


async def test_where_nobody_waits_a_pause_follows_each_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "BATCH_SECONDS", 60)
    monkeypatch.setattr(stream, "CALM_SECONDS", 60)
    broker = SlowBroker(10_000, seconds=0.001)

    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.5):
            await read(broker, limit=400, throttled=True)

    assert broker.most_in_flight == broker.owed == PREFETCH


async def test_where_somebody_waits_there_is_no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BATCH_SECONDS", 60)
    monkeypatch.setattr(stream, "CALM_SECONDS", 60)
    broker = SlowBroker(10_000, seconds=0.001)

    found = await read(broker, limit=400, throttled=False)

    assert found == list(range(400))
