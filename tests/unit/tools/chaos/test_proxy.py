"""A broken link is broken in the way that was asked for, and whole again afterwards."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from tests.polling import until
from tools.chaos.proxy import Mode, Proxy

HOST = "127.0.0.1"
SOON = 0.3
"""Seconds in which a byte would have come long since."""


@asynccontextmanager
async def echoing(prefix: bytes = b"") -> AsyncIterator[int]:
    """A server that says back what it hears; its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                writer.write(prefix + data)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


@asynccontextmanager
async def proxied(*backends: int, **options: object) -> AsyncIterator[Proxy]:
    proxy = Proxy("test", backends, **options)  # type: ignore[arg-type] # as given
    await proxy.start()
    try:
        yield proxy
    finally:
        await proxy.stop()


async def said_back(proxy: Proxy, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection(HOST, proxy.port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.readexactly(len(data)), 5)
    finally:
        writer.close()


async def test_a_whole_link_hands_on_both_ways() -> None:
    async with echoing() as port, proxied(port) as proxy:
        assert await said_back(proxy, b"x" * 300_000) == b"x" * 300_000


async def test_a_cut_link_resets_what_is_there_and_takes_nothing_new() -> None:
    async with echoing() as port, proxied(port) as proxy:
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"hello")
        await reader.readexactly(5)

        proxy.set(Mode.CUT)

        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.readexactly(1), 5)
        with pytest.raises((OSError, EOFError)):
            await said_back(proxy, b"hello")
        proxy.set(Mode.PASS)
        assert await said_back(proxy, b"hello") == b"hello"
        writer.close()


async def test_a_black_hole_keeps_the_connection_and_says_nothing() -> None:
    async with echoing() as port, proxied(port) as proxy:
        proxy.set(Mode.BLACKHOLE)
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"hello")

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), SOON)

        proxy.set(Mode.PASS)
        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(1), 5) == b""
        writer.close()


async def test_a_throttled_link_hands_on_a_byte_at_a_time() -> None:
    async with echoing() as port, proxied(port) as proxy:
        proxy.set(Mode.THROTTLE)
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"hello")

        assert await asyncio.wait_for(reader.read(100), 5) == b"h"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.read(1), SOON)
        writer.close()


@pytest.mark.parametrize("limit", [0, 1, 7, 9999])
async def test_a_link_is_reset_after_so_many_bytes(limit: int) -> None:
    heard = bytearray()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(65536):
                heard.extend(data)
        writer.close()

    server = await asyncio.start_server(serve, HOST, 0)
    async with server, proxied(server.sockets[0].getsockname()[1]) as proxy:
        proxy.set(Mode.RESET_AFTER, limit)
        reader, writer = await asyncio.open_connection(HOST, proxy.port)
        writer.write(b"x" * 20_000)

        with suppress(ConnectionResetError):
            assert await asyncio.wait_for(reader.read(1), 5) == b""
        assert len(heard) <= limit
        writer.close()


async def test_backends_take_turns() -> None:
    async with echoing(b"1") as one, echoing(b"2") as two, proxied(one, two) as proxy:
        answers = {(await said_back(proxy, b"x"))[:1] for _ in range(4)}

    assert answers == {b"1", b"2"}


async def test_a_backend_that_is_not_well_gets_nothing() -> None:
    sick: set[int] = set()

    async def is_well(port: int) -> bool:
        return port not in sick

    async with (
        echoing(b"1") as one,
        echoing(b"2") as two,
        proxied(one, two, is_well=is_well) as proxy,
    ):
        sick.add(one)
        await until(lambda: one in proxy._sick)

        assert {(await said_back(proxy, b"x"))[:1] for _ in range(4)} == {b"2"}
