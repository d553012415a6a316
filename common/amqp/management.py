"""The client of RabbitMQ's management API; needs nothing but Python."""

import asyncio
import base64
import http.client
import json
import ssl
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar
from urllib.parse import SplitResult, quote, unquote, urlsplit

from common.contracts.topology import VHOST
from common.errors import BrokerUnavailableError

ANSWER_SECONDS = 10.0
"""Longest wait for an answer where no service waits for it."""

SERVICE_SECONDS = 2.0
"""Longest wait of a service, for all that it asks at once."""

PORTS = {"http": 80, "https": 443, "amqp": 15672, "amqps": 15671}
"""Where the management API is, by the scheme of a URL that does not say so."""

REFUSED = (401, 403)

_THREADS = ThreadPoolExecutor(max_workers=2, thread_name_prefix="management")
"""Its own: a management API that hangs must not hold the threads that look up host names."""

Result = TypeVar("Result")


class ManagementApi:
    """The management API behind a URL such as ``QUEUE_MANAGEMENT_URL``.

    An AMQP URL will do where the API listens on its own port of the same host and the user may
    log in there.

    Raises:
        BrokerUnavailableError: The URL is none of a management API.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        port = _port(parts)
        if not parts.hostname or port is None:
            raise BrokerUnavailableError(
                "The URL should look like http://user:password@host:15672 or "
                "amqp://user:password@host."
            )
        self._secure = parts.scheme in ("https", "amqps")
        self._host = parts.hostname
        self._port = port
        self._prefix = parts.path.rstrip("/") if parts.scheme.startswith("http") else ""
        self._user = unquote(parts.username or "guest")
        login = f"{self._user}:{unquote(parts.password or 'guest')}"
        self._login = base64.b64encode(login.encode()).decode()

    # -- blocking ---------------------------------------------------------------------------

    def call(
        self,
        method: str,
        path: str,
        body: object = None,
        *,
        or_none: bool = False,
        seconds: float | None = None,
    ) -> Any:
        """Return the JSON of an answer; None where it is empty.

        Args:
            method: Of HTTP.
            path: Begins with ``/api``.
            body: Sent as JSON.
            or_none: Return None for what does not exist, or what this user may not see.
            seconds: Longest wait for a sign of the server; by default ``ANSWER_SECONDS``.

        Raises:
            BrokerUnavailableError: No answer, or one that says no.
        """
        address = f"{self._host}:{self._port}"
        try:
            status, content = self._exchange(method, path, body, seconds or ANSWER_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            raise BrokerUnavailableError(
                f"No management API answers at {address} ({error}). Is the plugin "
                "rabbitmq_management enabled, and is this its port?"
            ) from error
        if or_none and status in (*REFUSED, http.HTTPStatus.NOT_FOUND):
            return None
        if status in REFUSED:
            raise BrokerUnavailableError(
                f"{address} refuses the user {self._user}: the password is wrong, or the "
                "user has no tag. It takes 'monitoring' to look, 'administrator' to see all."
            )
        try:
            answer = json.loads(content) if content else None
        except ValueError as error:
            raise BrokerUnavailableError(
                f"{address} answered {path} with {status} and no JSON: this is hardly "
                "RabbitMQ's management API."
            ) from error
        if status >= http.HTTPStatus.BAD_REQUEST:
            raise BrokerUnavailableError(f"{address} answered {method} {path}: {status} {answer}")
        return answer

    def alarms(self, *, seconds: float | None = None) -> list[str]:
        """Return, in words, what each node is short of, so that the broker takes no messages.

        Empty also where this user may not see nodes.

        Raises:
            BrokerUnavailableError: It does not answer.
        """
        path = "/api/nodes?columns=name,mem_alarm,disk_free_alarm"
        return [
            f"{node['name']} is short of {resource}"
            for node in self.call("GET", path, or_none=True, seconds=seconds) or []
            for alarm, resource in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space"))
            if node.get(alarm)
        ]

    def _exchange(self, method: str, path: str, body: object, seconds: float) -> tuple[int, bytes]:
        connection = (
            http.client.HTTPSConnection(
                self._host, self._port, timeout=seconds, context=ssl.create_default_context()
            )
            if self._secure
            else http.client.HTTPConnection(self._host, self._port, timeout=seconds)
        )
        headers = {
            "Authorization": f"Basic {self._login}",
            "Content-Type": "application/json",  # without it, definitions are answered with 415
        }
        try:
            content = None if body is None else json.dumps(body)
            connection.request(method, self._prefix + path, content, headers)
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    # -- for services -----------------------------------------------------------------------

    async def select(self, *kinds: str) -> list[list[dict[str, Any]]]:
        """Return all rows of each kind (``queues``, ``bindings``) in the project's vhost.

        Figures of queues are up to 5 s old.

        Raises:
            BrokerUnavailableError: It does not answer, or not to this user.
        """
        paths = [f"/api/{kind}/{quote(VHOST, safe='')}" for kind in kinds]
        return await _in_thread(
            lambda: [self.call("GET", path, seconds=SERVICE_SECONDS) for path in paths]
        )

    async def select_alarms(self) -> list[str]:
        """Return what ``alarms`` does."""
        return await _in_thread(lambda: self.alarms(seconds=SERVICE_SECONDS))


async def _in_thread(work: Callable[[], Result]) -> Result:
    try:
        async with asyncio.timeout(SERVICE_SECONDS):
            return await asyncio.get_running_loop().run_in_executor(_THREADS, work)
    except TimeoutError as error:
        raise BrokerUnavailableError("The broker's management API does not answer.") from error


def _port(parts: SplitResult) -> int | None:
    """The port of the management API; None where the URL is none of ours."""
    default = PORTS.get(parts.scheme)
    try:
        port = parts.port
    except ValueError:
        return None
    # The port of an AMQP URL is the broker's own, where no HTTP is spoken.
    return default if default is None or parts.scheme.startswith("amqp") else port or default


def figures(rows: Iterable[dict[str, Any]], queue: str) -> dict[str, Any]:
    """Return the row of a queue that has been counted.

    For a broker that counts for administrators alone: passive declarations are refused by
    RabbitMQ 4.2.6 and 4.3.0 to users that may not configure a queue.

    Args:
        rows: Of ``queues``; empty where there is no management API.
        queue: Its name.

    Raises:
        BrokerUnavailableError: It is not among them, or has not been counted yet.
    """
    row = next((row for row in rows if row["name"] == queue), None)
    if row is None:
        raise BrokerUnavailableError(
            f"The broker does not let this user count {queue}. Its rights are missing"
            " (./userstream check-broker), or it is RabbitMQ 4.2.6 or 4.3.0, which count for"
            " administrators alone: set QUEUE_MANAGEMENT_URL, or update it. Nothing has changed."
        )
    if "messages_ready" not in row:
        raise BrokerUnavailableError(
            f"RabbitMQ has not counted {queue} yet; it does some seconds after its start."
        )
    return row
