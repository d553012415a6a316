import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
from aio_pika import Message
from yarl import URL

from common.amqp.message import Delivery
from common.amqp.stream import StreamReader
from common.contracts.topology import USER_REGISTRATION, definitions
from common.errors import TopologyMissingError
from tests.amqp import depth, eventually, opened, publish
from tests.backends import TestBroker

STREAM = USER_REGISTRATION.log


def forget(broker: TestBroker) -> None:
    """Make the stream anew, without a message."""
    broker.management("DELETE", f"/api/queues/%2F/{quote(STREAM)}")
    broker.management("POST", "/api/definitions", definitions())


@pytest.fixture
def fresh_broker(empty_broker: TestBroker) -> TestBroker:
    forget(empty_broker)
    return empty_broker


@pytest.fixture
async def reader(fresh_broker: TestBroker) -> AsyncIterator[StreamReader]:
    url = fresh_broker.url("queue_receiver")
    async with StreamReader(url, service="queue_receiver") as reader:
        yield reader


def seen(offset: int, delivery: Delivery) -> tuple[int, UUID]:
    return offset, delivery.id


async def published(broker: TestBroker, count: int) -> list[UUID]:
    ids = [uuid4() for _ in range(count)]
    for message_id in ids:
        await publish(broker.admin_url, USER_REGISTRATION.name, b"{}", message_id=str(message_id))
    return ids


class StallingProxy:
    """Hands on what the broker says, with a pause after each few kilobytes."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.stalls = 0

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        """The port to connect to."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        behind, onward = await asyncio.open_connection("127.0.0.1", self._port)
        up = asyncio.create_task(self._pump(reader, onward, stall=False))
        await self._pump(behind, writer, stall=True)
        up.cancel()

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, stall: bool
    ) -> None:
        passed = 0
        while chunk := await reader.read(4096):
            passed += len(chunk)
            if stall and passed > 20_000:
                self.stalls += 1
                passed = 0
                await asyncio.sleep(0.7)
            writer.write(chunk)
        writer.close()


@asynccontextmanager
async def publishing(broker: TestBroker, *, times: int) -> AsyncIterator[asyncio.Task[None]]:
    """Publish every 20 ms, until the block is left."""

    async def go_on() -> None:
        async with opened(broker.admin_url) as channel:
            exchange = await channel.get_exchange(USER_REGISTRATION.name, ensure=False)
            for _ in range(times):
                message = Message(b"{}", delivery_mode=2, message_id=str(uuid4()))
                await exchange.publish(message, "anything")
                await asyncio.sleep(0.02)

    task = asyncio.create_task(go_on())
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_a_stream_is_read_from_any_offset_as_often_as_one_likes(
    fresh_broker: TestBroker, reader: StreamReader
) -> None:
    ids = await published(fresh_broker, 5)

    assert await reader.read(STREAM, "first", seen, limit=100) == list(enumerate(ids))
    assert await reader.read(STREAM, 3, seen, limit=100) == [(3, ids[3]), (4, ids[4])]
    assert await reader.read(STREAM, 1, seen, limit=2) == [(1, ids[1]), (2, ids[2])]
    assert await reader.read(STREAM, 0, seen, limit=100) == list(enumerate(ids))


async def test_the_work_queue_and_the_stream_have_each_publish(
    fresh_broker: TestBroker, reader: StreamReader
) -> None:
    await published(fresh_broker, 3)

    assert await depth(fresh_broker.admin_url, USER_REGISTRATION.queue) == 3
    assert len(await reader.read(STREAM, "first", seen, limit=100)) == 3


async def test_a_retry_that_comes_back_is_no_second_publish(
    fresh_broker: TestBroker, reader: StreamReader
) -> None:
    (once,) = await published(fresh_broker, 1)
    await publish(fresh_broker.admin_url, USER_REGISTRATION.return_exchange, b"{}")

    assert await reader.read(STREAM, "first", seen, limit=100) == [(0, once)]


async def test_more_than_is_on_its_way_at_once_is_read_whole(
    fresh_broker: TestBroker, reader: StreamReader
) -> None:
    ids = await published(fresh_broker, 30)
    batches = [published(fresh_broker, 30) for _ in range(10)]
    for more in await asyncio.gather(*batches):
        ids += more

    found = await reader.read(STREAM, "first", seen, limit=1000)
    again = await reader.read(STREAM, "first", seen, limit=1000, throttled=True)

    assert [offset for offset, _ in found] == list(range(330))
    assert {message_id for _, message_id in found} == set(ids)
    assert again == found


async def test_a_stream_that_never_rests_has_an_end_all_the_same(
    fresh_broker: TestBroker, reader: StreamReader
) -> None:
    async with publishing(fresh_broker, times=1000) as publisher:
        found = await reader.read(STREAM, "first", seen, limit=1000)
        assert not publisher.done()
        more = await reader.read(STREAM, found[-1][0] + 1, seen, limit=1000, throttled=True)
        assert not publisher.done()

    assert [offset for offset, _ in found + more] == list(range(len(found + more)))
    assert more


async def test_what_a_stalling_network_holds_back_is_read_too(fresh_broker: TestBroker) -> None:
    """Half a second of silence at a time is no end of a stream."""
    for _ in range(8):
        await asyncio.gather(*(published(fresh_broker, 20) for _ in range(5)))
    url = URL(fresh_broker.url("queue_receiver"))
    stalling = StallingProxy(url.port or 5672)
    async with (
        stalling.listening() as port,
        StreamReader(str(url.with_port(port)), service="queue_receiver") as reader,
    ):
        found = await reader.read(STREAM, "first", seen, limit=1000)
        on = await reader.read(STREAM, 799, seen, limit=1000, throttled=True)

    assert [offset for offset, _ in found] == list(range(800))
    assert on == found[-1:]
    assert stalling.stalls


async def test_nothing_is_found_in_an_empty_stream_and_beyond_the_end(
    fresh_broker: TestBroker, reader: StreamReader
) -> None:
    assert await reader.read(STREAM, "first", seen, limit=10) == []

    await published(fresh_broker, 1)
    assert await reader.read(STREAM, 700, seen, limit=10) == []


async def test_a_stream_that_is_not_there_is_named_and_read_again_when_it_is(
    fresh_broker: TestBroker, reader: StreamReader
) -> None:
    fresh_broker.management("DELETE", f"/api/queues/%2F/{quote(STREAM)}")
    with pytest.raises(TopologyMissingError):
        await reader.read(STREAM, "first", seen, limit=10)

    forget_nothing = definitions()
    fresh_broker.management("POST", "/api/definitions", forget_nothing)
    ids = await published(fresh_broker, 2)

    async def found() -> bool:
        return await reader.read(STREAM, "first", seen, limit=10) == list(enumerate(ids))

    await eventually(found, "reading")


async def test_a_reader_whose_channel_is_lost_gives_a_failure_for_a_reason(
    reader: StreamReader,
) -> None:
    """Right after connecting nothing has failed yet, and "Connected." would be no reason."""
    await reader.read(STREAM, "first", seen, limit=10)

    assert "is lost" in reader._connection._failure.detail


async def test_messages_that_wait_are_counted(
    fresh_broker: TestBroker, reader: StreamReader
) -> None:
    await published(fresh_broker, 2)

    counts = await reader.count_ready([USER_REGISTRATION.queue, *USER_REGISTRATION.retries])

    assert counts is not None
    assert counts.pop(USER_REGISTRATION.queue) == 2
    assert set(counts.values()) == {0}
