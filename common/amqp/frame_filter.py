"""Takes the busy frames of a connection out of its stream of bytes, before aiormq reads them.

aiormq makes several objects, two tasks and a dozen awaits of each delivery and each confirm:
half of the time of a busy consumer. Here they go straight to the channel's ``Wire``. All
other frames reach aiormq as they came: it keeps connections, heartbeats, channels, closing
and errors.

What this relies on is public: a transport factory (aiormq), ``transport.set_protocol``
(asyncio). Checked with aiormq 7.2.
"""

import asyncio
import time
from typing import Any, Protocol

from aiormq.abc import AbstractChannel
from aiormq.connection import TCPTransportFactory, TLSTransportFactory, TransportFactory
from yarl import URL

from common.amqp import frames

SIGN_OF_LIFE_SECONDS = 1.0
"""aiormq hears of taken frames at most so often: it closes connections that seem silent."""


class FrameHandler(Protocol):
    """What takes frames of one channel: ``common.amqp.channel``."""

    def take(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take the frame whose payload is ``data[start:stop]``; False leaves it to aiormq."""
        ...

    def end(self) -> None:
        """Hear that the broker closes the connection; aiormq needs some turns to say so."""
        ...


class FrameFilter(asyncio.Protocol):
    """Stands between the transport of one connection and aiormq's reader."""

    def __init__(self) -> None:
        self.transport: asyncio.WriteTransport
        self._inner: Any
        self._takers: dict[int, FrameHandler] = {}
        self._rest = b""
        self._foreign = False
        self._told_at = 0.0

    def install(self, transport: asyncio.Transport) -> None:
        """Begin to stand in between; nothing may have been received yet."""
        self.transport = transport
        self._inner = transport.get_protocol()
        transport.set_protocol(self)

    def attach(self, channel: AbstractChannel, taker: FrameHandler) -> None:
        """Let ``taker`` have the frames of a channel from now on."""
        self._takers[channel.number] = taker

    def data_received(self, data: bytes) -> None:
        """Called by the loop with bytes in any portions."""
        if self._foreign:
            self._inner.data_received(data)
            return
        if self._rest:
            data = self._rest + data
        for_aiormq: list[bytes] = []
        taken = False
        at, end = 0, len(data)
        while end - at >= frames.OVERHEAD:
            kind, channel, size = frames.HEAD.unpack_from(data, at)
            stop = at + frames.OVERHEAD + size
            broken = stop <= end and data[stop - 1] != frames.END[0]
            if broken or kind not in _KINDS:  # no AMQP as we know it: aiormq has the words for it
                self._foreign = True
                for_aiormq.append(data[at:])
                at = end
                break
            if stop > end:
                break
            taker = self._takers.get(channel)
            if taker is not None and taker.take(kind, data, at + frames.HEAD.size, stop - 1):
                taken = True
            else:
                for_aiormq.append(data[at:stop])
                if channel == 0 and kind == frames.METHOD:
                    self._watch_close(data, at + frames.HEAD.size)
            at = stop
        self._rest = data[at:]
        if taken:
            self._tell(for_aiormq)
        if for_aiormq:
            self._inner.data_received(b"".join(for_aiormq))

    def _watch_close(self, data: bytes, start: int) -> None:
        """Let all takers know when the broker closes the connection."""
        if data.startswith(_CONNECTION_CLOSE, start):
            for taker in self._takers.values():
                taker.end()

    def _tell(self, for_aiormq: list[bytes]) -> None:
        """Stand in for the heartbeats that a broker leaves out while it sends other frames."""
        now = time.monotonic()
        if now - self._told_at >= SIGN_OF_LIFE_SECONDS:
            self._told_at = now
            for_aiormq.insert(0, frames.A_HEARTBEAT)  # not after what may be no whole frame

    def eof_received(self) -> bool | None:
        """Called by the loop: the broker said its last word, perhaps half of one."""
        if self._rest:
            self._inner.data_received(self._rest)
            self._rest = b""
        answer: bool | None = self._inner.eof_received()
        return answer

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when the link is gone."""
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        """Called by the loop: the broker does not read as fast as we write."""
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        """Called by the loop: it has caught up."""
        self._inner.resume_writing()


_CONNECTION_CLOSE = frames.METHOD_ID.pack(frames.CONNECTION_CLOSE)
_KINDS = (frames.METHOD, frames.HEADER, frames.BODY, frames.HEARTBEAT)


class FrameFilterFactory(TransportFactory):
    """Opens aiormq's connections, with a tap in each."""

    def __init__(self, tap: FrameFilter) -> None:
        self._tap = tap

    async def create(
        self, url: URL, **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as aiormq would, then put the tap in."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **options)
        self._tap.install(writer.transport)  # type: ignore[arg-type]
        return reader, writer
