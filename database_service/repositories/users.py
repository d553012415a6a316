"""Users: one by one, page by page, and all of them as CSV."""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from typing import NoReturn

import asyncpg

from common.contracts.reports import Column, UserReportQuery
from common.contracts.users import User, UserRequest, UserUpdate
from common.errors import DuplicateEmailError, NotFoundError, StaleError
from database_service.pool import Database

TAKEN = "Another user has this e-mail address."

REPORT_SECONDS = 3600.0
"""Longest time for one report; a slow reader holds a snapshot, which keeps dead rows alive."""


CHUNK_BYTES = 32 * 1024
"""Handed over at once. PostgreSQL sends 8 kB at a time; passed on like that, a report of
1,000,000 users takes a third longer."""


class ReaderGoneError(Exception):
    """The client no longer reads the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionedUser:
    """A user, and which edit of it this is."""

    user: User
    version: int
    """Counts from 1; what the ETag says."""


class UserRepository:
    """The table ``users``."""

    def __init__(self, database: Database) -> None:
        self._database = database

    # An address that is taken is an ordinary answer, not an error for PostgreSQL's log.
    INSERT_USER = """
        INSERT INTO users (name, surname, email)
             SELECT $1, $2, $3
              WHERE NOT EXISTS (SELECT FROM users WHERE lower(email) = lower($3))
        ON CONFLICT (lower(email)) DO NOTHING
          RETURNING id, name, surname, email, created_at, updated_at, version
    """

    async def insert_user(self, user: UserRequest) -> VersionedUser:
        """Create a user.

        Raises:
            DuplicateEmailError: Another user has the address.
        """
        async with self._database.changing_connection() as connection:
            row = await connection.fetchrow(self.INSERT_USER, user.name, user.surname, user.email)
        if row is None:
            raise DuplicateEmailError(TAKEN)
        return _versioned(row)

    SELECT_USER = """
        SELECT id, name, surname, email, created_at, updated_at, version
          FROM users
         WHERE id = $1
    """

    async def select_user(self, user_id: int) -> VersionedUser:
        """One user.

        Raises:
            NotFoundError: There is none with this id.
        """
        async with self._database.connection() as connection:
            return _versioned(await connection.fetchrow(self.SELECT_USER, user_id))

    SELECT_USER_BY_EMAIL = """
        SELECT id, name, surname, email, created_at, updated_at, version
          FROM users
         WHERE lower(email) = lower($1)
    """

    async def select_user_by_email(self, email: str) -> VersionedUser:
        """The user with an address, whatever case it is written in.

        Raises:
            NotFoundError: No user has it.
        """
        async with self._database.connection() as connection:
            return _versioned(await connection.fetchrow(self.SELECT_USER_BY_EMAIL, email))

    # Keyset, not OFFSET: page 1000 costs as much as page 1, and no row is skipped
    # or repeated when one is added meanwhile.
    SELECT_USERS_AFTER = """
          SELECT id, name, surname, email, created_at, updated_at
            FROM users
           WHERE id > $1
        ORDER BY id
           LIMIT $2
    """

    async def select_users_after(self, after: int, limit: int) -> list[User]:
        """Up to ``limit`` users with ids above ``after``, by id."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(self.SELECT_USERS_AFTER, after, limit)
        return [User.model_validate(dict(row)) for row in rows]

    SELECT_USERS_FROM = """
          SELECT id, name, surname, email, created_at, updated_at
            FROM users
        ORDER BY id
          OFFSET $1
           LIMIT $2
    """

    async def select_users_from(self, offset: int, limit: int) -> list[User]:
        """Up to ``limit`` users by id, without the first ``offset``; the further, the slower."""
        async with self._database.connection() as connection:
            rows = await connection.fetch(self.SELECT_USERS_FROM, offset, limit)
        return [User.model_validate(dict(row)) for row in rows]

    UPDATE_USER = """
           UPDATE users
              SET name = $2,
                  surname = $3,
                  email = coalesce($4, email),
                  updated_at = now(),
                  version = version + 1
            WHERE id = $1
              AND ($5::bigint[] IS NULL OR version = ANY ($5))
              AND NOT EXISTS (
                      SELECT
                        FROM users AS other
                       WHERE lower(other.email) = lower($4)
                         AND other.id <> $1
                  )
        RETURNING id, name, surname, email, created_at, updated_at, version
    """

    async def update_user(
        self, user_id: int, user: UserUpdate, *, versions: Sequence[int] | None
    ) -> VersionedUser:
        """Replace a user's values; with ``versions``, only if it is in one of them.

        Raises:
            NotFoundError: There is none with this id.
            StaleError: It is in another version.
            DuplicateEmailError: Another user has the address.
        """
        async with self._database.changing_connection() as connection:
            try:
                row = await connection.fetchrow(
                    self.UPDATE_USER, user_id, user.name, user.surname, user.email, versions
                )
            except asyncpg.UniqueViolationError as error:  # of two changes at the same moment
                raise DuplicateEmailError(TAKEN) from error
        if row is None:
            await self._raise_refused(user_id, versions)
        return _versioned(row)

    DELETE_USER = """
        DELETE FROM users
              WHERE id = $1
                AND ($2::bigint[] IS NULL OR version = ANY ($2))
          RETURNING id
    """

    async def delete_user(self, user_id: int, *, versions: Sequence[int] | None) -> None:
        """Delete a user; records of registrations and mails stay, without the name.

        Raises:
            NotFoundError: There is none with this id.
            StaleError: It is not in one of ``versions``.
        """
        async with self._database.changing_connection() as connection:
            deleted = await connection.fetchval(self.DELETE_USER, user_id, versions)
        if deleted is None:
            await self._raise_refused(user_id, versions)

    async def _raise_refused(self, user_id: int, versions: Sequence[int] | None) -> NoReturn:
        """Raise why a change found no row; NotFoundError if there is none at all."""
        current = await self.select_user(user_id)
        if versions is None or current.version in versions:
            raise DuplicateEmailError(TAKEN)
        raise StaleError(
            f"The user is in version {current.version} now. Nothing was changed. Get it again and "
            "repeat the change with the new ETag."
        )

    async def copy_users(
        self, query: UserReportQuery, write: Callable[[bytes], Awaitable[None]]
    ) -> None:
        """Hand users as lines of CSV to ``write``, by id, from one snapshot.

        No row becomes a Python object, and PostgreSQL waits while ``write`` does: memory stays
        flat however many there are. A return means that all of them were handed over.

        Raises:
            ReaderGoneError: ``write`` failed.
            DatabaseUnavailableError: PostgreSQL went away; what was handed over is a part.
        """
        gathered = bytearray()

        async def hand_over() -> None:
            try:
                await write(bytes(gathered))
            except (OSError, TimeoutError) as error:
                raise ReaderGoneError from error
            gathered.clear()

        async def sink(chunk: bytes) -> None:
            gathered.extend(chunk)
            if len(gathered) >= CHUNK_BYTES:
                await hand_over()

        async with self._database.streaming_connection() as connection:
            try:
                await connection.copy_from_query(
                    select_report(query.column_list),
                    _start_of(query.start_date),
                    _end_of(query.end_date),
                    output=sink,
                    format="csv",
                    # asyncpg quotes these as literals; the contract allows four and two.
                    delimiter=query.delimiter,
                    quote=query.quote,
                    timeout=REPORT_SECONDS,
                )
                if gathered:
                    await hand_over()
            except BaseException:
                # asyncpg cannot use a connection again whose COPY was left half-way.
                connection.terminate()
                raise


