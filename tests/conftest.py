"""What every test may ask for: a real broker and a real database.

``broker`` and ``postgres`` start once per session (per xdist worker) and last to its end;
``empty_broker`` and ``database_dsn`` give one test a clean one.
"""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import hypothesis
import pytest

from tests import scale
from tests.backends import TestBroker, TestPostgres, running_broker, running_postgres
from tests.polling import PATIENCE_SECONDS

hypothesis.settings.load_profile(scale.PROFILE)

LONGEST_FIRST = (
    "tests/chaos/test_chaos.py",
    "tests/e2e/test_schemathesis.py",
    "tests/chaos/test_windows.py",
    "tests/e2e/test_launcher.py",
    "tests/e2e/test_outages.py",
    "tests/e2e/test_pages.py",
    "tests/e2e/test_canary.py",
    "tests/e2e/test_api_pages.py",
    "tests/e2e/test_stateful.py",
    "tests/e2e/test_bench.py",
    "tests/e2e/test_dead_letter_pages.py",
    "tests/e2e/test_main_job.py",
    "tests/e2e/test_mailcatcher_page.py",
)
"""Files that take a minute and more. One that began last would leave the other workers idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let workers that share the tests by file begin with the longest ones; units come last."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        place = {name: number for number, name in enumerate(LONGEST_FIRST)}
        items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestBroker]:
    """RabbitMQ with the topology and one user per service; queues as the last test left them."""
    with running_broker(tmp_path_factory.mktemp("rabbitmq"), worker=_worker()) as running:
        yield running


@pytest.fixture
def empty_broker(broker: TestBroker) -> TestBroker:
    """The broker with every queue empty."""
    broker.purge()
    return broker


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestPostgres]:
    """PostgreSQL, without tables."""
    with running_postgres(tmp_path_factory.mktemp("postgres"), worker=_worker()) as running:
        yield running


@pytest.fixture
async def database_dsn(postgres: TestPostgres) -> AsyncIterator[str]:
    """A new, empty database for one test; gone after it."""
    name = f"test_{uuid4().hex[:12]}"
    await _execute(postgres, f"CREATE DATABASE {name}")
    yield postgres.dsn_of(name)
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        # An autovacuum that is at work there cannot be ended by us; it ends soon by itself.
        try:
            await _execute(postgres, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")
        except asyncpg.InsufficientPrivilegeError:
            assert time.monotonic() < deadline, f"{name} is in use"
            await asyncio.sleep(0.1)
        else:
            return


async def _execute(postgres: TestPostgres, statement: str) -> None:
    connection = await asyncpg.connect(postgres.dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def _worker() -> int:
    """Number of this xdist worker, 0 without xdist."""
    return int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
