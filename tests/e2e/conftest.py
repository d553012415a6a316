"""The whole system, started by the command that people type."""

import json
import os
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import PROJECT, Stack

START_ATTEMPTS = 5
"""Another program may hold a port of the offset that was picked."""


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A running stack with its own ports and data; stopped at the end."""
    data = Path(f"/var/tmp/userstream-e2e-{os.getpid()}")  # noqa: S108 - also for ``nobody``
    running = _started(data)
    try:
        yield running
    finally:
        running.launcher("down")
        subprocess.run(["rm", "-rf", str(data)], check=True)
    del tmp_path_factory


def _started(data: Path) -> Stack:
    failures = []
    for _ in range(START_ATTEMPTS):
        # Steps of ten: offsets next to each other never share a port.
        offset = random.randrange(300, 1000) * 10  # noqa: S311
        options = ["--port-offset", str(offset), "--data", str(data)]
        up = subprocess.run(
            [str(PROJECT / "userstream"), "up", "--detach", "--json", *options],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if up.returncode == 0:
            return Stack(options=options, **json.loads(up.stdout))
        failures.append(up.stderr[-2000:])
    raise AssertionError("The stack did not start:\n" + "\n".join(failures))
