"""AMQP connections: one that is opened once, and one with a channel that is opened again.

Not aio-pika's robust connection: that one restores what it remembers, consumers included,
behind our back; here a new channel is always set up by the same code as the first.
"""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import NamedTuple, Self

import structlog
from aiormq import Connection
from aiormq.channel import Channel as AiormqChannel
from aiormq.exceptions import ChannelAccessRefused, ChannelNotFoundEntity, ConnectionClosed
from yarl import URL

from common import metrics
from common.amqp import lenient
from common.amqp.channel import CHANNEL_LOST, Channel
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

POLL_SECONDS = 0.02
"""How often to look whether a channel that was closed has been replaced."""

OVERDUE_SECONDS = 30.0
"""After so long without the broker's answer to a message the connection is opened anew.

Its publisher has given up, but the same id cannot be published until the broker has answered
(``ConfirmTracker.wait_until_resolved``): if it never did, that message would never get through.

Also after so long with nothing but refusals: where the limit of a queue that was full is taken
away, RabbitMQ (at least 3.10) goes on refusing what comes on channels that it has refused before.
"""

Setup = Callable[[Channel], Awaitable[None]]


@asynccontextmanager
async def connect(url: str, *, name: str) -> AsyncIterator[Callable[[], Awaitable[Channel]]]:
    """Connect, and give what opens channels on the connection; close it at the end.

    Args:
        url: AMQP URL with the service's own user.
        name: What the management page calls the connection.
    """
    lenient.install()
    frame_filter = FrameFilter()
    connection = Connection(
        URL(url).update_query(heartbeat=HEARTBEAT_SECONDS),
        client_properties={"connection_name": name},
        transport_factory=FrameFilterFactory(frame_filter),
    )

    async def open_channel() -> Channel:
        async with asyncio.timeout(CONNECT_SECONDS):
            underlying = await connection.channel()
        if not isinstance(underlying, AiormqChannel):
            raise TypeError("aiormq no longer makes channels of its own class.")
        return Channel(underlying, frame_filter)

    try:
        async with asyncio.timeout(CONNECT_SECONDS):
            await connection.connect()
        yield open_channel
    finally:
        with suppress(*CHANNEL_LOST):
            await connection.close(ConnectionClosed)


