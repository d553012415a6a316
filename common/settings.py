"""Settings: environment variables, read once, into a frozen model.

``python -m common.settings sender.settings`` prints a service's ``.env.example``.
"""

import codecs
import os
import re
import sys
from datetime import timedelta
from importlib import import_module
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from dotenv import dotenv_values
from pydantic import AfterValidator, AnyHttpUrl, Field, UrlConstraints, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined, Url
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from common import failpoints
from common.errors import SettingError
from common.setting_names import misspelt

Port = Annotated[int, Field(ge=0, le=65535, description="TCP port to listen on.")]
AmqpUrl = Annotated[Url, UrlConstraints(allowed_schemes=["amqp", "amqps"], host_required=True)]


def _root_of_a_host(url: AnyHttpUrl) -> AnyHttpUrl:
    if (url.path or "/") != "/" or url.query or url.fragment or url.username or url.password:
        raise ValueError(
            "it must be a scheme, a host and perhaps a port, such as https://example.org: pages "
            "and links begin at the root of a host, so each service needs a name of its own"
        )
    return url


PublicUrl = Annotated[AnyHttpUrl, AfterValidator(_root_of_a_host)]


def _host_names(text: str) -> str:
    """A list of host names as it stands in a setting."""
    for name in split_list(text):
        if name != "*" and not re.fullmatch(r"(\*\.)?[A-Za-z0-9._-]+", name):
            raise ValueError("name hosts alone, without scheme and port, separated by commas")
    return text


_ORIGIN = re.compile(r"https?://([A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?/?")


def _origins(text: str) -> str:
    """A list of origins as it stands in a setting."""
    for origin in split_list(text):
        if not _ORIGIN.fullmatch(origin):
            raise ValueError("name each origin in full, such as https://example.org, without path")
    return text


def _networks(text: str) -> str:
    """A list of addresses and networks as it stands in a setting."""
    for network in split_list(text):
        ip_network(network)
    return text


def split_list(text: str) -> list[str]:
    """The items of a setting that is a list."""
    return [item.strip() for item in text.split(",") if item.strip()]


HostNames = Annotated[str, AfterValidator(_host_names)]
Networks = Annotated[str, AfterValidator(_networks)]
Origins = Annotated[str, AfterValidator(_origins)]


class SecretFiles(PydanticBaseSettingsSource):
    """``NAME_FILE`` names a file that holds the value of ``NAME``, as container secrets do."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:  # noqa: ARG002
        """The file's content without its last line break and without a byte order mark.

        Raises:
            SettingError: The file cannot be read.
        """
        variable = f"{field_name.upper()}_FILE"
        path = os.environ.get(variable)
        try:
            text = _decode(Path(path).read_bytes()).rstrip("\r\n") if path else None
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "It is not UTF-8."
            raise SettingError(f"{variable}: {path} cannot be read. {reason}") from error
        return text, field_name, False

    def __call__(self) -> dict[str, Any]:
        """All settings that are given as files."""
        fields = self.settings_cls.model_fields.items()
        values = {name: self.get_field_value(field, name)[0] for name, field in fields}
        return {name: value for name, value in values.items() if value is not None}


def _decode(content: bytes) -> str:
    """Text as editors and shells write it: Windows puts a byte order mark in front."""
    is_utf_16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return content.decode("utf-16" if is_utf_16 else "utf-8-sig")


class Section(BaseSettings):
    """Base of all settings; the docstring below each field becomes its text in the docs."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    def unused(self) -> dict[str, str]:
        """Fields that another setting makes meaningless, and why."""
        return {}


