from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from common.contracts.topology import EMAIL_NOTIFICATIONS
from common.errors import SettingError
from common.settings import example
from sender.app import mail_server
from sender.settings import RETRY_FACTOR, Settings
from sender.smtp.handshake import Security


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)


def settings(**changes: Any) -> Settings:
    return Settings.model_validate(
        {
            "queue_url": "amqp://sender:secret@127.0.0.1/%2F",
            "smtp_host": "mail.example.org",
            "from_email": "hello@example.com",
            **changes,
        }
    )


def test_tls_is_required_unless_somebody_says_otherwise() -> None:
    assert mail_server(settings()).security is Security.STARTTLS
    assert mail_server(settings()).tls.check_hostname


@pytest.mark.parametrize("host", ["mail.example.org", "10.0.0.1"])
def test_a_password_is_never_sent_in_the_clear(host: str) -> None:
    with pytest.raises(ValidationError, match="SMTP_SECURE"):
        settings(smtp_host=host, smtp_secure="none", smtp_user="us", smtp_password="secret")


@pytest.mark.parametrize(
    ("host", "port", "said", "security"),
    [
        ("smtp.example.org", 587, "false", Security.STARTTLS),
        ("smtp.example.org", 587, False, Security.STARTTLS),
        ("smtp.example.org", 465, "true", Security.TLS),
        ("smtp.example.org", 587, "true", Security.STARTTLS),
        ("smtp.example.org", 2465, "Yes", Security.TLS),
        ("mailhog", 1025, "false", Security.NONE),
        ("localhost", 587, "FALSE", Security.NONE),
        ("[::1]", 2525, "0", Security.NONE),
        ("smtp.example.org", 2525, "off", Security.STARTTLS),
        ("smtp.example.org", 587, "STARTTLS", Security.STARTTLS),
        ("smtp.example.org", 465, "Tls", Security.TLS),
    ],
)
def test_what_other_programs_call_secure_is_understood(
    host: str, port: int, said: object, security: Security
) -> None:
    assert settings(smtp_host=host, smtp_port=port, smtp_secure=said).smtp_secure is security


def test_what_nobody_calls_secure_is_refused() -> None:
    with pytest.raises(ValidationError, match="smtp_secure"):
        settings(smtp_secure="perhaps")


@pytest.mark.parametrize(
    ("said", "host"),
    [("[::1]", "::1"), ("::1", "::1"), ("[2001:db8::1]", "2001:db8::1"), ("[odd]", "[odd]")],
)
def test_an_address_of_ipv6_may_stand_in_brackets(said: str, host: str) -> None:
    assert mail_server(settings(smtp_host=said)).host == host


def test_on_this_machine_it_may_be() -> None:
    server = mail_server(
        settings(smtp_host="127.0.0.1", smtp_secure="none", smtp_user="us", smtp_password="secret")
    )

    assert (server.user, server.password) == ("us", "secret")


def test_the_password_may_be_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("secret\n")
    monkeypatch.setenv("SMTP_PASSWORD_FILE", str(tmp_path / "password"))

    assert mail_server(settings(smtp_user="us")).password == "secret"


@pytest.mark.parametrize(
    "change",
    [
        {"smtp_secure": "maybe"},
        {"smtp_host": ""},
        {"from_email": "nobody"},
        {"from_email": "jörg@example.org"},
        {"from_name": "a\r\nBcc: eve@example.net"},
        {"smtp_hello_name": "a\r\nRSET"},
        {"smtp_ca_file": "/nowhere/ca.pem"},
        {"smtp_connections": 0},
    ],
)
def test_a_setting_that_can_not_work_stops_the_start(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        settings(**change)

    assert caught.value.error_count() == 1


def test_a_certificate_file_that_holds_none_is_named(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("not a certificate")

    with pytest.raises(SettingError, match="SMTP_CA_FILE"):
        mail_server(settings(smtp_ca_file=path))


def test_the_retries_fit_the_routes_steps_and_reach_from_seconds_to_hours() -> None:
    delays = settings().retry_delays(RETRY_FACTOR)

    assert len(delays) <= EMAIL_NOTIFICATIONS.retry_steps
    assert delays[0].total_seconds() == 10
    assert 3600 * 4 < delays[-1].total_seconds() <= 3600 * 24


def test_the_example_file_is_up_to_date() -> None:
    path = Path(__file__).parents[3] / "sender" / ".env.example"

    assert path.read_text("utf-8") == example(Settings)
