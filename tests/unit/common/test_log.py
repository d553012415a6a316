import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Literal

import pytest
import structlog

from common.context import enter_request
from common.contracts.registrations import RegistrationRequest
from common.errors import DatabaseUnavailableError
from common.log import configure_logging

TYPED = "no-address-of-grace"


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    structlog.reset_defaults()


@pytest.mark.parametrize("log_format", ["json", "console"])
def test_an_exception_is_logged_without_what_people_typed(
    log_format: Literal["json", "console"], capsys: pytest.CaptureFixture[str]
) -> None:
    configure_logging("frontend", "INFO", log_format)

    try:
        RegistrationRequest.model_validate({"name": "Grace", "surname": "H.", "email": TYPED})
    except ValueError:
        structlog.get_logger().exception("http.failed")
        logging.getLogger("aiohttp.server").exception("Error handling request")

    printed = capsys.readouterr().out
    assert printed.count("ValidationError") == 2
    assert printed.count("in test_an_exception_is_logged_without_what_people_typed") == 2
    assert TYPED not in printed


def test_a_logged_exception_names_what_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("database_service", "INFO", "json")

    try:
        try:
            raise ConnectionRefusedError(111, "Connection refused")
        except OSError as error:
            raise DatabaseUnavailableError("PostgreSQL is away.") from error
    except DatabaseUnavailableError:
        structlog.get_logger().exception("http.failed")

    described = json.loads(capsys.readouterr().out)["exception"]
    assert [(error["type"], error["reason"]) for error in described] == [
        ("common.errors.DatabaseUnavailableError", "PostgreSQL is away."),
        ("builtins.ConnectionRefusedError", "Connection refused"),
    ]


async def test_a_log_line_carries_the_service_and_the_ids_of_its_request(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("sender", "INFO", "json")
    enter_request({"X-Request-Id": "r-1", "X-Correlation-Id": "c-1"})

    structlog.get_logger().info("email.sent", template="welcome")
    assert capsys.readouterr().out == ""  # lines of one turn are written together
    await asyncio.sleep(0)

    line = json.loads(capsys.readouterr().out)
    assert line["event"] == "email.sent"
    assert (line["service"], line["request_id"], line["correlation_id"]) == ("sender", "r-1", "c-1")
    assert "message_id" not in line


@pytest.mark.parametrize("odd", ["\ud800", 10**40, {1: "a"}, object(), "a\nb"])
def test_whatever_is_logged_makes_one_line(odd: object, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("sender", "INFO", "json")

    structlog.get_logger().info("email.sent", reply=odd)

    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line)["event"] == "email.sent"


def test_what_is_less_severe_than_the_level_is_not_logged(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("sender", "WARNING", "json")

    structlog.get_logger().info("email.sent")
    structlog.get_logger().warning("consumer.paused")

    assert "consumer.paused" in capsys.readouterr().out.splitlines()[0]