class ReconnectingConnection:
    """Keeps a channel open; ``setup`` prepares each new one before it is used.

    Args:
        url: AMQP URL with the service's own user.
        service: For the connection's name.
        purpose: For the connection's name, logs and metrics.
        setup: Gets each new channel.
    """

    def __init__(self, url: str, *, service: str, purpose: str, setup: Setup) -> None:
        self._url = url
        self._name = f"{service} {purpose}"
        self._purpose = purpose
        self._setup = setup
        self._channel: asyncio.Future[Channel] = asyncio.Future()
        self._failure: UnavailableError = BrokerUnavailableError("Not connected yet.")
        self._task: asyncio.Task[None] | None = None
        self.blocked = False

    async def __aenter__(self) -> Self:
        """Start connecting; does not wait for the broker."""
        self._task = asyncio.create_task(self._keep_open(), name=f"connection {self._name}")
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection; what was not acknowledged is delivered again elsewhere."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def channel(self, seconds: float) -> Channel:
        """Return the open channel, waiting for it at most ``seconds``.

        Raises:
            UnavailableError: Why there is none.
        """
        if self._channel.done() and not (channel := self._channel.result()).closed:
            return channel
        try:
            async with asyncio.timeout(seconds):
                while True:
                    channel = await asyncio.shield(self._channel)
                    if not channel.closed:
                        return channel
                    await asyncio.sleep(POLL_SECONDS)  # its loss has not been noticed yet
        except TimeoutError as error:
            raise self._failure from error

    async def check(self) -> None:
        """Raise what keeps the connection from being usable, if anything does."""
        if not self._channel.done():
            raise self._failure

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
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - else no reconnect
                # aiormq lets out errors of any kind while a broker goes away (a StopAsyncIteration
                # amid the greeting), and cancellations of its own tasks.
                if not _is_cancelled():
                    self._fail(BrokerUnavailableError(f"Cannot reach the broker: {_reason(error)}"))
            if _is_cancelled():  # also where the cancellation was taken for a lost connection
                raise asyncio.CancelledError
            if time.monotonic() - started > LONGEST_PAUSE_SECONDS:
                pause = FIRST_PAUSE_SECONDS
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)

    async def _run_once(self) -> None:
        """Connect, hand out the channel, return when it is lost."""
        async with connect(self._url, name=self._name) as open_channel:
            channel = await open_channel()
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._setup(channel)
            self._channel.set_result(channel)
            metrics.BROKER_CONNECTED.labels(self._purpose).set(1)
            log.info("broker.connected", purpose=self._purpose)
            # The reason while it is not known yet that the channel is lost.
            self._failure = BrokerUnavailableError(
                "The channel to the broker is lost; it is being opened anew."
            )
            try:
                await self._watch(channel)
            finally:
                self._channel = asyncio.Future()
                metrics.BROKER_CONNECTED.labels(self._purpose).set(0)
        self._fail(BrokerUnavailableError("The connection to the broker was lost."))

    async def _watch(self, channel: Channel) -> None:
        """Return when the channel is lost; note meanwhile whether the broker blocks us."""
        loop = asyncio.get_running_loop()
        lost = channel.underlying.closing
        blocked_at = -math.inf
        while not lost.done():
            await asyncio.wait([lost], timeout=WATCH_SECONDS)
            try:
                async with asyncio.timeout(WATCH_SECONDS):
                    await channel.underlying.connection.ready()
            except TimeoutError:
                self._note_blocked(blocked=True)
                blocked_at = loop.time()  # an alarm may last: what waits for its end is not lost
            else:
                self._note_blocked(blocked=False)
                if loop.time() - max(channel.confirms.waiting_since, blocked_at) > OVERDUE_SECONDS:
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
    channel: Channel, *, exchanges: Sequence[str] = (), queues: Sequence[str] = ()
) -> None:
    """Make sure that exchanges and queues exist, by passive declaration.

    Names that the broker refuses to tell about may exist: RabbitMQ 4.2.6 and 4.3.0 ask for the
    right to configure, which no service has; the management API tells more.

    Raises:
        TopologyMissingError: Names the first that does not exist.
    """
    connection = channel.underlying.connection
    # On a channel of its own: a refusal closes the channel on which it was asked.
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


class QueueCount(NamedTuple):
    """What a queue holds at one moment."""

    ready: int
    """Messages that no consumer holds."""

    consumers: int


async def count_queues(channel: Channel, *queues: str) -> list[QueueCount] | None:
    """Count each queue, over the connection of a channel; None where the broker refuses.

    As RabbitMQ 4.2.6 and 4.3.0 do, see ``check_topology``.

    Raises:
        ChannelNotFoundEntity: There is no such queue.
        TimeoutError: The broker does not answer.
    """
    async with asyncio.timeout(CONNECT_SECONDS):
        asking = await channel.underlying.connection.channel(publisher_confirms=False)
        try:
            declared = [await asking.queue_declare(queue, passive=True) for queue in queues]
        except ChannelAccessRefused:
            return None
        await asking.close()
    return [QueueCount(each.message_count or 0, each.consumer_count or 0) for each in declared]


@contextmanager
def translated(what: str, advice: str) -> Iterator[None]:
    """Raise as our own errors what aiormq raises where the broker goes away.

    Args:
        what: What failed, the first words of the detail.
        advice: What holds now, and what to do.

    Raises:
        BrokerUnavailableError: The channel was lost, or the broker does not answer.
        TopologyMissingError: What was asked for does not exist.
    """
    try:
        yield
    except ChannelNotFoundEntity as error:
        raise TopologyMissingError(
            "A queue or stream does not exist. Import rabbitmq/definitions.json."
        ) from error
    except (asyncio.CancelledError, *CHANNEL_LOST) as error:
        if _is_cancelled():
            raise
        # aiormq cancels what waits for a channel that goes away.
        raise BrokerUnavailableError(f"{what}: {_reason(error)}. {advice}") from error


def _is_cancelled() -> bool:
    """Whether it is the current task that is to end, not one of aiormq's."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def _reason(error: BaseException) -> str:
    """The kind of failure; never the URL, which holds a password."""
    return (
        error.strerror or type(error).__name__
        if isinstance(error, OSError)
        else type(error).__name__
    )
