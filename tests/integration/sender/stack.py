"""The sender with all it needs: a real broker, database_service, database and mail server."""

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit
from uuid import UUID

import aiohttp
from aiohttp import web
from aiohttp.test_utils import TestServer

from database_service.app import build_app as build_database_service
from database_service.settings import Settings as DatabaseServiceSettings
from sender.app import build_app
from sender.settings import Settings
from tests.amqp import eventually
from tests.backends import TestBroker
from tools.testing.smtp_server import SmtpServer, running_smtp_server


@dataclass(slots=True, kw_only=True)
class Stack:
    """Everything running, and ways to look at it."""

    broker: TestBroker
    smtp: SmtpServer
    http: aiohttp.ClientSession
    database_url: str
    url: str
    """Of the sender."""

    async def post(
        self, body: dict[str, Any], headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, Any]]:
        """Ask for a mail over HTTP; status and answer."""
        url = f"{self.url}/api/notifications/send"
        async with self.http.post(url, json=body, headers=headers) as response:
            return response.status, await response.json()

    async def get(self, path: str) -> tuple[int, dict[str, Any]]:
        """Status and answer."""
        async with self.http.get(f"{self.url}{path}") as response:
            return response.status, await response.json()

    async def status_of(self, notification_id: UUID | str) -> str | None:
        """How a mail stands, None if nobody has taken it up."""
        status, answer = await self.get(f"/api/notifications/{notification_id}")
        return str(answer["status"]) if status == 200 else None

    async def becomes(self, notification_id: UUID | str, wanted: str) -> None:
        """Wait until a mail stands like that."""

        async def stands() -> bool:
            return await self.status_of(notification_id) == wanted

        await eventually(stands, f"the mail being {wanted}")


@asynccontextmanager
async def running_sender(
    broker: TestBroker, database_url: str, smtp: SmtpServer, **changes: Any
) -> AsyncIterator[str]:
    """A sender that is ready; its base URL."""
    settings = Settings.model_validate(
        {
            "port": 0,
            "queue_url": broker.url("sender"),
            "database_service_url": database_url,
            "smtp_host": smtp.host,
            "smtp_port": smtp.port,
            "smtp_secure": "none",
            "from_email": "hello@example.com",
            "retry_delay_ms": 100,
            **changes,
        }
    )
    async with TestServer(build_app(settings)) as server:
        url = str(server.make_url("")).rstrip("/")
        await ready(url)
        yield url


@asynccontextmanager
async def running_stack(broker: TestBroker, dsn: str, **changes: Any) -> AsyncIterator[Stack]:
    """Everything, ready; queues as they are."""
    async with AsyncExitStack() as stack:
        smtp = await stack.enter_async_context(running_smtp_server())
        database = await stack.enter_async_context(TestServer(database_service(dsn)))
        database_url = str(database.make_url("")).rstrip("/")
        await ready(database_url)
        url = await stack.enter_async_context(running_sender(broker, database_url, smtp, **changes))
        http = await stack.enter_async_context(aiohttp.ClientSession())
        yield Stack(broker=broker, smtp=smtp, http=http, database_url=database_url, url=url)


def database_service(dsn: str) -> web.Application:
    """The real one, on a database that is empty."""
    parts = urlsplit(dsn)
    return build_database_service(
        DatabaseServiceSettings(
            port=0,
            db_host=parts.hostname or "",
            db_port=parts.port or 5432,
            db_name=parts.path.strip("/"),
            db_user=parts.username or "",
            db_password=parts.password or "",
            db_ssl="disable",
        )
    )


async def ready(url: str) -> None:
    """Wait until a service calls itself ready."""
    async with aiohttp.ClientSession() as http:

        async def says_so() -> bool:
            async with http.get(f"{url}/health/ready") as response:
                return response.status == 200

        await eventually(says_so, f"{url} being ready")
