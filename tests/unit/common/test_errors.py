import ast
from pathlib import Path

import pytest

from common import errors
from common.errors import (
    InProgressError,
    PermanentError,
    TransientError,
    UnavailableError,
    UserStreamError,
)

ROOT = Path(__file__).parents[3]
SERVICES = ("frontend", "queue_receiver", "sender", "database_service", "report_generator")


def subclasses(of: type[UserStreamError]) -> set[type[UserStreamError]]:
    return {of} | {sub for direct in of.__subclasses__() for sub in subclasses(direct)}


OURS = sorted(
    (kind for kind in subclasses(UserStreamError) if kind.__module__ == errors.__name__),
    key=lambda kind: kind.__name__,
)


def codes_in_the_code() -> list[str]:
    """Every ``code = "…"`` of a class in the shared code and the services."""
    return [
        statement.value.value
        for folder in ("common", *SERVICES)
        for file in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text("utf-8")))
        if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
        for statement in node.body
        if isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id == "code"
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    ]


def test_every_code_stands_for_one_error() -> None:
    codes = codes_in_the_code()

    assert len(codes) > 20
    assert sorted(codes) == sorted(set(codes))


@pytest.mark.parametrize("kind", OURS)
def test_every_error_says_what_becomes_of_the_message(kind: type[UserStreamError]) -> None:
    bases = {TransientError, UnavailableError, InProgressError, PermanentError}

    assert kind is UserStreamError or len(bases & set(kind.__mro__)) == 1


@pytest.mark.parametrize("kind", OURS)
def test_the_base_class_and_the_status_agree(kind: type[UserStreamError]) -> None:
    if issubclass(kind, UnavailableError):
        assert kind.http_status == 503
    elif issubclass(kind, PermanentError):
        assert 400 <= kind.http_status < 500
    else:
        assert kind.http_status in {408, 500, 503}  # all may be repeated as they are


def test_a_code_of_another_service_becomes_the_error_it_was() -> None:
    assert UserStreamError.by_code["stale"] is errors.StaleError
    assert UserStreamError.by_code["duplicate_email"] is errors.DuplicateEmailError


def test_an_error_without_words_says_its_title() -> None:
    assert str(errors.NotFoundError()) == errors.NotFoundError().detail == "Not found"
    assert str(errors.NotFoundError("No user 7.")) == "No user 7."
