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
from sender.smtp.errors import (
    BusyDestinationError,
    LinkDroppedError,
    NotConnectedError,
    SlowReplyError,
)
from sender.smtp.handshake import Server
from sender.smtp.replies import Phase

log = structlog.get_logger()

IDLE_SECONDS = 30.0
"""After this long without a mail a connection is closed, politely and by us.

Servers close idle ones after 300 s (RFC 5321, 4.5.3.2.7), some of them much sooner.
"""

QUIT_SECONDS = 2.0
"""Longest wait for the reply to QUIT; the server's time-out ends what it does not answer."""

SLOW_SECONDS = 3.0
"""A connection that has carried one mail for so long no longer counts towards ``size``."""

LOOK_SECONDS = 0.5
"""How often slow connections are looked for, while mails wait."""

MOST_PER_PLACE = 9
"""Connections at most, for each of ``size``: servers commonly allow 50 to a client, and one that
allows fewer says so."""

SHARE = 0.75
"""Of those, how many slow mails to one domain may hold; further ones wait at the broker."""

SLOW_REPLY_SECONDS = 10.0
"""How long a mail may wait for the replies before its text while others wait for its connection."""


class _Waiter(NamedTuple):
    """A task that waits for a connection."""

    mail: Mail | None
    fresh: bool
    """Whether only a new connection will do, so that it is announced behind no other mail."""

    turn: asyncio.Future[Connection | None]


class _Work(NamedTuple):
    """What a connection carries."""

    mail: Mail
    since: float


