"""Dry runs: the code that stores, in a transaction that is rolled back."""

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

import asyncpg

from common.contracts.registrations import RegistrationToStore, StoredRegistration
from database_service.connection import Connection
from database_service.pool import Database
from database_service.repositories.registrations import RegistrationRepository

Result = TypeVar("Result")


async def dry_run_registrations(
    database: Database, registrations: Sequence[RegistrationToStore]
) -> list[StoredRegistration]:
    """What ``RegistrationRepository`` would answer; nothing stays.

    Only the numbers given to users do not come again.

    Raises:
        DatabaseUnavailableError: PostgreSQL is away.
        InvalidError: A value cannot be stored.
    """

    async def work(connection: Connection) -> list[StoredRegistration]:
        transaction = connection.transaction()
        await transaction.start()
        try:
            repository = RegistrationRepository(_DryRun(connection))
            return await repository.insert_registrations(registrations)
        finally:
            await transaction.rollback()

    return await database.with_retry(work)


class _DryRun(Database):
    """One transaction in place of the database."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def with_retry(self, work: Callable[[Connection], Awaitable[Result]]) -> Result:
        """The result of ``work``; what lost a race against an earlier row is done again."""
        try:
            async with self._connection.transaction():  # a savepoint
                return await work(self._connection)
        except asyncpg.SerializationError:
            return await work(self._connection)
