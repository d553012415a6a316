import pytest

from tools.launcher.services import LISTENING, SETTINGS, service_environment

DEFAULTS = {
    "QUEUE_URL": "amqp://sender:own@127.0.0.1/",
    "SMTP_HOST": "127.0.0.1",
    "DB_PASSWORD": "own",
    "LOG_FORMAT": "json",
}


def test_service_is_told_its_own_settings_only() -> None:
    environment = service_environment("sender", defaults=DEFAULTS, given={}, port=8082)

    assert environment["SMTP_HOST"] == "127.0.0.1"
    assert environment["PORT"] == "8082"
    assert "DB_PASSWORD" not in environment


def test_what_the_environment_gives_wins_over_the_launchers_own() -> None:
    given = {"SMTP_HOST": "smtp.example.org", "LOG_FORMAT": "console"}

    environment = service_environment("sender", defaults=DEFAULTS, given=given, port=8082)

    assert environment["SMTP_HOST"] == "smtp.example.org"
    assert environment["LOG_FORMAT"] == "console"


def test_port_of_the_environment_never_wins() -> None:
    given = {"PORT": "9999"}

    environment = service_environment("sender", defaults=DEFAULTS, given=given, port=8082)

    assert environment["PORT"] == "8082"


def test_secret_given_as_a_file_replaces_the_launchers_own() -> None:
    given = {"DB_PASSWORD_FILE": "/run/secrets/db"}

    environment = service_environment("database_service", defaults=DEFAULTS, given=given, port=1)

    assert environment["DB_PASSWORD_FILE"] == "/run/secrets/db"
    assert "DB_PASSWORD" not in environment


def test_nothing_else_of_the_environment_reaches_a_service() -> None:
    given = {"PATH": "/usr/bin", "AWS_SECRET_ACCESS_KEY": "x", "PYTHONPATH": "/elsewhere"}

    environment = service_environment("sender", defaults={}, given=given, port=1)

    assert environment["PATH"] == "/usr/bin"
    assert {"AWS_SECRET_ACCESS_KEY", "PYTHONPATH"}.isdisjoint(environment)


@pytest.mark.parametrize("service", SETTINGS)
def test_launcher_knows_every_setting_of_every_service(service: str) -> None:
    settings = pytest.importorskip(f"{service}.settings").Settings

    # A PUBLIC_URL in the environment is the form's; the reports' is another one.
    known = {"public_url"} | {name.lower() for name in (*SETTINGS[service], "PORT")}

    unknown = set(settings.model_fields) - known - {name.lower() for name in LISTENING}
    assert unknown == set()
    assert known - set(settings.model_fields) <= {"public_url"}  # none that nobody reads
