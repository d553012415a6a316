import ssl

import pytest
from pydantic import ValidationError

from database_service.settings import Settings


def test_the_defaults_reach_a_local_postgres() -> None:
    settings = Settings()

    assert (settings.port, settings.db_port, settings.db_name) == (8083, 5432, "userstream")
    assert (settings.db_pool_min, settings.db_pool_max) == (2, 10)
    assert settings.ssl == "prefer"


def test_the_password_is_not_shown() -> None:
    assert "hunter2" not in repr(Settings.model_validate({"db_password": "hunter2"}))


@pytest.mark.parametrize(
    ("given", "mode"),
    [("true", "require"), ("FALSE", "disable"), ("require", "require"), ("disable", "disable")],
)
def test_ssl_is_a_mode_or_a_plain_yes_or_no(given: str, mode: str) -> None:
    assert Settings.model_validate({"db_ssl": given}).ssl == mode


@pytest.mark.parametrize(("mode", "names"), [("verify-full", True), ("verify-ca", False)])
def test_a_verified_connection_checks_the_certificate(mode: str, names: bool) -> None:  # noqa: FBT001
    context = Settings.model_validate({"db_ssl": mode}).ssl

    assert isinstance(context, ssl.SSLContext)
    assert context.verify_mode is ssl.CERT_REQUIRED
    assert context.check_hostname is names


@pytest.mark.parametrize(
    "wrong",
    [
        {"db_pool_min": 11, "db_pool_max": 10},
        {"db_pool_max": 1},
        {"db_ssl": "perhaps"},
        {"db_port": 0},
    ],
)
def test_settings_that_can_not_work_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(wrong)
