import asyncpg
import pytest

from common.errors import DatabaseUnavailableError, InvalidError
from database_service.translation import SerializationConflictError, reason, translated


@pytest.mark.parametrize(
    "error",
    [
        ConnectionRefusedError(111, "refused"),
        TimeoutError(),
        asyncpg.ConnectionDoesNotExistError("closed"),
        asyncpg.DiskFullError("could not extend file"),
        asyncpg.TooManyConnectionsError("sorry, too many clients already"),
        asyncpg.OutOfMemoryError("out of memory"),
        asyncpg.AdminShutdownError("terminating connection"),
        asyncpg.CrashShutdownError("terminating connection"),
        asyncpg.CannotConnectNowError("the database system is starting up"),
        asyncpg.ReadOnlySQLTransactionError("cannot execute INSERT"),
        asyncpg.PostgresIOError("could not read block"),
        asyncpg.InvalidPasswordError("password authentication failed"),
        asyncpg.InvalidCatalogNameError("database does not exist"),
    ],
)
def test_what_no_request_is_to_blame_for_is_an_outage(error: Exception) -> None:
    with pytest.raises(DatabaseUnavailableError) as caught, translated():
        raise error

    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    "error",
    [
        asyncpg.DataError("value out of range"),
        asyncpg.CharacterNotInRepertoireError('invalid byte sequence for encoding "UTF8": 0x00'),
        asyncpg.CheckViolationError("violates check constraint"),
    ],
)
def test_a_value_that_can_not_be_stored_is_invalid(error: Exception) -> None:
    with pytest.raises(InvalidError), translated():
        raise error


@pytest.mark.parametrize("error", [asyncpg.DeadlockDetectedError, asyncpg.SerializationError])
def test_a_lost_race_can_be_run_again(error: type[Exception]) -> None:
    with pytest.raises(SerializationConflictError), translated():
        raise error("rolled back")


@pytest.mark.parametrize("error", [asyncpg.UndefinedTableError("users"), KeyError("bug")])
def test_a_mistake_of_ours_stays_one(error: Exception) -> None:
    with pytest.raises(type(error)), translated():
        raise error


def test_the_reason_names_the_kind_and_the_state_and_no_value() -> None:
    error = asyncpg.DiskFullError("ada@example.org does not fit")

    assert reason(error) == "disk full (53100)"
    assert reason(ConnectionRefusedError()) == "connection refused"
