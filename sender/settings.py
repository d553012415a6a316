"""The settings of the sender."""

from ipaddress import ip_address
from typing import Self

from pydantic import (
    Field,
    FilePath,
    SecretStr,
    ValidationInfo,
    field_validator,
    model_validator,
)

from common.contracts.rules import EmailAddress, Text
from common.settings import ConsumerSettings, DatabaseServiceSettings, ServiceSettings
from sender.smtp.handshake import Security

RETRY_FACTOR = 6
"""From step to step: 10 s, 1 min, 6 min, 36 min, 3.6 h, 21.6 h. Greylisting takes minutes."""

YES, NO = ("true", "1", "yes", "on"), ("false", "0", "no", "off")

STARTTLS_PORTS = (25, 587)
PLAIN_PORTS = (25, 1025)
"""Where servers usually begin in the clear, and where they usually know nothing else."""


class Settings(ConsumerSettings, DatabaseServiceSettings, ServiceSettings):
    """The sender's settings."""

    port: int = Field(default=8082, ge=0, le=65535)
    """TCP port to listen on."""

    max_retry_attempts: int = Field(default=6, ge=0)
    """Retries of a deferred mail before it is dead-lettered; at most the route's steps."""

    retry_delay_ms: int = Field(default=10_000, ge=1, le=86_400_000)
    """Milliseconds before the first retry; six times as long with each step."""

    smtp_host: str = Field(min_length=1)
    """The mail server; an IPv6 address with or without brackets."""

    smtp_port: int = Field(default=587, ge=1, le=65535)
    """587 for STARTTLS, usually 465 for TLS, 25 or 1025 for neither."""

    smtp_secure: Security = Security.STARTTLS
    """starttls (required, never just tried), tls (from the first byte) or none. As other programs
    have it: true is tls, on port 25 or 587 starttls; false is starttls, and on port 25 or 1025 and
    on this machine none."""

    smtp_ca_file: FilePath | None = None
    """PEM file with the authority to trust instead of the system's; for a private one."""

    smtp_user: str = ""
    """User of the login; empty if the server needs none."""

    smtp_password: SecretStr = SecretStr("")
    """Password of the user; or its file in SMTP_PASSWORD_FILE."""

    smtp_hello_name: str = Field(default="", pattern=r"^[A-Za-z0-9.:\[\]-]*$")
    """Our name in EHLO, for servers that insist on one; empty for our address."""

    smtp_connections: int = Field(default=4, ge=1, le=100)
    """Connections that carry mails at once; many servers allow 10 to 20. One that has waited three
    seconds for an answer no longer counts, up to nine times as many. Measured with a server on the
    same machine: 2 to 8 are alike, 1 and 16 a fifth slower."""

    from_email: EmailAddress
    """Address the mails come from. People reply to it: choose a mailbox that is read."""

    from_name: Text = Field(default="UserStream", min_length=1, max_length=100)
    """Name the mails come from; the mails speak of the product by it."""

    @field_validator("smtp_host")
    @classmethod
    def _without_brackets(cls, host: str) -> str:
        is_literal = host.startswith("[") and host.endswith("]") and ":" in host
        return host[1:-1] if is_literal else host

    @field_validator("smtp_secure", mode="before")
    @classmethod
    def _yes_or_no(cls, value: object, info: ValidationInfo) -> object:
        word = str(value).strip().lower()
        host, port = info.data.get("smtp_host", ""), info.data.get("smtp_port", 0)
        if word in YES:
            return Security.STARTTLS if port in STARTTLS_PORTS else Security.TLS
        if word in NO:
            is_plain = port in PLAIN_PORTS or _is_here(host)
            return Security.NONE if is_plain else Security.STARTTLS
        return word

    def unused(self) -> dict[str, str]:
        """Fields that another setting makes meaningless, and why."""
        found = super().unused()
        if self.smtp_password.get_secret_value() and not self.smtp_user:
            found |= {"smtp_password": "SMTP_USER is not given, so there is no login"}
        if self.smtp_ca_file is not None and self.smtp_secure is Security.NONE:
            found["smtp_ca_file"] = "SMTP_SECURE is none, so no certificate is checked"
        return found

    @model_validator(mode="after")
    def _never_show_the_password(self) -> Self:
        if self.smtp_user and self.smtp_secure is Security.NONE and not _is_here(self.smtp_host):
            raise ValueError(
                "SMTP_SECURE=none would send SMTP_PASSWORD in the clear; "
                "use starttls or tls, or unset SMTP_USER"
            )
        return self

    @model_validator(mode="after")
    def _plain_from_address(self) -> Self:
        if not self.from_email.rpartition("@")[0].isascii():
            raise ValueError(
                "FROM_EMAIL needs ASCII before the @: not every server takes anything else"
            )
        return self


def _is_here(host: str) -> bool:
    """Whether it is on this machine, so that the network is not involved."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"
