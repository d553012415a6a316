import sys
from datetime import timedelta
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from pydantic import ValidationError

from common.http.runtime import EXIT_CONFIG, run_service
from common.settings import BrokerSettings, ConsumerSettings, ServiceSettings, example
from tests.services import REQUIRED
from tests.services import settings_class as settings_class_of

SECRET = "hunter2-hunter2-hunter2"


SOURCE = '''
from pathlib import Path

from pydantic import SecretStr

from common.settings import Port, ServiceSettings


class Settings(ServiceSettings):
    port: Port = 8099

    db_password: SecretStr
    """What the database asks for.
    Kept in a vault."""

    db_pool_min: int = 2
    """Least connections."""

    db_ssl: bool = False
    """Whether to encrypt."""

    db_ca: Path | None = None
    """Whom to trust."""
'''


@pytest.fixture
def settings_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[ServiceSettings]:
    """The settings of a service whose folder is ``tmp_path``."""
    for name in ("PORT", "DB_PASSWORD", "DB_PASSWORD_FILE", "DB_POOL_MIN", "LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "settings.py").write_text(SOURCE)
    spec = spec_from_file_location("some_service.settings", tmp_path / "settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "some_service.settings", module)
    spec.loader.exec_module(module)
    settings: type[ServiceSettings] = module.Settings
    return settings


def password(settings: Any) -> str:
    return str(settings.db_password.get_secret_value())


def test_a_variable_wins_over_a_secret_file_and_that_over_dotenv(
    settings_class: type[ServiceSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".env").write_text("DB_PASSWORD=from-dotenv\nDB_POOL_MIN=3\n")
    assert password(settings_class()) == "from-dotenv"

    (tmp_path / "secret").write_text("from-file\n")
    monkeypatch.setenv("DB_PASSWORD_FILE", str(tmp_path / "secret"))
    assert password(settings_class()) == "from-file"

    monkeypatch.setenv("DB_PASSWORD", "from-variable")
    settings: Any = settings_class()
    assert password(settings) == "from-variable"
    assert settings.db_pool_min == 3


def test_a_secret_keeps_its_spaces_but_not_its_last_line_break(
    settings_class: type[ServiceSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "secret").write_text(" pass word \n")
    monkeypatch.setenv("DB_PASSWORD_FILE", str(tmp_path / "secret"))

    assert password(settings_class()) == " pass word "


@pytest.mark.parametrize(
    "written",
    [
        b"\xef\xbb\xbfhunter2",
        b"\xef\xbb\xbfhunter2\r\n",
        "hunter2\r\n".encode("utf-16"),
        b"\xfe\xff" + "hunter2\n".encode("utf-16-be"),
        b"hunter2\n\n",
    ],
)
def test_a_secret_is_the_same_whatever_wrote_its_file(
    settings_class: type[ServiceSettings],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: bytes,
) -> None:
    (tmp_path / "secret").write_bytes(written)
    monkeypatch.setenv("DB_PASSWORD_FILE", str(tmp_path / "secret"))

    assert password(settings_class()) == "hunter2"


def test_a_byte_order_mark_in_dotenv_hides_no_setting(
    settings_class: type[ServiceSettings], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_bytes(b"\xef\xbb\xbfDB_PASSWORD=hunter2\r\nLOG_LEVEL=ERROR\r\n")

    settings = settings_class()

    assert (password(settings), settings.log_level) == ("hunter2", "ERROR")


def test_what_is_no_setting_in_dotenv_is_named(
    settings_class: type[ServiceSettings], tmp_path: Path
) -> None:
    (tmp_path / ".env").write_text("DB_PASSWORD=hunter2\nDB_POOL_MEN=7\nCOLOUR=red\n")

    named = settings_class().without_effect()

    assert set(named) == {"DB_POOL_MEN", "COLOUR"}
    assert "DB_POOL_MIN" in named["DB_POOL_MEN"]


@pytest.mark.parametrize("service", ["frontend", "report_generator"])
@pytest.mark.parametrize("end", ["/register", "/register/", "/?a=1", "/#a"])
def test_a_public_url_with_a_path_is_refused_at_start(
    service: str, end: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in REQUIRED[service].items():
        monkeypatch.setenv(name.upper(), str(value))
    monkeypatch.setenv("PUBLIC_URL", f"https://example.org{end}")

    with pytest.raises(SystemExit) as stopped:
        run_service(service, settings_class_of(service), lambda _: web.Application())

    assert stopped.value.code == EXIT_CONFIG
    assert "PUBLIC_URL is wrong" in capsys.readouterr().err


@pytest.mark.parametrize("url", ["https://example.org", "https://example.org:8443/"])
def test_a_public_url_of_a_whole_host_is_taken(url: str) -> None:
    settings: Any = settings_class_of("frontend")(**REQUIRED["frontend"], public_url=url)

    assert settings.base_url == url.rstrip("/")


@pytest.mark.parametrize(
    "wrong",
    [
        {"cors_origins": "*"},
        {"cors_origins": "example.org"},
        {"cors_origins": "https://example.org/path"},
        {"cors_origins": "null"},
        {"allowed_hosts": "https://example.org"},
        {"allowed_hosts": "example.org:3000"},
    ],
)
def test_a_list_of_something_else_is_refused_at_start(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        settings_class_of("frontend")(**REQUIRED["frontend"], **wrong)


def test_settings_can_not_be_changed(
    settings_class: type[ServiceSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DB_PASSWORD", SECRET)

    settings: Any = settings_class()

    with pytest.raises(ValueError, match="frozen"):
        settings.port = 1


def never_built(_settings: ServiceSettings) -> web.Application:
    pytest.fail("it went on with wrong settings")


WRONG: dict[str, tuple[dict[str, str], list[str]]] = {
    "missing": ({}, ["some_service: DB_PASSWORD is missing.", "What the database asks for."]),
    "malformed": (
        {"DB_PASSWORD": SECRET, "DB_POOL_MIN": SECRET},
        ["some_service: DB_POOL_MIN is wrong: ", "Least connections."],
    ),
    "not a port": ({"DB_PASSWORD": SECRET, "PORT": SECRET}, ["some_service: PORT is wrong: "]),
    "no such port": ({"DB_PASSWORD": SECRET, "PORT": "65536"}, ["some_service: PORT is wrong: "]),
    "not a level": (
        {"DB_PASSWORD": SECRET, "LOG_LEVEL": SECRET},
        ["LOG_LEVEL is wrong: ", "'INFO'"],
    ),
    "no such file": (
        {"DB_PASSWORD_FILE": "/no/such/file"},
        ["DB_PASSWORD_FILE", "/no/such/file"],
    ),
    "a binary file": ({"DB_PASSWORD_FILE": sys.executable}, ["DB_PASSWORD_FILE", "UTF-8"]),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_setting_stops_the_service_and_names_itself_without_its_value(
    kind: str,
    settings_class: type[ServiceSettings],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    variables, expected = WRONG[kind]
    for name, value in variables.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(SystemExit) as stopped:
        run_service("some_service", settings_class, never_built)

    said = capsys.readouterr().err
    assert stopped.value.code == EXIT_CONFIG
    assert all(words in said for words in expected), said
    assert SECRET not in said


def test_the_example_holds_every_variable_with_meaning_and_default(
    settings_class: type[ServiceSettings],
) -> None:
    text = example(settings_class)

    assert "# What the database asks for.\n# Kept in a vault.\nDB_PASSWORD=\n" in text
    assert text.startswith("# TCP port to listen on.\n#PORT=8099\n")
    assert "# Least connections.\n#DB_POOL_MIN=2\n" in text
    assert "#DB_SSL=false\n" in text
    assert "#DB_CA=\n" in text
    assert "#BIND_ADDRESS=127.0.0.1\n" in text


def test_retries_wait_longer_each_time() -> None:
    settings = ConsumerSettings.model_validate(
        {"queue_url": "amqp://a:b@host/%2F", "max_retry_attempts": 3, "retry_delay_ms": 10_000}
    )

    assert settings.retry_delays() == [timedelta(seconds=seconds) for seconds in (10, 20, 40)]
    assert settings.retry_delays(factor=6)[2] == timedelta(seconds=360)


@pytest.mark.parametrize("url", ["http://host/", "host:5672", "", "amqp://"])
def test_a_queue_url_is_an_amqp_url(url: str) -> None:
    with pytest.raises(ValueError, match="queue_url"):
        BrokerSettings.model_validate({"queue_url": url})