def select_report(columns: Sequence[Column]) -> str:
    """The statement that reads a report; $1 and $2 bound ``created_at``, the end excluded."""
    cells = ",\n              ".join(_CELLS[column] for column in columns)
    # Built from the enum's own table below: nothing a caller sends becomes part of it.
    return f"""
       SELECT {cells}
         FROM (SELECT id, name, surname, email,
                      {_written("created_at")} AS created,
                      {_written("updated_at")} AS updated
                 FROM users
                WHERE ($1::timestamptz IS NULL OR created_at >= $1::timestamptz)
                  AND ($2::timestamptz IS NULL OR created_at < $2::timestamptz)
             ORDER BY id
               OFFSET 0
              ) AS users
    """  # noqa: S608


FORMULA_STARTS = "=+-@\t\r\n\0＝＋－＠"  # noqa: RUF001 - full-width forms, which spreadsheets fold
"""First characters that make a spreadsheet run a cell (OWASP: CSV injection)."""


def _text(column: str) -> str:
    starts = ", ".join(str(ord(character)) for character in FORMULA_STARTS)
    return f"CASE WHEN ascii({column}) IN ({starts}) THEN '''' || {column} ELSE {column} END"


def _written(column: str) -> str:
    """A time in UTC as PostgreSQL writes it, with as much of the second as there is."""
    return f"({column} AT TIME ZONE 'UTC')::text"


def _instant(written: str) -> str:
    """ISO 8601, each as wide as any other: some readers take the format from the first row.

    Made from what is written already, and nearly always with all six digits: to_char would take
    twice as long, and filling up each one half as long again.
    """
    iso = f"replace({written}, ' ', 'T')"
    return (
        f"CASE octet_length({written}) WHEN 26 THEN {iso} || 'Z' "
        f"WHEN 19 THEN {iso} || '.000000Z' ELSE rpad({iso}, 26, '0') || 'Z' END"
    )


_CELLS = {
    Column.ID: "id",
    Column.NAME: _text("name"),
    Column.SURNAME: _text("surname"),
    Column.EMAIL: _text("email"),
    Column.CREATED_AT: _instant("created"),
    Column.UPDATED_AT: _instant("updated"),
}


def _start_of(day: date | None) -> datetime | None:
    return datetime.combine(day, time.min, UTC) if day else None


def _end_of(day: date | None) -> datetime | None:
    """The first moment after a day; the very last day there is has none."""
    return _start_of(day + timedelta(days=1)) if day and day < date.max else None


def _versioned(row: asyncpg.Record | None) -> VersionedUser:
    if row is None:
        raise NotFoundError("No user has this id or address.")
    return VersionedUser(user=User.model_validate(dict(row)), version=row["version"])
