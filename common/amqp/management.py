"""Asks RabbitMQ's management API, as a user that may only look."""

import json
from collections.abc import Iterable
from typing import Any

import aiohttp
from pydantic import AnyHttpUrl
from yarl import URL

from common.contracts import topology
from common.errors import BrokerUnavailableError

REQUEST_SECONDS = 2.0
"""Longest wait for all that is asked at once."""


OK = 200


class ManagementApi:
    """The management API behind ``QUEUE_MANAGEMENT_URL``."""

    def __init__(self, url: AnyHttpUrl | str) -> None:
        parsed = URL(str(url))
        self._url = parsed.with_user(None)
        login = aiohttp.encode_basic_auth(parsed.user or "", parsed.password or "")
        self._headers = {"Authorization": login}

    async def select(self, *kinds: str) -> list[list[dict[str, Any]]]:
        """All rows of each kind (``queues``, ``bindings``) in the project's vhost.

        Figures of queues are up to 5 s old.

        Raises:
            BrokerUnavailableError: It does not answer, or not to this user.
        """
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        try:
            async with aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session:
                return [await self._rows(session, kind) for kind in kinds]
        except (aiohttp.ClientError, OSError, json.JSONDecodeError) as error:
            raise BrokerUnavailableError("The broker's management API does not answer.") from error

    async def select_alarms(self) -> list[str]:
        """Which resource each node is short of, so that the broker takes no messages: in words.

        Empty also where this user may not see nodes.

        Raises:
            BrokerUnavailableError: It does not answer.
        """
        timeout = aiohttp.ClientTimeout(total=REQUEST_SECONDS)
        url = URL(f"{str(self._url).rstrip('/')}/api/nodes")
        try:
            async with (
                aiohttp.ClientSession(headers=self._headers, timeout=timeout) as session,
                session.get(url) as response,
            ):
                nodes = await response.json() if response.status == OK else []
        except (aiohttp.ClientError, OSError, json.JSONDecodeError) as error:
            raise BrokerUnavailableError("The broker's management API does not answer.") from error
        return [
            f"{node['name']} is short of {resource}"
            for node in nodes
            for alarm, resource in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space"))
            if node.get(alarm)
        ]

    async def _rows(self, session: aiohttp.ClientSession, kind: str) -> list[dict[str, Any]]:
        vhost = topology.VHOST.replace("/", "%2F")
        url = URL(f"{str(self._url).rstrip('/')}/api/{kind}/{vhost}", encoded=True)
        async with session.get(url) as response:
            response.raise_for_status()
            rows: list[dict[str, Any]] = await response.json()
            return rows


def figures(rows: Iterable[dict[str, Any]], queue: str) -> dict[str, Any]:
    """The row of a queue that has been counted.

    For a broker that counts for administrators alone: passive declarations are refused by
    RabbitMQ 4.2.6 and 4.3.0 to whoever may not configure a queue.

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
