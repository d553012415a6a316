"""Brings the tables up to date: applies ``sql/NNNN_name.sql`` in order, each once."""

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import structlog

from database_service.connection import Connection
from database_service.translation import AWAY, LOST_RACE

log = structlog.get_logger()

DIRECTORY = Path(__file__).resolve().parent.parent / "sql"

LOCK = 0x5573657253747265
"""Key of the advisory lock; "UserStre" in ASCII. Instances that start together take turns."""

MIGRATION_SECONDS = 3600.0
"""Longest time for one file; building an index on many rows takes minutes."""

_NAME = re.compile(r"(\d{4})_[a-z0-9_]+\.sql")


class MigrationError(Exception):
    """The tables cannot be brought up to date; a person must act, waiting does not help."""


@dataclass(frozen=True, slots=True)
class Migration:
    """One file of SQL."""

    number: int
    name: str
    sql: str

    @property
    def checksum(self) -> str:
        """SHA-256 of the text; a checkout with other line ends is the same text."""
        return hashlib.sha256(self.sql.encode()).hexdigest()


def read_migrations(directory: Path = DIRECTORY) -> list[Migration]:
    """All migrations in order.

    Raises:
        MigrationError: A file is misnamed, or two have the same number.
    """
    migrations: list[Migration] = []
    for path in sorted(directory.glob("*.sql")):
        if not (match := _NAME.fullmatch(path.name)):
            raise MigrationError(f"sql/{path.name} is not named NNNN_name.sql.")
        number = int(match[1])
        if migrations and migrations[-1].number == number:
            raise MigrationError(f"Two files in sql/ have the number {match[1]}.")
        # read_text turns \r\n into \n.
        migrations.append(Migration(number, path.name, path.read_text("utf-8")))
    return migrations


CREATE_MIGRATIONS = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        number     integer     PRIMARY KEY,
        name       text        NOT NULL,
        checksum   text        NOT NULL,
        applied_at timestamptz NOT NULL DEFAULT now()
    )
"""

SELECT_MIGRATIONS = """
      SELECT number, name, checksum
        FROM schema_migrations
    ORDER BY number
"""

INSERT_MIGRATION = """
    INSERT INTO schema_migrations (number, name, checksum)
         VALUES ($1, $2, $3)
"""


async def migrate(connection: Connection, migrations: list[Migration]) -> int:
    """Apply what is not applied yet; each file in a transaction of its own.

    A crash half-way leaves whole files applied and releases the lock. What a newer version
    of the service applied is left alone, so that old and new run side by side.

    Returns:
        How many were applied.

    Raises:
        MigrationError: An applied file was changed since, or one cannot be applied.
    """
    # Another instance may be migrating for as long as this one may.
    await connection.execute("SET lock_timeout = 0")
    await connection.execute("SELECT pg_advisory_lock($1)", LOCK, timeout=MIGRATION_SECONDS)
    try:
        await connection.execute(CREATE_MIGRATIONS)
        applied = {row["number"]: row for row in await connection.fetch(SELECT_MIGRATIONS)}
        for migration in migrations:
            if row := applied.get(migration.number):
                _check_unchanged(migration, row)
        pending = [migration for migration in migrations if migration.number not in applied]
        for migration in pending:
            await _apply(connection, migration)
    except asyncpg.InsufficientPrivilegeError as error:
        raise MigrationError(f"The role DB_USER may not make tables: {_message(error)}.") from error
    finally:
        if not connection.is_closed():
            await connection.execute("RESET lock_timeout")
            await connection.execute("SELECT pg_advisory_unlock($1)", LOCK)
    return len(pending)


def _check_unchanged(migration: Migration, applied: asyncpg.Record) -> None:
    if (applied["name"], applied["checksum"]) != (migration.name, migration.checksum):
        raise MigrationError(
            f"sql/{migration.name} is not what was applied to this database as "
            f"{applied['name']}. Put the file back as it was, and write the change as a new "
            "migration with the next number."
        )


async def _apply(connection: Connection, migration: Migration) -> None:
    try:
        async with connection.transaction():
            await connection.execute(migration.sql, timeout=MIGRATION_SECONDS)
            await connection.execute(
                INSERT_MIGRATION, migration.number, migration.name, migration.checksum
            )
    except (*AWAY, *LOST_RACE):
        raise
    except asyncpg.PostgresError as error:
        raise MigrationError(
            f"sql/{migration.name} cannot be applied: {_message(error)}. Nothing of it was."
        ) from error
    log.info("migration.applied", name=migration.name)


def _message(error: asyncpg.PostgresError) -> str:
    """PostgreSQL's message without its DETAIL, which quotes rows: names and addresses."""
    return str(error.args[0])
