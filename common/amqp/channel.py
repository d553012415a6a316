"""An AMQP channel that batches writes per event-loop iteration and decodes its own frames.

aiormq writes every frame by itself, one system call for each, and awaits every frame it reads.
Here what handlers publish and acknowledge in one iteration of the event loop leaves in one write,
and deliveries and confirms come straight from the connection's ``FrameFilter``. Nothing waits for
more to come: a lone publish leaves at the end of its iteration.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import timedelta
from typing import Any

from aiormq.channel import Channel as AiormqChannel
from aiormq.exceptions import AMQPError

from common.amqp import frames
from common.amqp.confirms import Confirmation, ConfirmTracker
from common.amqp.frame_filter import FrameFilter
from common.amqp.message import Delivery
from common.errors import BrokerUnavailableError

Received = Callable[[int, Delivery], None]
"""Gets a delivery's tag and the delivery."""

CHANNEL_LOST = (AMQPError, OSError, RuntimeError, TimeoutError)
"""What aiormq raises on a channel that went away, or whose broker does not answer."""

UNSENT_BYTES = 16 * 1024 * 1024
"""What a broker that does not read may leave waiting with us: 250 of the largest bodies."""


class Channel:
    """A channel on which only this class publishes, consumes and acknowledges.

    What is rare goes through ``underlying``, aiormq's own: declaring, cancelling.
    """

    def __init__(self, underlying: AiormqChannel, frame_filter: FrameFilter) -> None:
        self.underlying = underlying
        self.confirms = ConfirmTracker()
        self._loop = asyncio.get_running_loop()
        self._transport = frame_filter.transport
        self._number = underlying.number
        self._max_frame_payload = (
            underlying.connection.connection_tune.frame_max or frames.MIN_FRAME
        ) - frames.OVERHEAD
        self._buffer: list[bytes] = []
        self._scheduled = False
        # Receiving.
        self._received: Received = _not_subscribed
        self._in_flight: dict[int, None] = {}
        self._done: list[int] = []
        self._incoming: _Incoming | None = None
        self._has_ended = False
        self._closing: asyncio.Future[None] | None = None
        frame_filter.attach(underlying, self)
        underlying.closing.add_done_callback(lambda _: self.end())

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more; ``underlying`` learns it last."""
        return self._has_ended or self._transport.is_closing() or self.underlying.is_closed

    def end(self) -> None:
        """Write nothing more: the channel closes, and the broker ignores what still comes.

        Else an ack written before aiormq has heard of it would count as one that was read.
        """
        self._has_ended = True
        self.confirms.end(BrokerUnavailableError("The connection broke before the confirm."))

    def close(self) -> asyncio.Future[None]:
        """Close, once all that was published and acknowledged so far is written.

        The rest is delivered again. May be awaited: done when the broker has closed it, too.
        """
        if self._closing is None:
            self.flush()
            self.end()
            self._closing = asyncio.ensure_future(self._close())
        return self._closing

    async def _close(self) -> None:
        with suppress(*CHANNEL_LOST):
            await self.underlying.close()

    # -- publishing -------------------------------------------------------------------------

    def publish(
        self,
        exchange: str,
        routing_key: str,
        body: bytes,
        *,
        properties: Mapping[str, Any],
        headers: Mapping[str, Any],
        expiration: timedelta | None = None,
    ) -> Confirmation:
        """Publish persistent and mandatory; see ``Confirmation`` for what comes back.

        Raises:
            BrokerUnavailableError: Nothing was written.
        """
        if self.closed:
            raise BrokerUnavailableError(
                "The channel to the broker is lost; the message was not sent."
            )
        if self._transport.get_write_buffer_size() > UNSENT_BYTES:
            raise BrokerUnavailableError(
                "The broker is not reading from the connection; the message was not sent."
            )
        header = frames.content_header(len(body), properties, headers, expiration)
        self._buffer.append(
            frames.publish(
                self._number,
                exchange,
                routing_key,
                header,
                body,
                max_payload=self._max_frame_payload,
            )
        )
        self._schedule()
        return self.confirms.register(properties["message_id"])

    # -- receiving --------------------------------------------------------------------------

    async def consume(
        self,
        queue: str,
        tag: str,
        received: Received,
        *,
        arguments: Mapping[str, Any] | None = None,
    ) -> None:
        """Subscribe to a queue; ``received`` is called with each delivery.

        One subscription at a time; of a stream, ``arguments`` say where to begin.
        """
        self._received = received
        await self.underlying.basic_consume(
            queue, _never_called, consumer_tag=tag, arguments=dict(arguments or {})
        )

    def acknowledge(self, tag: int) -> None:
        """Acknowledge one delivery of this channel; those of one iteration leave together.

        Raises:
            KeyError: It is not in flight: the broker would close the channel.
        """
        del self._in_flight[tag]
        self._done.append(tag)
        self._schedule()

    def feed_frame(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Handle the frame whose payload is ``data[start:stop]``; False leaves it to aiormq."""
        incoming = self._incoming
        if kind == frames.METHOD:
            return self._feed_method(data, start)
        if incoming is None:
            return False
        if kind == frames.HEADER:
            incoming.header = frames.read_content_header(data[start:stop])
        elif kind == frames.BODY:
            incoming.chunks.append(data[start:stop])
            incoming.size += stop - start
        if incoming.header is not None and incoming.size >= incoming.header.size:
            self._incoming = None
            self._on_message(incoming, incoming.header)
        return True

    def _feed_method(self, data: bytes, start: int) -> bool:
        (method,) = frames.METHOD_ID.unpack_from(data, start)
        start += frames.METHOD_ID.size
        if method == frames.DELIVER:
            self._incoming = _Incoming(*frames.read_delivery(data, start))
        elif method == frames.ACK:
            tag, multiple = frames.read_confirm(data, start)
            self.confirms.resolve(tag, multiple=multiple, failure=None)
        elif method == frames.RETURN:
            self._incoming = _Incoming(None, "")
        elif method == frames.NACK:
            tag, multiple = frames.read_confirm(data, start)
            refusal = BrokerUnavailableError("The broker refused the message: a queue is full.")
            self.confirms.resolve(tag, multiple=multiple, failure=refusal)
        else:
            if method in (frames.CHANNEL_CLOSE, frames.CHANNEL_CLOSE_OK):
                self.end()
            return False
        return True

    def _on_message(self, incoming: "_Incoming", header: frames.Content) -> None:
        """Hand on a complete message: one that was delivered, or one that came back."""
        properties = header.properties
        if incoming.tag is None:
            self.confirms.on_return(properties.get("message_id", ""))
            return
        if self.closed:  # it could not be acknowledged any more, and is delivered again
            return
        self._in_flight[incoming.tag] = None
        self._received(
            incoming.tag,
            Delivery(
                body=b"".join(incoming.chunks),
                routing_key=incoming.routing_key,
                message_id=properties.get("message_id"),
                correlation_id=properties.get("correlation_id"),
                type=properties.get("type"),
                content_type=properties.get("content_type"),
                content_encoding=properties.get("content_encoding"),
                app_id=properties.get("app_id"),
                timestamp=properties.get("timestamp"),
                priority=properties.get("priority"),
                headers=properties.get("headers") or {},
            ),
        )

    # -- writing ----------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)

    def flush(self) -> None:
        """Hand all that was published and acknowledged so far to the transport."""
        self._scheduled = False
        if self.closed or not (self._buffer or self._done):
            return  # all confirmations have failed; the broker delivers again
        if self._done:
            self._buffer += self._acks()
        self._transport.write(b"".join(self._buffer))
        self._buffer.clear()

    def _acks(self) -> list[bytes]:
        """One ack for all that is done before the first in flight, single ones for the rest.

        The broker reads ``multiple`` as "and everything before", so it must never reach past
        a delivery that is still in flight, and its tag must be one that is not acknowledged yet.
        """
        first_in_flight = next(iter(self._in_flight), math.inf)
        together = [tag for tag in self._done if tag < first_in_flight]
        alone = [tag for tag in self._done if tag > first_in_flight]
        self._done.clear()
        acks = (
            [frames.acknowledgement(self._number, max(together), multiple=True)] if together else []
        )
        return acks + [frames.acknowledgement(self._number, tag, multiple=False) for tag in alone]


class _Incoming:
    """A message of which not all frames have come."""

    __slots__ = ("chunks", "header", "routing_key", "size", "tag")

    def __init__(self, tag: int | None, routing_key: str) -> None:
        self.tag = tag
        """None for a message that comes back."""

        self.routing_key = routing_key
        self.header: frames.Content | None = None
        self.chunks: list[bytes] = []
        self.size = 0


def _not_subscribed(_tag: int, _delivery: Delivery) -> None:
    """Ignore what comes before a subscription: nothing does."""


async def _never_called(_message: object) -> None:
    """Stand for the callback of aiormq, which no delivery reaches."""
