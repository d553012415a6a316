"""Run the measurements: ``./userstream bench``."""

import json
import os
import sys
from argparse import Namespace
from typing import Any

import aio_pika
import asyncpg

from tools.bench.arguments import WORKLOADS, sizes
from tools.bench.comparison import Comparison
from tools.bench.goals import evaluate
from tools.bench.harness import Harness, harness, settings_to_measure
from tools.bench.machine import describe_machine, describe_versions
from tools.bench.page import PAGE, results, write
from tools.bench.table import figures_table, goals_table, plain, usage_table
from tools.bench.workloads import AGAINST_PEER, measure
from tools.launcher.arguments import parser
from tools.launcher.errors import LauncherError
from tools.launcher.running import interrupt_on_signals
from tools.launcher.terminal import STDERR

OK, FAILED, USAGE = 0, 1, 2

BUSY = 0.3
"""Share of the cores that others may use before a person is told."""

UNREACHABLE = (
    OSError,
    aio_pika.exceptions.AMQPError,
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
)
"""What is raised when a service, the broker or the database went away."""


def main(argv: list[str]) -> int:
    """Measure, show the results, and return the exit code; being slow is no failure."""
    given = parser().parse_args(argv)
    if given.write and (given.quick or given.only != WORKLOADS):
        STDERR.fail("--write takes a whole run: leave out --quick and --only.")
        return USAGE
    interrupt_on_signals()
    machine = describe_machine()
    if float(machine["load_before"]) > BUSY * int(machine["cores"]):
        STDERR.say(
            f"Other programs are busy on this machine (load {machine['load_before']}): expect"
            " wide ranges, of latencies above all."
        )
    try:
        with harness(
            offset=given.port_offset,
            data=given.data,
            with_peer=bool(AGAINST_PEER & set(given.only)),
            terminal=STDERR,
        ) as running:
            comparisons = _measured(running, given)
            about = {
                "machine": machine,
                "versions": describe_versions(running),
                "settings": settings_to_measure(os.environ),
            }
            show(about, comparisons, as_json=given.json)
            _require_complete(comparisons)
        if given.write:
            found = list(comparisons.values())
            write(results(about, found, evaluate(comparisons)))
            STDERR.say(f"The results are in {PAGE}")
    except LauncherError as error:
        STDERR.fail(str(error))
        return FAILED
    except KeyboardInterrupt:
        return FAILED
    return OK


def show(
    about: dict[str, dict[str, str]], comparisons: dict[str, Comparison], *, as_json: bool
) -> None:
    """Print everything on stdout."""
    evaluations = evaluate(comparisons)
    if as_json:
        document: dict[str, Any] = {
            **about,
            "complete": not any(found.problems for found in comparisons.values()),
            "goals": [evaluation.as_json() for evaluation in evaluations],
            "workloads": {name: found.as_json() for name, found in comparisons.items()},
        }
        print(json.dumps(document))
        return
    for name, found in comparisons.items():
        print(f"\n{name}: {found.how}\n", plain(figures_table(found)), sep="\n")
        if usage := usage_table(found):
            print("\n", plain(usage), sep="")
    print("\nGoals", plain(goals_table(evaluations)), sep="\n\n")


def _measured(running: Harness, given: Namespace) -> dict[str, Comparison]:
    try:
        return measure(running, given.only, sizes(given), STDERR.say)
    except UNREACHABLE as error:
        crashes = [crash for system in running.systems for crash in system.crashes()]
        raise LauncherError(
            "Something that was to be measured cannot be reached any more, so there are no"
            f" results: {error!r}\n" + "\n".join(f"  {crash}" for crash in crashes)
        ) from error


def _require_complete(comparisons: dict[str, Comparison]) -> None:
    problems = [problem for found in comparisons.values() for problem in found.problems]
    if problems:
        raise LauncherError(
            "Not everything that was accepted arrived, so the figures do not count:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
