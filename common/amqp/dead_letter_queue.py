"""Reads a dead-letter queue without moving anything, and moves what a person decides on.

Reading is consuming without acknowledging: when the channel closes, the broker puts everything
back where it was. One consumer with one prefetch, because only what one consumer holds goes
back in order; ``basic.get`` is a consumer of its own for each message, and a rejection of many
puts them back in any order (docs/adr/0017).
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager, AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from hashlib import sha256
from typing import Any
from uuid import UUID, uuid5

from common.amqp.channel import CHANNEL_LOST, Channel
from common.amqp.connection import QueueCount, connect, count_queues, translated
from common.amqp.headers import (
    ATTEMPTS,
    ERROR_CODE,
    ERROR_DETAIL,
    FAILED_SERVICE,
    ORIGINAL_ROUTING_KEY,
    republish_headers,
    republish_properties,
    short_text,
)
from common.amqp.management import ManagementApi, figures
from common.amqp.message import ATTEMPT, FIRST_SEEN, Delivery
from common.contracts.topology import Route
from common.errors import ConflictError, IdReusedError
from common.failpoints import failpoint

MAX_MESSAGES = 10_000
"""Most messages that are read of one queue at once; also the prefetch."""

MAX_KEPT_BYTES = 32 * 1024 * 1024
"""Most bytes of bodies that are kept of one queue; of further messages only the headers are."""

READ_SECONDS = 5.0
"""Longest time to read one queue; what has not come by then is said to be missing."""

QUIET_SECONDS = 2.0
"""Longest wait for the next message."""

TURN_SECONDS = 5.0
"""Longest wait for another reader to return what it holds."""

BACK_SECONDS = 2.0
"""Longest wait until the broker counts as ready again what was only looked at."""

POLL_SECONDS = 0.02

MAX_TEXT = 500
"""Characters of a header that is shown; ours are shorter."""

MAX_CODE = 100
"""Characters of a code; the record of a discarded message takes no more."""

UNKNOWN = "unknown"
"""Code of a message that names none: published there by hand."""


@dataclass(frozen=True, kw_only=True)
class DeadLetter:
    """A message that a person must decide on."""

    tag: int
    route: Route
    delivery: Delivery
    """Without its body if ``has_body`` is false."""

    id: UUID
    """The identity of the work; see ``id_when_sent_back``."""

    size: int
    """Bytes of the body."""

    has_body: bool

    @cached_property
    def code(self) -> str:
        """Why it is here: the error's code, or the broker's own reason."""
        history = self.delivery.headers.get("x-death")
        last = history[0] if isinstance(history, list) and history else None
        reason = last.get("reason") if isinstance(last, dict) else None
        code = self._text(ERROR_CODE) or (reason if isinstance(reason, str) else "")
        return "".join(filter(str.isprintable, code))[:MAX_CODE] or UNKNOWN

    def id_when_sent_back(self, body: bytes | None = None) -> UUID:
        """Its own id, stated: of a message without one, it follows from its first body.

        One whose id is another message's gets a new one, which follows from the id and its body: a
        crash between publishing and removing it makes two copies of the same message.
        """
        if self.code != IdReusedError.code:
            return self.id
        content = self.delivery.body if body is None else body
        return uuid5(self.id, sha256(content).hexdigest())

    @property
    def detail(self) -> str:
        """What went wrong, in words."""
        return self._text(ERROR_DETAIL)

    @property
    def attempts(self) -> int:
        """How often it was tried."""
        attempts = self.delivery.headers.get(ATTEMPTS)
        return attempts if isinstance(attempts, int) else self.delivery.attempt

    @property
    def failed_service(self) -> str:
        """The service that gave it up; empty if the broker did."""
        return self._text(FAILED_SERVICE)

    @property
    def first_seen(self) -> str:
        """When it failed first, as ISO 8601 writes it."""
        return self._text(FIRST_SEEN)

    @property
    def routing_key(self) -> str:
        """The routing key it was published with."""
        return self._text(ORIGINAL_ROUTING_KEY) or self.delivery.routing_key

    def _text(self, header: str) -> str:
        value = self.delivery.headers.get(header)
        return value[:MAX_TEXT] if isinstance(value, str) else ""


Wanted = Callable[[DeadLetter], bool | None]
"""What to keep of a message: all of it (True), its headers (False), or nothing (None)."""


class LockedQueue:
    """The messages of one queue, kept from other readers until the block is left."""

    def __init__(self, route: Route, channel: Channel, count: QueueCount) -> None:
        self.route = route
        self.messages: list[DeadLetter] = []
        """Those that are kept, oldest first."""
        self.read_count = 0
        """How many were read."""
        self.ready = count.ready
        """How many there were to be read."""
        self.is_locked_by_another_reader = count.consumers > 0
        """Another reader holds some, which are not among these."""
        self.gone = 0
        """How many were moved or removed."""
        self._channel = channel
        self._kept_bytes = 0
        self._is_found = False
        self._arrived = asyncio.Event()

    @property
    def is_complete(self) -> bool:
        """Whether all were read that were there."""
        return self.read_count >= self.ready and not self.is_locked_by_another_reader

    async def send_back(
        self, message: DeadLetter, *, body: bytes | None = None, **properties: Any
    ) -> None:
        """Publish a message into its work queue, confirmed, and only then take it from here.

        By the return exchange: nothing else that is bound to the route sees it twice. A crash in
        between leaves it in both queues with the same id; handlers know it again.

        Args:
            message: One of ``messages``, with its body.
            body: Instead of its own.
            properties: Instead of its own.

        Raises:
            BrokerUnavailableError: Not confirmed; it is still a dead letter.
            UnroutableError: The way back is missing; it is still a dead letter.
        """
        if body is None and not message.has_body:
            raise ValueError("The body was not kept.")
        await self._channel.publish(
            message.route.return_exchange,
            short_text(message.routing_key),
            message.delivery.body if body is None else body,
            properties={
                **republish_properties(message.delivery),
                "message_id": str(message.id_when_sent_back(body)),
                **properties,
            },
            headers={**republish_headers(message.delivery), ATTEMPT: 1},
        )
        failpoint("w44")
        self.remove(message)

    def remove(self, message: DeadLetter) -> None:
        """Take a message out of the queue for good."""
        self._channel.acknowledge(message.tag)
        self.gone += 1

    async def read(
        self, wanted: Wanted, until: Callable[[DeadLetter], bool], limit: int = MAX_MESSAGES
    ) -> None:
        """Read what was ready, within bounds of number, size and time; no further than needed."""
        expected = min(self.ready, limit, MAX_MESSAGES)
        if not expected:
            return
        await self._channel.underlying.basic_qos(prefetch_count=expected)

        def received(tag: int, delivery: Delivery) -> None:
            if not self._is_found:
                self._keep(tag, delivery, wanted, until)

        await self._channel.consume(self.route.dead_letter_queue, "look", received)
        deadline = asyncio.get_running_loop().time() + READ_SECONDS
        while self.read_count < expected and not self._is_found:
            self._arrived.clear()
            left = deadline - asyncio.get_running_loop().time()
            try:
                async with asyncio.timeout(min(QUIET_SECONDS, left)):
                    await self._arrived.wait()
            except TimeoutError:
                return

    def _keep(
        self, tag: int, delivery: Delivery, wanted: Wanted, until: Callable[[DeadLetter], bool]
    ) -> None:
        message = DeadLetter(
            tag=tag,
            route=self.route,
            delivery=delivery,
            id=delivery.id,
            size=len(delivery.body),
            has_body=True,
        )
        is_wanted = wanted(message)
        self._is_found = until(message)
        if is_wanted and self._kept_bytes + message.size <= MAX_KEPT_BYTES:
            self._kept_bytes += message.size
        else:
            message = replace(message, delivery=replace(delivery, body=b""), has_body=False)
        if is_wanted is not None:
            self.messages.append(message)
        self.read_count += 1
        self._arrived.set()


class DeadLetterQueue:
    """The dead letters of one route.

    Each reading has a connection of its own: what goes wrong on it touches no other work.

    Args:
        url: AMQP URL of a user that may read the queue and write to the return exchange.
        route: Whose dead letters.
        service: For the connection's name.
        management: Counts where the broker refuses to do so for a service.
    """

    def __init__(
        self, url: str, route: Route, *, service: str, management: ManagementApi | None = None
    ) -> None:
        self._url = url
        self._management = management
        self._service = service
        self._turn = asyncio.Lock()
        self.route = route

    @asynccontextmanager
    async def held(
        self,
        wanted: Wanted = lambda _: True,
        *,
        until: Callable[[DeadLetter], bool] = lambda _: False,
        limit: int = MAX_MESSAGES,
    ) -> AsyncIterator[LockedQueue]:
        """Read the queue, oldest first; what is not moved goes back, in order.

        Args:
            wanted: What to keep of each message; called with its body, in order.
            until: The message behind which nothing needs to be read.
            limit: Read so many at most. The broker sends them all at once, whatever ``until`` says.

        Raises:
            BrokerUnavailableError: Nothing was read; nothing has changed.
            TopologyMissingError: There is no such queue.
            ConflictError: This process holds the queue for something else.
        """
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(self._in_turn())
            with _translated():
                channel = await stack.enter_async_context(self._connected())
                held = LockedQueue(self.route, channel, await self._count_after_others(channel))
                await held.read(wanted, until, limit)
            try:
                yield held
            finally:
                # However this ends: what was decided on stays decided, the rest goes back.
                with suppress(*CHANNEL_LOST):
                    await channel.close()
                    await self._wait_until_returned(channel, held.ready - held.gone)

    async def count(self) -> int:
        """Count what waits, without those that another reader holds just now."""
        with _translated():
            async with self._connected() as channel:
                return (await self._count(channel)).ready

    @asynccontextmanager
    async def _in_turn(self) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(TURN_SECONDS):
                await self._turn.acquire()
        except TimeoutError as error:
            raise ConflictError(
                f"The dead letters of {self.route.name} are in use, by a redrive or another "
                "reader. Nothing has changed; ask again in a few seconds."
            ) from error
        try:
            yield
        finally:
            self._turn.release()

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[Channel]:
        async with connect(self._url, name=f"{self._service} dead letters") as open_channel:
            yield await open_channel()

    async def _count_after_others(self, channel: Channel) -> QueueCount:
        """Count the queue once no other reader holds it, or that takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + TURN_SECONDS
        while True:
            count = await self._count(channel)
            if not count.consumers or loop.time() > deadline:
                return count
            await asyncio.sleep(POLL_SECONDS)

    async def _wait_until_returned(self, channel: Channel, expected: int) -> None:
        """Wait until what the closed channel held can be read again."""
        deadline = asyncio.get_running_loop().time() + BACK_SECONDS
        while asyncio.get_running_loop().time() < deadline:
            counts = await count_queues(channel, self.route.dead_letter_queue)
            if counts is None or counts[0].ready >= expected:
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _count(self, channel: Channel) -> QueueCount:
        """Count the queue; where the broker refuses, as the management API last saw it."""
        if (counts := await count_queues(channel, self.route.dead_letter_queue)) is not None:
            return counts[0]
        rows = (await self._management.select("queues"))[0] if self._management else []
        row = figures(rows, self.route.dead_letter_queue)
        return QueueCount(row["messages_ready"], row["consumers"])


def _translated() -> AbstractContextManager[None]:
    return translated(
        "The dead letters cannot be read",
        "Nothing has changed; ask again when RabbitMQ is available.",
    )
