"""Publishes, receives and acknowledges on one channel, without a detour for each frame.

aiormq writes every frame by itself, one system call for each, and awaits every frame it reads.
Here what handlers publish and acknowledge in one turn of the event loop leaves in one write,
and deliveries and confirms come straight from the connection's ``FrameFilter``. Nothing waits for
company: a lone publish leaves at the end of its turn.
"""

import asyncio
import math
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from aiormq.channel import Channel

from common.amqp import frames
from common.amqp.confirms import Confirmation, ConfirmTracker, came_back
from common.amqp.frame_filter import FrameFilter
from common.amqp.message import Delivery
from common.errors import BrokerUnavailableError

Received = Callable[[int, Delivery], None]
"""Takes a delivery's tag and the delivery."""

UNSENT_BYTES = 16 * 1024 * 1024
"""What a broker that does not read may leave waiting with us: 250 of the largest bodies."""


class Wire:
    """A channel whose busy frames pass by aiormq; nothing else may publish or consume on it.

    It knows which messages are under way.
    """

    def __init__(self, channel: Channel, tap: FrameFilter) -> None:
        self.channel = channel
        self._loop = asyncio.get_running_loop()
        self._transport = tap.transport
        self._number = channel.number
        self._piece = (channel.connection.connection_tune.frame_max or frames.MIN_FRAME) - (
            frames.OVERHEAD
        )
        self._buffer: list[bytes] = []
        self._scheduled = False
        self._confirms = ConfirmTracker(self._ended)
        self._under_way: dict[str, Confirmation] = {}
        self._turns: dict[str, asyncio.Future[None]] = {}
        # Receiving.
        self._received: Received = _nobody
        self._in_hand: dict[int, None] = {}
        self._done: list[int] = []
        self._incoming: _Incoming | None = None
        self._has_ended = False
        tap.attach(channel, self)
        channel.closing.add_done_callback(lambda _: self.end())

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more; the channel learns it last."""
        return self._has_ended or self._transport.is_closing() or self.channel.is_closed

    @property
    def waiting_since(self) -> float:
        """When the oldest message left that the broker has not taken, by the loop's clock.

        It has said nothing of that one, or has refused it and confirmed none since. Infinite where
        there is none. Those that are past their deadline count, too.
        """
        return self._confirms.waiting_since

    def end(self) -> None:
        """Write nothing more: the channel closes, and the broker ignores what still comes.

        Else an ack written before aiormq has heard of it would count as one that was read.
        """
        self._has_ended = True
        self._confirms.end(_connection_lost())

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
        self._write(
            frames.publish(self._number, exchange, routing_key, header, body, piece=self._piece)
        )
        message_id = properties["message_id"]
        confirmation = self._under_way[message_id] = self._confirms.expect(message_id)
        return confirmation

    def is_under_way(self, message_id: str) -> bool:
        """Whether a message of that id is not confirmed yet."""
        return message_id in self._under_way

    async def turn(self, message_id: str) -> None:
        """Wait until no other message of that id is under way.

        The broker names a message that comes back by its id alone: with two of them, the
        return of one would be taken for the other's, and the first for confirmed.
        """
        # Not for the confirmation: it may have failed, with the broker's word still to come.
        while message_id in self._under_way:
            free = self._loop.create_future()
            await asyncio.wait([self._turns.setdefault(message_id, free)])

    def _ended(self, message_id: str, confirmation: Confirmation) -> None:
        """The broker has had its say about the message, or never will."""
        if self._under_way.get(message_id) is confirmation:
            del self._under_way[message_id]
            if turn := self._turns.pop(message_id, None):
                turn.set_result(None)

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
        await self.channel.basic_consume(
            queue, _never_called, consumer_tag=tag, arguments=dict(arguments or {})
        )

    def acknowledge(self, tag: int) -> None:
        """Acknowledge one delivery of this channel; those of one turn leave together.

        Raises:
            KeyError: It is not in hand: the broker would close the channel.
        """
        del self._in_hand[tag]
        self._done.append(tag)
        self._schedule()

    def take(self, kind: int, data: bytes, start: int, stop: int) -> bool:
        """Take a frame of this channel from the tap, if it is one for us."""
        incoming = self._incoming
        if kind == frames.METHOD:
            return self._take_method(data, start)
        if incoming is None:
            return False
        if kind == frames.HEADER:
            incoming.header = frames.read_content_header(data[start:stop])
        elif kind == frames.BODY:
            incoming.pieces.append(data[start:stop])
            incoming.size += stop - start
        if incoming.header is not None and incoming.size >= incoming.header.size:
            self._incoming = None
            self._arrived(incoming, incoming.header)
        return True

    def _take_method(self, data: bytes, start: int) -> bool:
        (method,) = frames.METHOD_ID.unpack_from(data, start)
        start += frames.METHOD_ID.size
        if method == frames.DELIVER:
            self._incoming = _Incoming(*frames.read_delivery(data, start))
        elif method == frames.ACK:
            tag, multiple = frames.read_confirm(data, start)
            self._confirms.heard(tag, multiple=multiple, failure=None)
        elif method == frames.RETURN:
            self._incoming = _Incoming(None, "")
        elif method == frames.NACK:
            tag, multiple = frames.read_confirm(data, start)
            refusal = BrokerUnavailableError("The broker refused the message: a queue is full.")
            self._confirms.heard(tag, multiple=multiple, failure=refusal)
        else:
            if method in (frames.CHANNEL_CLOSE, frames.CHANNEL_CLOSE_OK):
                self.end()
            return False
        return True

    def _arrived(self, incoming: "_Incoming", header: frames.Content) -> None:
        """A whole message is here: one that was delivered, or one that came back."""
        properties = header.properties
        if incoming.tag is None:
            came_back(self._under_way.get(properties.get("message_id", "")))
            return
        if self.closed:  # it could not be acknowledged any more, and is delivered again
            return
        self._in_hand[incoming.tag] = None
        self._received(
            incoming.tag,
            Delivery(
                body=b"".join(incoming.pieces),
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

    async def drain(self) -> None:
        """Hand all that was published and acknowledged so far to the transport."""
        self._flush()

    def _write(self, data: bytes) -> None:
        self._buffer.append(data)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        if self.closed or not (self._buffer or self._done):
            return  # all confirmations have failed; the broker delivers again
        if self._done:
            self._buffer += self._acks()
        self._transport.write(b"".join(self._buffer))
        self._buffer.clear()

    def _acks(self) -> list[bytes]:
        """One ack for all that is done before the first in hand, single ones for the rest.

        The broker reads ``multiple`` as "and everything before", so it must never reach past
        a delivery that is still in hand, and its tag must be one that is not acknowledged yet.
        """
        first_in_hand = next(iter(self._in_hand), math.inf)
        together = [tag for tag in self._done if tag < first_in_hand]
        alone = [tag for tag in self._done if tag > first_in_hand]
        self._done.clear()
        acks = (
            [frames.acknowledgement(self._number, max(together), multiple=True)] if together else []
        )
        return acks + [frames.acknowledgement(self._number, tag, multiple=False) for tag in alone]


class _Incoming:
    """A message of which not all frames have come."""

    __slots__ = ("header", "pieces", "routing_key", "size", "tag")

    def __init__(self, tag: int | None, routing_key: str) -> None:
        self.tag = tag
        """None for a message that comes back."""

        self.routing_key = routing_key
        self.header: frames.Content | None = None
        self.pieces: list[bytes] = []
        self.size = 0


def _nobody(_tag: int, _delivery: Delivery) -> None:
    """Nobody has subscribed yet."""


async def _never_called(_message: object) -> None:
    """What aiormq would call with deliveries, which never reach it."""


def _connection_lost() -> BrokerUnavailableError:
    return BrokerUnavailableError("The connection broke before the confirm.")
