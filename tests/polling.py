"""Waiting for what will come to pass, without sleeping longer than it takes."""

import asyncio
import time
from collections.abc import Callable

PATIENCE_SECONDS = 30.0
"""Long enough for any machine; only a failing test waits it out."""


async def until(condition: Callable[[], object], what: str = "") -> None:
    """Poll until ``condition`` is true; the failure names the last value seen."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what or 'it'} did not come to pass: {value!r}"
        await asyncio.sleep(0.002)
