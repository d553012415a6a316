"""Keeps connections open between mails: opening one costs ten times what a mail does."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Self

import structlog

from common import metrics
from sender.smtp.connection import Connection
from sender.smtp.errors import LinkDroppedError, NotConnectedError
from sender.smtp.opening import Server

log = structlog.get_logger()

IDLE_SECONDS = 30.0
"""After this long without a mail a connection is closed, politely and by us.

Servers close idle ones after 300 s (RFC 5321, 4.5.3.2.7), some of them much sooner.
"""

QUIT_SECONDS = 2.0
"""Longest goodbye; the server's time-out ends what it does not answer."""


class Pool:
    """Up to ``size`` connections to one server."""

    def __init__(self, server: Server, *, size: int) -> None:
        self._server = server
        self._size = size
        self._free = asyncio.Semaphore(size)
        self._idle: list[tuple[Connection, float]] = []
        self._in_use = 0
        self._opening = asyncio.Lock()
        self._failure = ""
        self._failed_at = 0.0

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

    @asynccontextmanager
    async def connection(self, *, fresh: bool = False) -> AsyncIterator[Connection]:
        """Lend a connection, the one used last if any is left; ``fresh`` insists on a new one.

        Raises:
            NotConnectedError: None could be opened, or that was found out during the wait.
        """
        asked_at = _now()
        async with self._free:
            if self._failure and self._failed_at >= asked_at:
                raise NotConnectedError(self._failure)
            connection = await self._take(fresh=fresh)
            self._in_use += 1
            try:
                yield connection
            finally:
                self._in_use -= 1
                self._give_back(connection)

    async def ensure(self) -> None:
        """Return at once if there is a connection, else open one.

        Raises:
            NotConnectedError: That failed. Many callers cost the server one attempt.
        """
        if self._alive():
            return
        asked_at = _now()
        async with self._opening:
            if self._failure and self._failed_at >= asked_at:
                raise NotConnectedError(self._failure)
            if not self._alive():
                async with self.connection():
                    pass

    async def check(self) -> None:
        """Ask the server whether it is there, unless every connection is at work.

        Raises:
            NotConnectedError: It is not.
        """
        if self._in_use == self._size:
            return
        try:
            async with self.connection() as connection:
                await connection.check()
        except LinkDroppedError:  # it was closed while idle, which proves nothing
            async with self.connection(fresh=True):
                pass

    def _alive(self) -> bool:
        return self._in_use > 0 or any(connection.usable for connection, _ in self._idle)

    async def _take(self, *, fresh: bool) -> Connection:
        if fresh:  # what befell one has most likely befallen all: the server was restarted
            self._drop_idle()
        while self._idle:
            connection, _ = self._idle.pop()
            if connection.usable:
                return connection
            self._discard(connection)
        return await self._open()

    async def _open(self) -> Connection:
        try:
            connection = await Connection.open(self._server)
        except NotConnectedError as error:
            if not self._failure:
                log.warning("smtp.unavailable", reason=str(error))
            self._failure, self._failed_at = str(error), _now()
            raise
        if self._failure:
            log.info("smtp.available")
        self._failure = ""
        metrics.SMTP_CONNECTIONS.inc()
        return connection

    def _give_back(self, connection: Connection) -> None:
        if connection.usable:
            self._idle.append((connection, _now()))
        else:
            self._discard(connection)

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


def _now() -> float:
    return asyncio.get_running_loop().time()
