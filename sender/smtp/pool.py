"""Keeps connections open between mails: opening one costs ten times what a mail does."""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import NamedTuple, Self

import structlog

from common import metrics
from sender.smtp.connection import Answer, Connection, Mail
from sender.smtp.errors import LinkDroppedError, NotConnectedError
from sender.smtp.opening import Server
from sender.smtp.replies import Phase

log = structlog.get_logger()

IDLE_SECONDS = 30.0
"""After this long without a mail a connection is closed, politely and by us.

Servers close idle ones after 300 s (RFC 5321, 4.5.3.2.7), some of them much sooner.
"""

QUIT_SECONDS = 2.0
"""Longest goodbye; the server's time-out ends what it does not answer."""


ANSWER_COUNTS_SECONDS = 5.0
"""Where all connections are at work, the server was there if it has answered since then."""


class _Waiting(NamedTuple):
    """Somebody in the queue."""

    mail: Mail | None
    """What may be announced behind another mail; None for who wants a new connection."""

    turn: asyncio.Future[Connection | None]


class Pool:
    """Up to ``size`` connections to one server."""

    def __init__(self, server: Server, *, size: int) -> None:
        self._server = server
        self._size = size
        self._waiting: deque[_Waiting] = deque()
        self._followers: dict[Connection, tuple[_Waiting, float]] = {}
        self._idle: list[tuple[Connection, float]] = []
        self._taken = 0  # of ``size``: connections at work, and those being opened
        self._being_opened = 0
        self._opening = asyncio.Lock()
        self._failure = ""
        self._failed_at = 0.0
        self._answered_at = -ANSWER_COUNTS_SECONDS

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Server, *, size: int) -> AsyncIterator[Self]:
        """A pool that connects when it must; at the end, idle connections say goodbye."""
        pool = cls(server, size=size)
        sweeper = asyncio.create_task(pool._sweep())
        try:
            yield pool
        finally:
            sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await sweeper
            await pool._quit_idle(_now())

    async def send(
        self, mail: Mail, *, before_text: Callable[[], None], fresh: bool = False
    ) -> Answer:
        """Send a mail on the first connection that is free, ``fresh`` on a new one.

        Raises:
            NotConnectedError: None could be opened, or that was found out during the wait.
            LinkDroppedError, Utf8AddressError: See ``Connection.send``.
        """
        connection = await self._acquire(None if fresh else mail, fresh=fresh)
        try:
            answer = await connection.send(
                mail, before_text=before_text, following=partial(self._take_follower, connection)
            )
            self._answered_at = _now()
            return answer
        finally:
            self._pass_on(connection)

    async def ensure(self) -> None:
        """Return at once if there is a connection, else open one.

        Raises:
            NotConnectedError: That failed. Many callers cost the server one attempt.
        """
        if self._alive():
            return
        asked_at = _now()
        async with self._opening:
            self._spare_the_server(asked_at)
            if not self._alive():
                async with self._connection():
                    pass

    async def check(self) -> None:
        """Ask the server whether it is there, on a connection more if all are at work.

        Raises:
            NotConnectedError: It is not.
        """
        if self._taken == self._size:
            if _now() - self._answered_at > ANSWER_COUNTS_SECONDS:
                await (await Connection.open(self._server)).quit()
            return
        try:
            async with self._connection() as connection:
                await connection.check()
        except LinkDroppedError:  # it was closed while idle, which proves nothing
            async with self._connection(fresh=True):
                pass

    def _alive(self) -> bool:
        at_work = self._taken - self._being_opened
        return at_work > 0 or any(connection.usable for connection, _ in self._idle)

    @asynccontextmanager
    async def _connection(self, *, fresh: bool = False) -> AsyncIterator[Connection]:
        connection = await self._acquire(None, fresh=fresh)
        try:
            yield connection
        finally:
            self._pass_on(connection)

    async def _acquire(self, mail: Mail | None, *, fresh: bool) -> Connection:
        """The connection used last if any is left, else a new one; ``fresh`` insists on it."""
        asked_at = _now()
        connection = await self._turn(mail)
        if connection is not None:
            if not fresh:
                return connection
            self._discard(connection)
        try:
            self._spare_the_server(asked_at)
            if fresh:  # what befell one has most likely befallen all: the server was restarted
                self._drop_idle()
            return self._take_idle() or await self._open()
        except BaseException:
            self._pass_on(None)
            raise

    async def _turn(self, mail: Mail | None) -> Connection | None:
        """Wait until something is free: a connection, or the right to open one (None)."""
        if self._taken < self._size:
            self._taken += 1
            return None
        waiting = _Waiting(mail, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            if not waiting.turn.cancelled():  # it was our turn in the same moment
                with suppress(LinkDroppedError):
                    self._pass_on(waiting.turn.result())
            raise

    def _take_follower(self, connection: Connection) -> Mail | None:
        """The mail that waits longest, to be announced on this connection and then sent there."""
        waiting = self._longest_waiting()
        if waiting is None or waiting.mail is None or not connection.can_announce(waiting.mail):
            return None
        self._followers[connection] = self._waiting.popleft(), _now()
        return waiting.mail

    def _longest_waiting(self) -> _Waiting | None:
        while self._waiting and self._waiting[0].turn.done():  # cancelled
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def _pass_on(self, connection: Connection | None) -> None:
        """Give what was in use to the mail announced on it, else to the next, else put it aside."""
        if connection is not None:
            follower, _ = self._followers.pop(connection, (None, 0.0))
            if follower is not None and not follower.turn.done():
                follower.turn.set_result(connection)
                return
            if not connection.usable:  # also if the follower has gone: its text is waited for
                self._discard(connection)
                connection = None
        if self._longest_waiting() is not None:
            self._waiting.popleft().turn.set_result(connection)
            return
        self._taken -= 1
        if connection is not None:
            self._idle.append((connection, _now()))

    def _spare_the_server(self, asked_at: float) -> None:
        """Count an attempt to connect that failed during our wait as our own."""
        if self._failure and self._failed_at >= asked_at:
            raise NotConnectedError(self._failure)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.usable:
                return connection
            self._discard(connection)
        return None

    async def _open(self) -> Connection:
        self._being_opened += 1
        try:
            connection = await Connection.open(self._server)
        except NotConnectedError as error:
            if not self._failure:
                log.warning("smtp.unavailable", reason=str(error))
            self._failure, self._failed_at = str(error), _now()
            raise
        finally:
            self._being_opened -= 1
        if self._failure:
            log.info("smtp.available")
        self._failure = ""
        metrics.SMTP_CONNECTIONS.inc()
        return connection

    def _drop_idle(self) -> None:
        while self._idle:
            self._discard(self._idle.pop()[0])

    def _discard(self, connection: Connection) -> None:
        connection.abort()
        metrics.SMTP_CONNECTIONS.dec()

    async def _sweep(self) -> None:
        while True:
            await asyncio.sleep(IDLE_SECONDS / 2)
            await self._quit_idle(_now() - IDLE_SECONDS / 2)
            self._free_followers(_now() - IDLE_SECONDS / 2)

    def _free_followers(self, announced_until: float) -> None:
        """Let the mails go elsewhere that have stood behind an unanswered text since then.

        Otherwise one mail that a server takes ten minutes for would hold up another one.
        """
        for follower, announced_at in self._followers.values():
            if announced_at <= announced_until and not follower.turn.done():
                follower.turn.set_exception(
                    LinkDroppedError(Phase.MAIL, "no reply to the mail before it")
                )

    async def _quit_idle(self, unused_since: float) -> None:
        """Say goodbye on the connections that nobody has used since then."""
        leaving = [connection for connection, used_at in self._idle if used_at <= unused_since]
        self._idle = [(kept, used_at) for kept, used_at in self._idle if used_at > unused_since]
        try:
            async with asyncio.timeout(QUIT_SECONDS):
                await asyncio.gather(*(connection.quit() for connection in leaving))
        except TimeoutError:
            pass  # gather has cancelled them, and a cancelled goodbye closes the link
        finally:
            for connection in leaving:
                self._discard(connection)


_now = time.monotonic
