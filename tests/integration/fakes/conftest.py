"""What the fakes are compared with; started only for the cases of the real part."""

from collections.abc import AsyncIterator

import pytest
from aiohttp.test_utils import TestServer

from common.database_client.client import DatabaseClient
from tests.integration.sender.stack import database_service, ready


@pytest.fixture
async def database_client(database_dsn: str) -> AsyncIterator[DatabaseClient]:
    """A client of the real database_service, on a database that is empty."""
    async with TestServer(database_service(database_dsn)) as server:
        url = str(server.make_url("")).rstrip("/")
        await ready(url)
        async with DatabaseClient.open(url) as client:
            yield client
