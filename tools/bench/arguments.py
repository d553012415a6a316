"""The options of ``./userstream bench``."""

import argparse
from collections.abc import Callable
from dataclasses import dataclass

WORKLOADS = ("steady", "burst", "accept", "scale", "backlog", "report", "paging")
"""As they are shown; the last two need a table of their own making, and run first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    rounds: int
    count: int
    """Registrations of one burst, and posts of one run of ``accept``."""
    seconds: float
    """Length of one run at a steady rate."""
    backlog: int
    """Messages that wait before the backlog is let go."""
    users: int
    """Rows of the table for ``report`` and ``paging``."""


FULL = Sizes(rounds=5, count=5_000, seconds=20, backlog=100_000, users=1_000_000)
QUICK = Sizes(rounds=2, count=5_000, seconds=8, backlog=10_000, users=100_000)
"""About three minutes on two cores."""


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the options. Those without help are for tests, which measure nothing."""
    command.add_argument("--quick", action="store_true", help="smaller and fewer, in minutes")
    command.add_argument(
        "--rounds", type=_at_least(1), metavar="N", help="how often each is measured (5; quick: 2)"
    )
    command.add_argument(
        "--only",
        type=_workloads,
        default=WORKLOADS,
        metavar="WORKLOAD,…",
        help=f"some of {', '.join(WORKLOADS)}",
    )
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.add_argument(
        "--write",
        action="store_true",
        help="put the results of a whole run into docs/performance.md",
    )
    hidden = {"count": 10, "backlog": 10, "users": 200}
    for name, least in hidden.items():
        command.add_argument(f"--{name}", type=_at_least(least), help=argparse.SUPPRESS)
    command.add_argument("--seconds", type=float, help=argparse.SUPPRESS)


def sizes(given: argparse.Namespace) -> Sizes:
    """What was asked for: full or quick, changed by single options."""
    usual = QUICK if given.quick else FULL
    return Sizes(
        rounds=given.rounds or usual.rounds,
        count=given.count or usual.count,
        seconds=given.seconds or usual.seconds,
        backlog=given.backlog or usual.backlog,
        users=given.users or usual.users,
    )


def _workloads(text: str) -> tuple[str, ...]:
    named = text.split(",")
    if unknown := [name for name in named if name not in WORKLOADS]:
        raise argparse.ArgumentTypeError(
            f"there is no workload {', '.join(unknown)}; there are {', '.join(WORKLOADS)}"
        )
    return tuple(name for name in WORKLOADS if name in named)


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is not a whole number from {least} up")
        return int(text)

    return number
