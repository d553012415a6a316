"""Runs things at the same time that do not need each other."""

import threading
from collections.abc import Callable
from typing import Any

from tools.launcher.processes import interrupt_brief_runs


def side_by_side(
    *tasks: Callable[[], Any], give_up: Callable[[], None] = lambda: None
) -> list[Any]:
    """Run the tasks at the same time, in threads; what each returned, in their order.

    When one fails, or a signal interrupts, ``give_up`` is called, the programs that the others
    wait for are ended, and all tasks have ended before this raises.

    Raises:
        BaseException: The first failure of any of them.
    """
    results: list[Any] = [None] * len(tasks)
    failures: list[BaseException] = []

    def run(index: int, task: Callable[[], Any]) -> None:
        try:
            results[index] = task()
        except BaseException as error:  # noqa: BLE001 - raised again by who waits
            failures.append(error)

    threads = [
        threading.Thread(target=run, args=(index, task), daemon=True)
        for index, task in enumerate(tasks)
    ]
    for thread in threads:
        thread.start()
    try:
        while not failures and any(thread.is_alive() for thread in threads):
            for thread in threads:
                thread.join(0.05)
    except BaseException as error:  # noqa: BLE001 - raised again below
        failures.append(error)
    if failures:
        give_up()
        while any(thread.is_alive() for thread in threads):
            interrupt_brief_runs()
            for thread in threads:
                thread.join(0.05)
        raise failures[0]
    return results
