"""A broker with empty queues, and database_service, for receivers under test."""

from collections.abc import AsyncIterator

import pytest

from common.contracts.topology import USER_REGISTRATION, definitions
from tests.amqp import eventually
from tests.backends import TestBroker
from tests.integration.database_service.builders import serving, settings_for
from tests.integration.queue_receiver.receivers import is_ready


@pytest.fixture
def fresh_broker(empty_broker: TestBroker) -> TestBroker:
    """The broker with empty queues, an empty stream and every binding."""
    empty_broker.management("DELETE", f"/api/queues/%2F/{USER_REGISTRATION.log}")
    empty_broker.management("POST", "/api/definitions", definitions())
    return empty_broker


@pytest.fixture
async def database_url(database_dsn: str) -> AsyncIterator[str]:
    """database_service, ready."""
    async with serving(settings_for(database_dsn)) as client:
        await eventually(lambda: is_ready(client), "database_service being ready")
        yield str(client._base_url)
