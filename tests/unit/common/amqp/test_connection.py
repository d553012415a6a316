"""A connection goes on trying, whatever the broker does while it is greeted."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from pamqp import commands, frame

from common.amqp.channel import Channel
from common.amqp.connection import ReconnectingConnection
from tests.polling import until

HEADER_BYTES = 8

START = frame.marshal(commands.Connection.Start(), 0)
TUNE = frame.marshal(commands.Connection.Tune(), 0)

Server = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _close_at_once(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()


async def _close_after_header(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(HEADER_BYTES)
    writer.close()


async def _close_amid_start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(HEADER_BYTES)
    writer.write(START[:20])
    writer.close()


async def _close_after_start(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(HEADER_BYTES)
    writer.write(START)
    await reader.read(1)
    writer.close()


async def _close_after_tune(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readexactly(HEADER_BYTES)
    writer.write(START)
    await reader.read(4096)
    writer.write(TUNE)
    await reader.read(1)
    writer.transport.abort()


async def _no_setup(_: Channel) -> None:
    raise AssertionError("no connection was ever opened")


@pytest.mark.slow
@pytest.mark.parametrize(
    "server",
    [
        _close_at_once,
        _close_after_header,
        _close_amid_start,
        _close_after_start,
        _close_after_tune,
    ],
)
async def test_a_broker_that_goes_away_amid_the_greeting_is_greeted_again(server: Server) -> None:
    greeted = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal greeted
        greeted += 1
        await server(reader, writer)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listening.sockets[0].getsockname()[1]
    async with listening:
        url = f"amqp://guest:guest@127.0.0.1:{port}/%2F"
        async with ReconnectingConnection(url, service="test", purpose="publish", setup=_no_setup):
            await until(lambda: greeted >= 3, "the third greeting")
