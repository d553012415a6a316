"""Reads a broker's management API; needs nothing but Python."""

import base64
import http.client
import json
import ssl
from typing import Any
from urllib.parse import SplitResult, unquote, urlsplit

TIMEOUT_SECONDS = 10.0

PORTS = {"http": 15672, "https": 15671, "amqp": 15672, "amqps": 15671}
"""Where the management API listens by default, by the scheme of the URL that was given."""

REFUSED = (401, 403)


class ManagementError(Exception):
    """The management API cannot be asked; says what to look at."""


class Management:
    """The management API behind a URL.

    An AMQP URL will do where the API listens on its own port of the same host and the user may
    log in there.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        port = _port(parts)
        if not parts.hostname or port is None:
            raise ManagementError(
                "The URL should look like http://user:password@host:15672 or "
                "amqp://user:password@host."
            )
        self._secure = parts.scheme in ("https", "amqps")
        self._host = parts.hostname
        self._port = port
        self._prefix = parts.path.rstrip("/") if parts.scheme.startswith("http") else ""
        login = f"{unquote(parts.username or 'guest')}:{unquote(parts.password or 'guest')}"
        self._login = base64.b64encode(login.encode()).decode()
        self._user = unquote(parts.username or "guest")

    @property
    def address(self) -> str:
        """Host and port, without the login."""
        return f"{self._host}:{self._port}"

    def get(self, path: str, *, or_none: bool = False) -> Any:
        """The JSON at ``path``.

        Args:
            path: Begins with ``/api``.
            or_none: Return None for what is not there, or not for this user's eyes.

        Raises:
            ManagementError: No answer, or none that helps.
        """
        try:
            status, content = self._ask(path)
        except (OSError, http.client.HTTPException) as error:
            raise ManagementError(
                f"No management API answers at {self.address} ({error}). Is the plugin "
                "rabbitmq_management enabled, and is this its port?"
            ) from error
        if or_none and status in (*REFUSED, http.HTTPStatus.NOT_FOUND):
            return None
        if status in REFUSED:
            raise ManagementError(
                f"{self.address} refuses the user {self._user}: the password is wrong, or the "
                "user has no tag. It takes 'monitoring' to look, 'administrator' to see all."
            )
        try:
            if status != http.HTTPStatus.OK:
                raise ValueError(status)  # noqa: TRY301 - both mean: not what was asked for
            return json.loads(content)
        except ValueError as error:
            raise ManagementError(
                f"{self.address} answered {path} with {status} and no JSON: this is hardly "
                "RabbitMQ's management API."
            ) from error

    def _ask(self, path: str) -> tuple[int, bytes]:
        connection = (
            http.client.HTTPSConnection(
                self._host,
                self._port,
                timeout=TIMEOUT_SECONDS,
                context=ssl.create_default_context(),
            )
            if self._secure
            else http.client.HTTPConnection(self._host, self._port, timeout=TIMEOUT_SECONDS)
        )
        try:
            connection.request(
                "GET", self._prefix + path, headers={"Authorization": f"Basic {self._login}"}
            )
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()


def _port(parts: SplitResult) -> int | None:
    """The port of the management API; None where the URL is none of ours."""
    default = PORTS.get(parts.scheme)
    try:
        port = parts.port
    except ValueError:
        return None
    # The port of an AMQP URL is the broker's own, where nobody speaks HTTP.
    return default if default is None or parts.scheme.startswith("amqp") else port or default
