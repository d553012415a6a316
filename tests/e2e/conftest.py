"""The whole system, started by the command that people type."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import Stack, running


@pytest.fixture(scope="session")
def stack() -> Iterator[Stack]:
    """A running stack with its own ports and data; stopped at the end."""
    data = Path(f"/var/tmp/userstream-e2e-{os.getpid()}")  # noqa: S108 - also for ``nobody``
    # Rows and queues are compared to the last one; canaries have a stack of their own. And no
    # test waits ten minutes to see who is lost.
    with running(data, CANARY_SECONDS="0", LEDGER_LOST_AFTER_SECONDS="5") as stack:
        yield stack
