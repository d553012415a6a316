"""Translates PostgreSQL's errors: unavailable, invalid value, or serialization conflict."""

from collections.abc import Iterator
from contextlib import contextmanager

import asyncpg

from common.errors import DatabaseUnavailableError, InvalidError

AWAY = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.InsufficientResourcesError,  # disk full, too many connections, out of memory
    asyncpg.OperatorInterventionError,  # shutdown, starting up, cancelled
    asyncpg.PostgresSystemError,  # I/O errors
    asyncpg.ReadOnlySQLTransactionError,  # a standby, or a disk put read-only
    asyncpg.IdleInTransactionSessionTimeoutError,
    asyncpg.InvalidAuthorizationSpecificationError,  # wrong password
    asyncpg.InvalidCatalogNameError,  # the database does not exist yet
    asyncpg.InsufficientPrivilegeError,  # a right was taken away
    asyncpg.LockNotAvailableError,
    asyncpg.InternalClientError,  # asyncpg met the end of a connection in the middle of a step
)
"""What ends by itself, or when PostgreSQL is repaired; the request is not the cause."""

LOST_RACE = (asyncpg.DeadlockDetectedError, asyncpg.SerializationError)
"""PostgreSQL rolled one of two transactions back so that the other could go on."""

UNSTORABLE = (
    asyncpg.DataError,
    asyncpg.CheckViolationError,
    asyncpg.NotNullViolationError,
    asyncpg.ProgramLimitExceededError,
)
"""A value that no column can hold; the contracts reject nearly all of them before."""


class SerializationConflictError(Exception):
    """Another transaction was first; nothing was stored, and the work can be repeated."""


@contextmanager
def translated() -> Iterator[None]:
    """Raise our errors instead of PostgreSQL's.

    Raises:
        DatabaseUnavailableError: PostgreSQL is away, full or shutting down.
        InvalidError: A value cannot be stored.
        SerializationConflictError: The transaction was rolled back in favour of another.
    """
    try:
        yield
    except LOST_RACE as error:
        raise SerializationConflictError from error
    except AWAY as error:
        raise DatabaseUnavailableError(
            f"PostgreSQL is unavailable ({reason(error)}). The request was not confirmed; retry it."
        ) from error
    except UNSTORABLE as error:
        raise InvalidError(
            "PostgreSQL cannot store one of the values. Nothing was stored."
        ) from error


def reason(error: BaseException) -> str:
    """What happened, without values: the kind of the error and its SQLSTATE."""
    words = "".join(f" {c.lower()}" if c.isupper() else c for c in type(error).__name__).strip()
    state = getattr(error, "sqlstate", None)
    return f"{words.removesuffix(' error')} ({state})" if state else words.removesuffix(" error")
