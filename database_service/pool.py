"""Connections to PostgreSQL: pooled, with deadlines, and back by themselves after an outage."""

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar

import asyncpg
import structlog

from common import metrics
from common.errors import DatabaseUnavailableError, InvalidError, RowLockedError
from database_service.connection import Connection
from database_service.migrations import migrate, read_migrations
from database_service.settings import Settings
from database_service.translation import SerializationConflictError, reason, translated

log = structlog.get_logger()

Result = TypeVar("Result")

ACQUIRE_SECONDS = 5.0
"""Longest wait for a free connection; with it, every answer is within the caller's 10 s."""

COMMAND_SECONDS = 4.0
"""Longest time for one statement; the slowest, a bulk store of 500, takes some 20 ms."""

CHECK_SECONDS = 2.0
"""Longest time for the readiness check's statement."""

CONNECT_PAUSES = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Seconds between attempts to connect at start; the last one goes on for ever."""

MAX_CONFLICT_RETRIES = 8
"""How often a transaction is repeated after a serialization conflict before it fails."""

SESSION = {
    "application_name": "userstream database_service",
    # An answer means that it is on disk, whatever the server's own setting is.
    "synchronous_commit": "on",
    "TimeZone": "UTC",
    "DateStyle": "ISO, YMD",
    # Planning takes longer than most statements, so each is planned once. The tables grow from
    # empty to millions under that plan: one that reads a whole table, as it would for an empty
    # one, is ruled out; every statement finds its rows by an index.
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
    "jit": "off",
    # The locks of a process that was stopped half-way are not held for ever.
    "idle_in_transaction_session_timeout": "30s",
    # Longer than PostgreSQL takes to find a deadlock (1 s), and far shorter than a statement may
    # last: a statement that waits for a lock occupies a connection meanwhile.
    "lock_timeout": "1500ms",
}

# By any session: then it is no single row, and every request would have to wait.
IS_TABLE_LOCKED = """
    SELECT EXISTS (
        SELECT FROM pg_locks
          JOIN pg_class ON pg_class.oid = pg_locks.relation
         WHERE pg_locks.locktype = 'relation'
           AND pg_locks.database = (SELECT oid FROM pg_database WHERE datname = current_database())
           AND pg_class.relnamespace = 'public'::regnamespace
           AND pg_locks.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock',
                                 'AccessExclusiveLock')
    )
"""

_UNREACHABLE = (
    *(DatabaseUnavailableError, SerializationConflictError, InvalidError),
    *(asyncpg.PostgresError, asyncpg.InterfaceError),
)
"""What is retried at start: any error of PostgreSQL, since no request depends on it yet."""


_LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What giving a connection back raises if it was lost meanwhile."""


