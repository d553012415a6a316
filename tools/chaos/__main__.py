"""Run the fault-injection tests: ``./userstream chaos``."""

import asyncio
import json
import logging
import sys
import warnings
from argparse import Namespace
from datetime import UTC, datetime

from tools.bench.machine import describe_machine
from tools.chaos import windows
from tools.chaos.report import Report
from tools.chaos.run import BrokenPromiseError, run_seed
from tools.launcher.arguments import parser
from tools.launcher.errors import LauncherError
from tools.launcher.running import interrupt_on_signals
from tools.launcher.terminal import STDERR

OK, FAILED = 0, 1


def main(argv: list[str]) -> int:
    """Run all seeds, print what was found, and return 0 if every promise was kept."""
    given = parser().parse_args(argv)
    # The driver's own AMQP client complains of each connection that a fault costs it.
    logging.disable(logging.CRITICAL)
    warnings.filterwarnings("ignore", "coroutine 'Connection.close' was never awaited")
    interrupt_on_signals()
    if given.windows:
        return windows.main(given)
    try:
        report = _run(given)
    except LauncherError as error:
        STDERR.fail(str(error))
        return FAILED
    except (asyncio.CancelledError, KeyboardInterrupt):
        STDERR.say("\nStopped; everything that was started is ended.")
        return FAILED
    print(json.dumps(report.as_json()) if given.json else "\n".join(report.lines()))
    if not report.holds:
        STDERR.fail("A promise was broken; see above.")
    return OK if report.holds else FAILED


def _run(given: Namespace) -> Report:
    report = Report(describe_machine(), f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC")
    for seed in range(given.seed, given.seed + given.seeds):
        try:
            run = run_seed(given, seed, STDERR)
        except BrokenPromiseError as error:
            run = error.run
        report.runs.append(run)
        if given.seeds > 1 and not given.json:
            STDERR.say("\n".join(Report(report.machine, report.date, [run]).lines()[:3]))
    return report


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