class Pool:
    """Up to ``size`` connections to one server."""

    def __init__(self, server: Server, *, size: int) -> None:
        self._server = server
        self._size = size
        self._most = size * MOST_PER_PLACE
        self._share = int(self._most * SHARE)
        self._at_work: dict[Connection, _Work] = {}
        self._slow: dict[Connection, str] = {}
        """Connections that carry a mail for too long, to its recipient's domain."""
        self._given_up: set[Connection] = set()
        self._look_later: asyncio.TimerHandle | None = None
        self.answered_at = float("-inf")
        """When the server last answered a mail, by the clock of ``time.monotonic``."""
        self._waiting: deque[_Waiter] = deque()
        self._followers: dict[Connection, tuple[_Waiter, float]] = {}
        self._idle: list[tuple[Connection, float]] = []
        self._taken = 0  # connections at work, and those being opened
        self._being_opened = 0
        self._opening = asyncio.Lock()
        self._failure = ""
        self._failed_at = 0.0

    @classmethod
    @asynccontextmanager
    async def open(cls, server: Server, *, size: int) -> AsyncIterator[Self]:
        """A pool that connects when it must; at the end, idle connections send QUIT."""
        pool = cls(server, size=size)
        sweeper = asyncio.create_task(pool._sweep())
        try:
            yield pool
        finally:
            if pool._look_later is not None:
                pool._look_later.cancel()
            sweeper.cancel()
            with suppress(asyncio.CancelledError):
                await sweeper
            await pool._quit_idle(_now())

    async def send(
        self, mail: Mail, *, before_text: Callable[[], None], fresh: bool = False
    ) -> Answer:
        """Send a mail on the first connection that is free, ``fresh`` on a new one.

        Raises:
            NotConnectedError: None could be opened, by this task or by another one meanwhile.
            LinkDroppedError, Utf8AddressError: See ``Connection.send``.
            SlowReplyError: It took too long while others waited.
            BusyDestinationError: Slow mails to its domain hold as many connections as they may.
        """
        connection = await self._acquire(mail, fresh=fresh)
        self._at_work[connection] = _Work(mail, _now())
        try:
            answer = await connection.send(
                mail, before_text=before_text, next_mail=partial(self._assign_next, connection)
            )
        except LinkDroppedError as error:
            if connection in self._given_up:
                raise SlowReplyError(str(error)) from error
            raise
        else:
            self.answered_at = _now()
            return answer
        finally:
            del self._at_work[connection]
            if self._slow:
                self._slow.pop(connection, None)
                self._given_up.discard(connection)
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
            self._share_connect_failure(asked_at)
            if not self._alive():
                self._pass_on(await self._acquire(None, fresh=False))

    async def check(self) -> None:
        """Ask the server whether it answers, beside the connections at work.

        Raises:
            NotConnectedError, LinkDroppedError: It is not.
        """
        connection = self._take_idle()
        if connection is not None:
            try:
                await self._ask(connection)
            except LinkDroppedError:  # it was closed while idle, which proves nothing
                self._drop_idle()
            else:
                return
        await self._ask(await self._open(is_vital=not self._taken))

    async def _ask(self, connection: Connection) -> None:
        try:
            await connection.check()
        except BaseException:
            self._discard(connection)
            raise
        self._idle.append((connection, _now()))

    def count_unanswered(self, seconds: float) -> int:
        """Count the domains to which a mail has waited for so long, with no mail answered since."""
        until = _now() - seconds
        work = self._at_work.values()
        return len({_domain(mail) for mail, since in work if self.answered_at < since <= until})

    def _alive(self) -> bool:
        at_work = self._taken - self._being_opened
        return at_work > 0 or any(connection.usable for connection, _ in self._idle)

    async def _acquire(self, mail: Mail | None, *, fresh: bool) -> Connection:
        """Take the connection used last, else open one; with ``fresh``, open one."""
        asked_at = _now()
        while True:
            connection = await self._turn(mail, fresh=fresh)
            if connection is not None:
                if not fresh:
                    return connection
                self._discard(connection)
            try:
                self._share_connect_failure(asked_at)
                if fresh:  # what befell one has most likely befallen all: a restart
                    self._drop_idle()
                if idle := self._take_idle():
                    return idle
                if opened := await self._open_beside():
                    return opened
            except BaseException:
                self._pass_on(None)
                raise
            self._pass_on(None)

    async def _open_beside(self) -> Connection | None:
        """Open a connection; None if the server accepts no more than it has now."""
        is_beside = bool(self._slow) and self._taken > self._size
        try:
            return await self._open(is_vital=not is_beside)
        except NotConnectedError:
            if not is_beside:
                raise
            self._most = max(self._taken - 1, self._size)
            return None

    @property
    def _has_room(self) -> bool:
        """Whether another connection may be taken: slow ones do not count, up to a limit."""
        return self._taken - len(self._slow) < self._size and self._taken < self._most

    async def _turn(self, mail: Mail | None, *, fresh: bool) -> Connection | None:
        """Wait until something is free: a connection, or the right to open one (None)."""
        if self._slow and mail is not None and self._is_busy(mail):
            raise BusyDestinationError
        if self._has_room:
            self._taken += 1
            return None
        loop = asyncio.get_running_loop()
        waiting = _Waiter(mail, fresh, loop.create_future())
        self._waiting.append(waiting)
        if self._look_later is None:
            self._look_later = loop.call_later(LOOK_SECONDS, self._look)
        try:
            return await waiting.turn
        except asyncio.CancelledError:
            if not waiting.turn.cancelled() and waiting.turn.exception() is None:
                self._pass_on(waiting.turn.result())  # it was our turn in the same moment
            raise

    def _assign_next(self, connection: Connection) -> Mail | None:
        """The mail that waits longest, to be announced on this connection and then sent there."""
        waiting = self._longest_waiting()
        if waiting is None or waiting.mail is None or waiting.fresh:
            return None
        if self._slow:  # behind this text it might wait as long
            return None
        if not connection.can_announce(waiting.mail):
            return None
        self._followers[connection] = self._waiting.popleft(), _now()
        return waiting.mail

    def _longest_waiting(self) -> _Waiter | None:
        while self._waiting and self._waiting[0].turn.done():  # cancelled
            self._waiting.popleft()
        return self._waiting[0] if self._waiting else None

    def _pass_on(self, connection: Connection | None) -> None:
        """Give what was in use to the mail announced on it, else to the next, else keep it idle."""
        if connection is not None:
            follower, _ = self._followers.pop(connection, (None, 0.0))
            if follower is not None and not follower.turn.done():
                follower.turn.set_result(connection)
                return
            if not connection.usable:  # also if the follower has gone: its text is waited for
                self._discard(connection)
                connection = None
        is_too_many = self._taken - len(self._slow) > self._size or self._taken > self._most
        if not is_too_many and self._longest_waiting() is not None:
            self._waiting.popleft().turn.set_result(connection)
            return
        self._taken -= 1
        if connection is not None:
            self._idle.append((connection, _now()))

    def _share_connect_failure(self, asked_at: float) -> None:
        """Raise the failure of another task's attempt to connect, if it failed since then."""
        if self._failure and self._failed_at >= asked_at:
            raise NotConnectedError(self._failure)

    def _take_idle(self) -> Connection | None:
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.usable:
                return connection
            self._discard(connection)
        return None

    async def _open(self, *, is_vital: bool = True) -> Connection:
        self._being_opened += 1
        try:
            connection = await Connection.open(self._server)
        except NotConnectedError as error:
            if is_vital:
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

    # -- slow mails -------------------------------------------------------------------------

    def _look(self) -> None:
        """Find the slow connections, and let others take their places.

        A server may take minutes for one recipient. Four such must not hold all mail, and a mail
        whose text was sent cannot be aborted without being sent twice. So a slow mail does not
        count, up to ``_most``; from then on mails that are slow before their text are deferred, and
        mails to a domain with many slow ones wait at the broker.
        """
        now = _now()
        self._slow = {
            connection: _domain(work.mail)
            for connection, work in self._at_work.items()
            if work.since <= now - SLOW_SECONDS
        }
        if not self._slow:
            self._most = self._size * MOST_PER_PLACE  # it may allow more than last time
        self._free_followers(now - SLOW_SECONDS)
        if self._slow:
            self._send_back_busy()
        while self._has_room and self._longest_waiting() is not None:
            self._taken += 1
            self._waiting.popleft().turn.set_result(None)
        if self._longest_waiting() is not None and self._taken >= self._most:
            self._give_up(now - SLOW_REPLY_SECONDS)
        is_needed = self._waiting or self._followers or self._slow
        self._look_later = (
            asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look) if is_needed else None
        )

    def _free_followers(self, announced_until: float) -> None:
        """Release the mails that have been announced behind an unanswered text since then.

        Otherwise one mail that a server takes ten minutes for would delay another one.
        """
        for follower, announced_at in self._followers.values():
            if announced_at <= announced_until and not follower.turn.done():
                follower.turn.set_exception(
                    LinkDroppedError(Phase.MAIL, "no reply to the mail before it")
                )

    def _is_busy(self, mail: Mail) -> bool:
        """Whether slow mails to the same domain hold all the connections that they may."""
        domain = _domain(mail)
        return sum(domain == slow for slow in self._slow.values()) >= self._share

    def _send_back_busy(self) -> None:
        """Let mails to a domain with too many slow ones wait at the broker."""
        for waiting in self._waiting:
            if waiting.mail is not None and not waiting.turn.done() and self._is_busy(waiting.mail):
                waiting.turn.set_exception(BusyDestinationError())

    def _give_up(self, since: float) -> None:
        """Abort the mails that have waited since then for replies before their texts."""
        for connection in self._slow:
            if self._at_work[connection].since <= since and not connection.is_committed:
                self._given_up.add(connection)
                connection.abort()

    async def _quit_idle(self, unused_since: float) -> None:
        """Send QUIT on the connections that have not been used since then."""
        leaving = [connection for connection, used_at in self._idle if used_at <= unused_since]
        self._idle = [(kept, used_at) for kept, used_at in self._idle if used_at > unused_since]
        try:
            async with asyncio.timeout(QUIT_SECONDS):
                await asyncio.gather(*(connection.quit() for connection in leaving))
        except TimeoutError:
            pass  # gather has cancelled them, and a cancelled QUIT closes the connection
        finally:
            for connection in leaving:
                self._discard(connection)


def _domain(mail: Mail) -> str:
    return mail.recipient.rpartition("@")[2].lower()


_now = time.monotonic