class Database:
    """PostgreSQL as the repositories see it; usable once it is connected and migrated."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None
        self._waiting_for = "Connecting to PostgreSQL."
        self._available = True
        self._in_use = 0
        """Connections asked for and not yet given back."""
        self._releases: set[asyncio.Task[None]] = set()
        half = max(1, settings.db_pool_max // 2)
        self._streams = asyncio.Semaphore(half)
        self._changes = asyncio.Semaphore(half)

    async def prepare(self) -> None:
        """Connect and migrate; while PostgreSQL is away, try again and again.

        Raises:
            MigrationError: A person must act.
        """
        for attempt in range(1_000_000_000):
            try:
                with translated():
                    await self._connect()
            except _UNREACHABLE as error:
                cause = error.__cause__ or error
                self._waiting_for = f"PostgreSQL cannot be reached: {reason(cause)}."
                log.warning("database.unavailable", reason=reason(cause), attempt=attempt + 1)
            else:
                return
            await asyncio.sleep(CONNECT_PAUSES[min(attempt, len(CONNECT_PAUSES) - 1)])

    async def _connect(self) -> None:
        migrations = read_migrations()
        pool = self._new_pool()
        try:
            await pool
            self._waiting_for = "Migrations are pending: the tables are being prepared."
            async with pool.acquire(timeout=ACQUIRE_SECONDS) as connection:
                applied = await migrate(connection, migrations)
        except BaseException:
            pool.terminate()
            raise
        self._pool = pool
        metrics.DATABASE_CONNECTED.set(1)
        log.info("database.connected", migrations_applied=applied)

    def _new_pool(self) -> "asyncpg.Pool[asyncpg.Record]":
        settings = self._settings
        return asyncpg.create_pool(
            host=settings.db_host,
            port=settings.db_port,
            database=settings.db_name,
            user=settings.db_user,
            password=settings.db_password.get_secret_value(),
            ssl=settings.ssl,
            min_size=settings.db_pool_min,
            max_size=settings.db_pool_max,
            timeout=ACQUIRE_SECONDS,
            command_timeout=COMMAND_SECONDS,
            server_settings=SESSION,
            reset=_keep,
        )

    async def close(self) -> None:
        """Close all connections; those in use are given a moment."""
        pool, self._pool = self._pool, None
        self._waiting_for = "The service is stopping."
        if pool is None:
            return
        try:
            async with asyncio.timeout(ACQUIRE_SECONDS):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    async def check(self) -> None:
        """Raise DatabaseUnavailableError unless PostgreSQL answers and the tables are there."""
        async with self.connection() as connection:
            await connection.fetchval("SELECT 1", timeout=CHECK_SECONDS)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection; every statement commits by itself.

        Raises:
            DatabaseUnavailableError: PostgreSQL is away, or no connection became free in time.
            InvalidError: A value cannot be stored.
            SerializationConflictError: Rolled back in favour of another transaction.
            RowLockedError: Another transaction holds a row for long; other rows can be written.
        """
        if (pool := self._pool) is None:
            raise DatabaseUnavailableError(self._waiting_for)
        with self._tracked(), translated():
            connection = await self._acquire(pool)
            try:
                yield connection
            except (TimeoutError, asyncpg.InternalClientError):
                # It may hang for good; the pool makes a new one when it needs one.
                connection.terminate()
                raise
            except asyncpg.LockNotAvailableError as error:
                if await connection.fetchval(IS_TABLE_LOCKED):
                    raise
                raise RowLockedError(
                    "Another transaction holds a lock on a row that this request changes. Nothing "
                    "was stored; retry later."
                ) from error
            except asyncpg.InterfaceError as error:
                if not _is_gone(connection):
                    raise
                raise ConnectionError("The connection was closed while in use.") from error
            finally:
                self._release(pool, connection)

    async def _acquire(self, pool: "asyncpg.Pool[asyncpg.Record]") -> Connection:
        self._in_use += 1
        try:
            # Nearly always; a deadline costs as much as all the rest of it. One connection may be
            # unused and not free: the pool opens it anew.
            if self._in_use < self._settings.db_pool_max:
                return await pool.acquire()
            return await pool.acquire(timeout=ACQUIRE_SECONDS)
        except BaseException as error:
            self._in_use -= 1
            is_full = pool.get_idle_size() == 0 and pool.get_size() == pool.get_max_size()
            if isinstance(error, TimeoutError) and is_full:
                raise _PoolBusyError(
                    f"All {pool.get_size()} connections to PostgreSQL were busy for "
                    f"{ACQUIRE_SECONDS:g} s. Nothing was stored; retry later."
                ) from error
            raise

    def _release(self, pool: "asyncpg.Pool[asyncpg.Record]", connection: Connection) -> None:
        """Give a connection back in the background: the answer does not wait for that."""
        release = asyncio.create_task(pool.release(connection, timeout=ACQUIRE_SECONDS))
        self._releases.add(release)
        release.add_done_callback(self._released)

    def _released(self, release: asyncio.Task[None]) -> None:
        self._releases.discard(release)
        self._in_use -= 1
        error = None if release.cancelled() else release.exception()
        if error and not isinstance(error, _LOST):  # the pool forgets those by itself
            log.error("database.release_failed", error=repr(error))

    @contextmanager
    def _tracked(self) -> Iterator[None]:
        """Log once that PostgreSQL is away, and once that it is back."""
        try:
            yield
        except _PoolBusyError:
            raise
        except DatabaseUnavailableError as error:
            if self._available:
                log.warning("database.disconnected", reason=reason(error.__cause__ or error))
            self._available = False
            metrics.DATABASE_CONNECTED.set(0)
            raise
        if not self._available:
            log.info("database.reconnected")
            self._available = True
            metrics.DATABASE_CONNECTED.set(1)

    async def in_transaction(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """Do ``work`` in one transaction, again after a serialization conflict; return its result.

        Raises:
            DatabaseUnavailableError: PostgreSQL is away. If that happened at the commit, it is
                unknown whether it was stored: ``work`` must be safe to repeat.
        """

        async def transaction(connection: Connection) -> Result:
            async with connection.transaction():
                return await work(connection)

        return await self.with_retry(transaction)

    async def with_retry(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """As ``in_transaction``, for work of which each statement may stand alone.

        BEGIN and COMMIT are two more round trips, which cost as much as a statement.
        """
        for race in range(MAX_CONFLICT_RETRIES):
            try:
                async with self.connection() as connection:
                    return await work(connection)
            except SerializationConflictError:
                metrics.DATABASE_RACES.inc()
                await asyncio.sleep(random.uniform(0, 0.01 * 2**race))  # noqa: S311 - spreads load
        raise DatabaseUnavailableError(
            f"Gave up after {MAX_CONFLICT_RETRIES} serialization conflicts. "
            "Nothing was stored; retry."
        )

    @asynccontextmanager
    async def changing_connection(self) -> AsyncIterator[Connection]:
        """A connection for changing a row that a caller names; at most half of all.

        Clients that repeat a change of a locked row leave the other half to all else.
        """
        busy = "Too many rows are being changed at the same time."
        async with self._share(self._changes, busy), self.connection() as connection:
            yield connection

    @asynccontextmanager
    async def _share(self, share: asyncio.Semaphore, busy: str) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(ACQUIRE_SECONDS):
                await share.acquire()
        except TimeoutError as error:
            raise _PoolBusyError(f"{busy} Nothing was changed; retry later.") from error
        try:
            yield
        finally:
            try:
                if self._releases:  # a cancelled statement still holds its connection
                    await asyncio.wait(self._releases)
            finally:
                share.release()

    @asynccontextmanager
    async def streaming_connection(self) -> AsyncIterator[Connection]:
        """A connection for reading for long; at most half of all, so that short work goes on."""
        busy = "Too many reports are being read at the same time."
        async with self._share(self._streams, busy), self.connection() as connection:
            yield connection


class _PoolBusyError(DatabaseUnavailableError):
    """PostgreSQL is there, but there is more to do than the connections can carry."""


async def _keep(_connection: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Do not reset a connection that comes back: nothing here leaves anything on it.

    asyncpg's own reset is one more statement for each use.
    """


def _is_gone(connection: Connection) -> bool:
    try:
        return connection.is_closed()
    except asyncpg.InterfaceError:  # so closed that the pool has taken it back already
        return True
