"""Takes the busy frames of a connection out of its stream of bytes, before aiormq reads them.

aiormq makes several objects, two tasks and a dozen awaits of each delivery and each confirm:
half of the time of a busy consumer. Here they go straight to the channel's ``Channel``. All
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

KEEPALIVE_SECONDS = 1.0
"""aiormq sees a heartbeat for handled frames so often: it closes connections that seem silent."""


class FrameHandler(Protocol):
    """Handles frames of one channel: ``common.amqp.channel``."""

    def feed_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Handle the frame whose payload is ``data[start:stop]``; False leaves it to aiormq."""
        ...

    def end(self) -> None:
        """Note that the broker closes the connection; aiormq needs some iterations to say so."""
        ...


class FrameFilter(asyncio.Protocol):
    """Stands between the transport of one connection and aiormq's reader."""

    def __init__(self) -> None:
        self.transport: asyncio.WriteTransport
        self._inner: Any
        self._handlers: dict[int, FrameHandler] = {}
        self._rest = b""
        self._foreign = False
        self._kept_alive_at = 0.0

    def install(self, transport: asyncio.Transport) -> None:
        """Begin to stand in between; nothing may have been received yet."""
        self.transport = transport
        self._inner = transport.get_protocol()
        transport.set_protocol(self)

    def attach(self, channel: AbstractChannel, handler: FrameHandler) -> None:
        """Give the frames of a channel to ``handler`` from now on."""
        self._handlers[channel.number] = handler

    def data_received(self, data: bytes) -> None:
        """Called by the loop with bytes, cut anywhere."""
        if self._foreign:
            self._inner.data_received(data)
            return
        if self._rest:
            data = self._rest + data
        for_aiormq: list[bytes] = []
        handled = False
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
            handler = self._handlers.get(channel)
            payload = at + frames.HEAD.size
            if handler is not None and handler.feed_frame(kind, data, payload, stop - 1):
                handled = True
            else:
                for_aiormq.append(data[at:stop])
                if channel == 0 and kind == frames.METHOD:
                    self._watch_close(data, payload)
            at = stop
        self._rest = data[at:]
        if handled:
            self._send_keepalive(for_aiormq)
        if for_aiormq:
            self._inner.data_received(b"".join(for_aiormq))

    def _watch_close(self, data: bytes, start: int) -> None:
        """End all handlers when the broker closes the connection."""
        if data.startswith(_CONNECTION_CLOSE, start):
            for handler in self._handlers.values():
                handler.end()

    def _send_keepalive(self, for_aiormq: list[bytes]) -> None:
        """Stand in for the heartbeats that a broker leaves out while it sends other frames."""
        now = time.monotonic()
        if now - self._kept_alive_at >= KEEPALIVE_SECONDS:
            self._kept_alive_at = now
            for_aiormq.insert(0, frames.A_HEARTBEAT)  # not after what may be no whole frame

    def eof_received(self) -> bool | None:
        """Called by the loop: the broker sends nothing more; the last frame may be incomplete."""
        if self._rest:
            self._inner.data_received(self._rest)
            self._rest = b""
        answer: bool | None = self._inner.eof_received()
        return answer

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop when the connection is lost."""
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
    """Opens the socket of one connection of aiormq, with the filter in it."""

    def __init__(self, frame_filter: FrameFilter) -> None:
        self._frame_filter = frame_filter

    async def create(
        self, url: URL, **options: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect as aiormq would, then install the filter."""
        factory = TLSTransportFactory() if url.scheme == "amqps" else TCPTransportFactory()
        reader, writer = await factory.create(url, **options)
        self._frame_filter.install(writer.transport)  # type: ignore[arg-type]
        return reader, writer
