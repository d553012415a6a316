"""A setting that is misspelt, or changes nothing, is named; whatever is not ours is not."""

from pathlib import Path
from typing import Any

import pytest
import structlog
from aiohttp import web

from common.http.runtime import run_service
from common.setting_names import misspelt
from tests.services import REQUIRED, SERVICES, settings_class
from tools.launcher.services import KNOWN, LISTENING, SETTINGS

OF_OTHERS = (
    "PATH", "HOME", "LANG", "LC_ALL", "HOSTNAME", "HTTP_PROXY", "NO_PROXY", "PYTHONPATH", "TZ",
    "PYTHON_VERSION", "GPG_KEY", "USER", "LOGNAME", "PWD", "SHELL", "TERM", "DISPLAY", "EDITOR",
    "SSH_AUTH_SOCK", "XDG_CACHE_HOME", "VIRTUAL_ENV", "KUBERNETES_SERVICE_HOST",
    "KUBERNETES_PORT_443_TCP_ADDR", "DB_SERVICE_HOST", "DB_PORT_5432_TCP", "SMTP_SERVICE_PORT",
    "QUEUE_PORT_5672_TCP_PROTO", "POSTGRES_DB", "PGHOST", "RABBITMQ_NODENAME", "DOCKER_HOST",
    "MAIL", "LS_COLORS", "COLUMNS", "LINES", "DEBUG", "CI", "INVOCATION_ID", "JOURNAL_STREAM",
    "FRONTEND_PORT", "REPORT_GENERATOR_PORT", "UV_CACHE_DIR", "PIP_INDEX_URL",
)  # fmt: skip


@pytest.mark.parametrize(
    ("given", "like"),
    [
        ("SMTP_HOTS", "SMTP_HOST"), ("SMPT_HOST", "SMTP_HOST"), ("SMTPHOST", "SMTP_HOST"),
        ("SMTP_PASS", None), ("SMTP_TLS", None), ("DB_PASWORD", "DB_PASSWORD"),
        ("DB_PASWORD_FILE", "DB_PASSWORD"), ("smtp_hosts", "SMTP_HOST"), ("LOGLEVEL", "LOG_LEVEL"),
        ("ALLOWED_HOST", "ALLOWED_HOSTS"), ("CORS_ORIGIN", "CORS_ORIGINS"),
        ("PUBLIC_URI", "PUBLIC_URL"), ("REGISTRATION_SECRET", "REGISTRATION_ID_SECRET"),
        ("PRE_FETCH", "PREFETCH"), ("CANARY_INTERVAL", None), ("QUEUE_URLS", "QUEUE_URL"),
    ],
)  # fmt: skip
def test_a_misspelt_setting_is_found_with_the_one_it_is_like(given: str, like: str | None) -> None:
    found = misspelt([given, "PATH"], KNOWN)

    assert set(found) == {given}
    assert like is None or found[given] == like


@pytest.mark.parametrize("service", SERVICES)
def test_settings_of_others_and_of_the_system_are_no_mistakes(service: str) -> None:
    known = {*SETTINGS[service], *LISTENING, "PORT"}

    assert misspelt({*OF_OTHERS, *known, *(f"{name}_FILE" for name in known)}, known) == {}
    assert misspelt(OF_OTHERS, KNOWN) == {}
    assert misspelt(KNOWN, known) == {}, "one environment may serve all"


@pytest.mark.parametrize(
    ("service", "given", "named"),
    [
        ("sender", {"smtp_password": "secret"}, "SMTP_PASSWORD"),
        ("sender", {"smtp_ca_file": __file__, "smtp_secure": "none"}, "SMTP_CA_FILE"),
        ("sender", {"max_retry_attempts": 0, "retry_delay_ms": 7}, "RETRY_DELAY_MS"),
        ("queue_receiver", {"max_retry_attempts": 0, "retry_delay_ms": 7}, "RETRY_DELAY_MS"),
        ("database_service", {"db_ssl_ca": __file__, "db_ssl": "require"}, "DB_SSL_CA"),
    ],
)
def test_a_setting_that_another_one_makes_meaningless_is_named(
    service: str, given: dict[str, Any], named: str
) -> None:
    assert set(settings_class(service)(**REQUIRED[service] | given).without_effect()) == {named}


@pytest.mark.parametrize("service", SERVICES)
def test_nothing_is_named_where_nothing_is_wrong(service: str) -> None:
    assert settings_class(service)(**REQUIRED[service]).without_effect() == {}


def test_a_service_names_them_at_its_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("secret")
    for name, value in REQUIRED["sender"].items():
        monkeypatch.setenv(name.upper(), str(value))
    monkeypatch.setenv("SMTP_CONECTIONS", "7")
    monkeypatch.setenv("SMTP_USER", "somebody")
    monkeypatch.setenv("SMTP_PASSWORD", "secret")
    monkeypatch.setenv("SMTP_PASSWORD_FILE", str(tmp_path / "password"))
    monkeypatch.setattr("common.http.runtime.configure_logging", lambda *_: None)

    def build(_settings: object) -> web.Application:
        raise KeyboardInterrupt

    with structlog.testing.capture_logs() as logs, pytest.raises(KeyboardInterrupt):
        run_service("sender", settings_class("sender"), build)

    named = {line["setting"]: line["reason"] for line in logs}
    assert set(named) == {"SMTP_CONECTIONS", "SMTP_PASSWORD_FILE"}
    assert "SMTP_CONNECTIONS" in named["SMTP_CONECTIONS"]
    assert "secret" not in str(logs)
