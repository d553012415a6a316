"""One AMQP connection with one channel, opened again whenever it is lost.

Not aio-pika's robust connection: that one restores what it remembers, consumers included,
behind our back; here a new channel is always set up by the same code as the first.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Self

import structlog
from aio_pika import Connection
from aio_pika.abc import AbstractChannel
from aio_pika.exceptions import AMQPError, ChannelNotFoundEntity
from aiormq.channel import Channel
from aiormq.exceptions import ChannelAccessRefused
from yarl import URL

from common import metrics
from common.amqp import lenient
from common.amqp.channel import Wire
from common.amqp.frame_filter import FrameFilter, FrameFilterFactory
from common.errors import BrokerUnavailableError, TopologyMissingError, UnavailableError

log = structlog.get_logger()

HEARTBEAT_SECONDS = 10
"""A frozen peer is noticed after two to three of these; the default of 60 means 3 minutes."""

CONNECT_SECONDS = 5.0
"""Longest wait for the broker to accept a connection."""

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
"""Between attempts to connect: doubling from the first to the longest."""

WATCH_SECONDS = 0.2
"""How often to look whether the broker blocks publishers (memory or disk alarm)."""

OVERDUE_SECONDS = 30.0
"""After so long without the broker's word on a message the connection is opened anew.

Nobody waits for it any more, but the same id cannot be published until the broker has spoken
(``Wire.turn``): were its word never to come, that message would never get through.

