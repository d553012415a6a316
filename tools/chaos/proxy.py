"""A TCP proxy on loopback whose links can be broken in the ways in which networks break."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import count

from tools.launcher.ports import HOST

CHUNK_BYTES = 65_536
"""Bytes that are read at once."""

TRICKLE_SECONDS = 1.0
"""Between two bytes of a throttled link."""


NO_LINGERING = struct.pack("ii", 1, 0)
"""Closing a socket resets the connection (``man 7 socket``, SO_LINGER)."""


class Mode(StrEnum):
    """What a link does with bytes."""

    PASS = "pass"  # noqa: S105 - not a password
    """Hands them on."""
    CUT = "cut"
    """Resets every connection and takes no new one: a machine that went down."""
    BLACKHOLE = "blackhole"
    """Keeps connections, hands on nothing, says nothing: a cable that was pulled."""
    THROTTLE = "throttle"
    """Hands on one byte a second."""
    RESET_AFTER = "reset_after"
    """Resets each connection once so many bytes have passed: in the middle of something."""


@dataclass(slots=True, eq=False)
class _Link:
    """One client's connection and the one behind it."""

    backend: int
    transports: list[asyncio.WriteTransport] = field(default_factory=list)
    passed: int = 0
    """Bytes since the fault began."""

    def abort(self) -> None:
        """Reset both sides: what was on its way is gone."""
        for transport in self.transports:
            if (connection := transport.get_extra_info("socket")) and not transport.is_closing():
                # Without it the other side would see an end in good order.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGERING)
            transport.abort()


@dataclass(slots=True)
class Proxy:
    """Listens on a free port and hands on to its backends in turns.

    A fault holds for the connections there are and for those that come.
    """

    name: str
    """Which link of which instance, such as ``amqp/sender-2``."""
    backends: Sequence[int]
    """Ports on this machine."""
    is_well: Callable[[int], Awaitable[bool]] | None = None
    """Asks a backend how it is; one that is not well gets no connections and loses those it has.

    Round-robin without it would hand every second request to an instance that hangs.
    """
    mode: Mode = Mode.PASS
    limit: int = 0
    """Bytes that a connection may pass with ``RESET_AFTER``."""
    port: int = 0
    _server: asyncio.Server | None = None
    _links: set[_Link] = field(default_factory=set)
    _changed: asyncio.Event = field(default_factory=asyncio.Event)
    _turn: "count[int]" = field(default_factory=count)
    _sick: set[int] = field(default_factory=set)
    _watching: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Listen; the port is known afterwards."""
        self._server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        if self.is_well and len(self.backends) > 1:
            self._watching = asyncio.create_task(self._watch(self.is_well))

    async def stop(self) -> None:
        """Listen no more and reset what is connected."""
        if self._watching:
            self._watching.cancel()
        if self._server:
            self._server.close()
        self._reset()

    def set(self, mode: Mode, limit: int = 0) -> None:
        """Begin a fault, or end it with ``Mode.PASS``.

        Connections that were black-holed or throttled are reset when they heal: a stream in
        which bytes are late is what the throttle is for, one with a hole in it is none.
        """
        healed = mode is Mode.PASS and self.mode is not Mode.PASS
        self.mode, self.limit = mode, limit
        if mode is Mode.CUT or healed:
            self._reset()
        for link in self._links:
            link.passed = 0
        self._changed.set()
        self._changed = asyncio.Event()

    def _reset(self) -> None:
        for link in list(self._links):
            link.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = _Link(self._pick(), [writer.transport])
        self._links.add(link)
        try:
            if self.mode is Mode.CUT:
                return
            behind, onward = await asyncio.open_connection(HOST, link.backend)
            link.transports.append(onward.transport)
            async with asyncio.TaskGroup() as both:
                both.create_task(self._pump(link, reader, onward))
                both.create_task(self._pump(link, behind, writer))
        except (OSError, ExceptionGroup):
            pass  # either side went away, and the other one is told so below
        finally:
            self._links.discard(link)
            link.abort()

    async def _pump(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        """Hand on one direction until its end; then that side is closed, not the other."""
        while chunk := await reader.read(CHUNK_BYTES):
            await self._hand_on(link, chunk, writer)
        with suppress(OSError):
            writer.write_eof()

    async def _hand_on(self, link: _Link, chunk: bytes, writer: asyncio.StreamWriter) -> None:
        while chunk:
            match self.mode:
                case Mode.BLACKHOLE:
                    await self._changed.wait()
                    continue
                case Mode.THROTTLE:
                    writer.write(chunk[:1])
                    chunk = chunk[1:]
                    with suppress(TimeoutError):
                        await asyncio.wait_for(self._changed.wait(), TRICKLE_SECONDS)
                    continue
                case Mode.RESET_AFTER if link.passed + len(chunk) > self.limit:
                    writer.write(chunk[: self.limit - link.passed])
                    raise ConnectionResetError("as the fault wants it")
            link.passed += len(chunk)
            writer.write(chunk)
            await writer.drain()
            return

    def _pick(self) -> int:
        well = [port for port in self.backends if port not in self._sick] or list(self.backends)
        return well[next(self._turn) % len(well)]

    async def _watch(self, is_well: Callable[[int], Awaitable[bool]]) -> None:
        while True:
            for port in self.backends:
                if await is_well(port):
                    self._sick.discard(port)
                else:
                    self._sick.add(port)
                    for link in [link for link in self._links if link.backend == port]:
                        link.abort()
            await asyncio.sleep(0.5)
