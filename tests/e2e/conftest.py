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
    with running(data) as stack:
        yield stack