Also after so long with nothing but refusals: where the limit of a queue that was full is taken
away, RabbitMQ (at least 3.10) goes on refusing what comes on channels that it has refused before.
"""

Setup = Callable[[AbstractChannel, Wire], Awaitable[None]]


class Link:
    """Keeps a channel open; ``setup`` prepares each new one before anybody uses it.

    Args:
        url: AMQP URL with the service's own user.
        service: For the connection's name.
        purpose: For the connection's name, logs and metrics.
        setup: Gets each new channel, and the wire to publish, consume and acknowledge on it.
    """

    def __init__(self, url: str, *, service: str, purpose: str, setup: Setup) -> None:
        self._url = url
        self._name = f"{service} {purpose}"
        self._purpose = purpose
        self._setup = setup
        self._channel: asyncio.Future[AbstractChannel] = asyncio.Future()
        self._failure: UnavailableError = BrokerUnavailableError("Not connected yet.")
        self._task: asyncio.Task[None] | None = None
        self.blocked = False

    async def __aenter__(self) -> Self:
        """Start connecting; does not wait for the broker."""
        lenient.install()
        self._task = asyncio.create_task(self._keep_open(), name=f"link {self._name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection; what was not acknowledged is delivered again elsewhere."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def channel(self) -> AbstractChannel:
        """The open channel; waits for one, so bound it with a deadline."""
        return await asyncio.shield(self._channel)

    async def check(self) -> None:
        """Raise what keeps the link from being usable, if anything does."""
        if not self._channel.done():
            raise self._failure

    @property
    def failure(self) -> UnavailableError:
        """Why there was no channel when there was none."""
        return self._failure

    async def _keep_open(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            try:
                await self._run_once()
            except UnavailableError as error:
                if self._failure.code != error.code == TopologyMissingError.code:
                    # A broker that has just come has its streams some moments after its queues.
                    pause = FIRST_PAUSE_SECONDS
                self._fail(error)
            except (AMQPError, OSError, TimeoutError, RuntimeError) as error:
                # aiormq raises RuntimeErrors of its own for channels that went away.
                self._fail(BrokerUnavailableError(f"Cannot reach the broker: {_reason(error)}"))
            except asyncio.CancelledError as error:
                # One of aiormq's own tasks was cancelled, not this one.
                if (task := asyncio.current_task()) and task.cancelling():
                    raise
                self._fail(BrokerUnavailableError(f"Cannot reach the broker: {_reason(error)}"))
            except Exception as error:  # noqa: BLE001 - were this to end, nobody would connect again
                # A broker that goes away amid the greeting: aiormq lets a StopAsyncIteration out.
                self._fail(BrokerUnavailableError(f"Cannot reach the broker: {_reason(error)}"))
            if (task := asyncio.current_task()) and task.cancelling():
                # It was to end, and somebody below took the cancellation for a lost connection.
                raise asyncio.CancelledError
            if time.monotonic() - started > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _run_once(self) -> None:
        """Connect, hand out the channel, return when it is lost."""
        connection = Connection(
            URL(self._url).update_query(heartbeat=HEARTBEAT_SECONDS),
            client_properties={"connection_name": self._name},
        )
        tap = FrameFilter()
        connection.kwargs["transport_factory"] = FrameFilterFactory(tap)
        await connection.connect(timeout=CONNECT_SECONDS)
        async with connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            async with asyncio.timeout(CONNECT_SECONDS):
                wire = await _wire_of(channel, tap)
                await self._setup(channel, wire)
            self._channel.set_result(channel)
            metrics.BROKER_CONNECTED.labels(self._purpose).set(1)
            log.info("broker.connected", purpose=self._purpose)
            # What is said while it is not known yet that the channel is lost.
            self._failure = BrokerUnavailableError(
                "The channel to the broker is lost; it is being opened anew."
            )
            try:
                await self._watch(channel, wire)
            finally:
                self._channel = asyncio.Future()
                metrics.BROKER_CONNECTED.labels(self._purpose).set(0)
        self._fail(BrokerUnavailableError("The connection to the broker was lost."))

    async def _watch(self, channel: AbstractChannel, wire: Wire) -> None:
        """Return when the channel is lost; note meanwhile whether the broker blocks us."""
        loop = asyncio.get_running_loop()
        underlay = await channel.get_underlay_channel()
        lost = asyncio.ensure_future(channel.closed())
        blocked_at = -math.inf
        while not lost.done():
            await asyncio.wait([lost], timeout=WATCH_SECONDS)
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await underlay.connection.ready()
            except TimeoutError:
                self._note_blocked(blocked=True)
                blocked_at = loop.time()  # an alarm may last: what waits for its end is not lost
            else:
                self._note_blocked(blocked=False)
                if loop.time() - max(wire.waiting_since, blocked_at) > OVERDUE_SECONDS:
                    log.warning("broker.confirm_overdue", purpose=self._purpose)
                    return

    def _note_blocked(self, *, blocked: bool) -> None:
        if blocked != self.blocked:
            self.blocked = blocked
            if blocked:
                log.warning("broker.blocked", purpose=self._purpose)
            else:
                log.info("broker.unblocked", purpose=self._purpose)

    def _fail(self, failure: UnavailableError) -> None:
        if (failure.code, failure.detail) != (self._failure.code, self._failure.detail):
            log.warning("broker.unavailable", purpose=self._purpose, reason=failure.detail)
        self._failure = failure


async def check_topology(
    channel: AbstractChannel, *, exchanges: Sequence[str] = (), queues: Sequence[str] = ()
) -> frozenset[str]:
    """Make sure that exchanges and queues exist, by passive declaration.

    On a channel of its own: a refusal closes the channel on which it was asked.

    Returns:
        Names that the broker refused to tell about; they may exist. RabbitMQ 4.2.6 and 4.3.0
        ask for the right to configure, which no service has; the management API tells more.

    Raises:
        TopologyMissingError: Names the first that does not exist.
    """
    connection = (await channel.get_underlay_channel()).connection
    asking = await connection.channel(publisher_confirms=False)
    unverified = set()
    for kind, names in (("exchange", exchanges), ("queue", queues)):
        for name in names:
            declare = asking.exchange_declare if kind == "exchange" else asking.queue_declare
            try:
                await declare(name, passive=True)
            except ChannelNotFoundEntity as error:
                raise TopologyMissingError(
                    f"The {kind} {name} does not exist. Import rabbitmq/definitions.json."
                ) from error
            except ChannelAccessRefused:
                unverified.add(name)
                asking = await connection.channel(publisher_confirms=False)
    await asking.close()
    if unverified:
        log.info("broker.topology_unverified", names=sorted(unverified))
    return frozenset(unverified)


async def _wire_of(channel: AbstractChannel, tap: FrameFilter) -> Wire:
    underlay = await channel.get_underlay_channel()
    if not isinstance(underlay, Channel):
        raise TypeError("aio-pika no longer stands on aiormq's channel.")
    return Wire(underlay, tap)


def _reason(error: BaseException) -> str:
    """The kind of failure; never the URL, which holds a password."""
    return (
        error.strerror or type(error).__name__
        if isinstance(error, OSError)
        else type(error).__name__
    )
