"""Runs a coroutine until it is done, or until this process is told to stop."""

import asyncio
import signal
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from tools.launcher.running import interrupt_on_signals

T = TypeVar("T")

THREADS = 24
"""For calls that block: questions whether an instance is ready, above all."""


def run_interruptibly(work: Coroutine[Any, Any, T]) -> T:
    """Run it in an event loop of its own; a signal cancels it, and it ends what it started."""
    try:
        return asyncio.run(_cancelled_by_signals(work))
    finally:
        interrupt_on_signals()  # the loop has put the system's own handlers in place


async def _cancelled_by_signals(work: Coroutine[Any, Any, T]) -> T:
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(THREADS, thread_name_prefix="chaos"))
    task = loop.create_task(work)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, task.cancel)
    return await task