class ServiceSettings(Section):
    """Settings of every service; a variable wins over a file, a file over ``.env``."""

    port: Port

    bind_address: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 in a container, where the engine decides who may connect."""

    allowed_hosts: HostNames = ""
    """Host names, separated by commas, that requests may name, besides localhost, addresses and
    PUBLIC_URL's; *.example.org stands for all below it, * switches the check off."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severity that is logged."""

    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: console in a terminal, JSON otherwise."""

    userstream_failpoint: str = ""
    """For tests of crashes alone: ends the process at this point, w13:nth=3 at its third pass of
    window 13 of docs/reliability.md."""

    @field_validator("userstream_failpoint")
    @classmethod
    def _known_failpoint(cls, text: str) -> str:
        failpoints.parse(text)
        return text

    def without_effect(self) -> dict[str, str]:
        """Variables that are set and change nothing, each with the reason."""
        known = {name.upper() for name in type(self).model_fields}
        found = {
            name: f"there is no such setting{f'; {like} is one' if like else ''}"
            for name, like in misspelt(os.environ, known).items()
        }
        # In our own file, every name that is no setting is a mistake.
        for name in dotenv_values(_dotenv(type(self)), encoding="utf-8-sig"):
            if name.upper() not in known:
                like = misspelt([name], known).get(name)
                found[name] = f"no such setting is read from .env{f'; {like} is' if like else ''}"
        for name in sorted(known & os.environ.keys()):
            if os.environ.get(f"{name}_FILE"):
                found[f"{name}_FILE"] = f"{name} is given too, and wins"
        given = {name: why for name, why in self.unused().items() if name in self.model_fields_set}
        return found | {name.upper(): why for name, why in given.items()}

    @classmethod
    def settings_customise_sources(  # noqa: D102 - pydantic-settings' own hook
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,  # noqa: ARG003
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        dotenv = DotEnvSettingsSource(
            settings_cls, env_file=_dotenv(settings_cls), env_file_encoding="utf-8-sig"
        )
        return init_settings, env_settings, SecretFiles(settings_cls), dotenv


def _dotenv(settings_class: type[BaseSettings]) -> Path:
    """The file beside the service's settings."""
    module = sys.modules[settings_class.__module__].__file__ or ""
    return Path(module).with_name(".env")


class BrokerSettings(Section):
    """Settings of a service that speaks AMQP."""

    queue_url: AmqpUrl
    """Where RabbitMQ is, with the service's own user: amqp://user:password@host:5672/%2F"""

    queue_management_url: AnyHttpUrl | None = None
    """Management API with a monitoring user; where given, bindings and policies are checked too."""


class ConsumerSettings(BrokerSettings):
    """Settings of a service that consumes messages."""

    max_retry_attempts: int = Field(default=3, ge=0)
    """Retries after the first try, before a message is dead-lettered; at most the route's steps."""

    retry_delay_ms: int = Field(default=5000, ge=1, le=86_400_000)
    """Milliseconds before the first retry; doubled with each step."""

    prefetch: int = Field(default=100, ge=1, le=10_000)
    """Deliveries in flight at once. Measured: a backlog takes 2.5 times as long with 20 as with
    100, and 1.6 times with 50; more than 100 gains nothing."""

    crash_marker_dir: Path | None = None
    """Folder for crash markers of messages that may kill their process; must outlive the process.
    Without one, a folder below the system's for temporary files."""

    def unused(self) -> dict[str, str]:
        """Fields that another setting makes meaningless, and why."""
        if self.max_retry_attempts:
            return super().unused()
        return {**super().unused(), "retry_delay_ms": "MAX_RETRY_ATTEMPTS is 0, so nothing waits"}

    def retry_delays(self, factor: int = 2) -> list[timedelta]:
        """The waits before each retry, first one first."""
        first = timedelta(milliseconds=self.retry_delay_ms)
        return [first * factor**step for step in range(self.max_retry_attempts)]


class DatabaseServiceSettings(Section):
    """Settings of a service that calls database_service."""

    database_service_url: AnyHttpUrl = AnyHttpUrl("http://127.0.0.1:8083")
    """Base URL of database_service."""


def example(settings: type[BaseSettings]) -> str:
    """The text of ``.env.example``: every variable with its meaning and default."""
    lines = []
    for name, field in settings.model_fields.items():
        lines += [f"# {line}" for line in (field.description or "").splitlines()]
        required = field.default is PydanticUndefined
        default = "" if required or field.default is None else field.default
        lines += [f"{'' if required else '#'}{name.upper()}={_plain(default)}", ""]
    return "\n".join(lines).rstrip() + "\n"


def _plain(value: object) -> str:
    """The value as it stands in a ``.env``; in quotes where it would be misread."""
    text = str(value).lower() if isinstance(value, bool) else str(value)
    return f"'{text}'" if re.search(r"""["'#\s]""", text) else text


if __name__ == "__main__":
    sys.stdout.write(example(import_module(sys.argv[1]).Settings))
