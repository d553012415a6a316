"""The options of ``./userstream chaos``."""

import argparse

from common.failpoints import WINDOWS

REGISTRATIONS = 5_000
MINUTES = 6.0
"""Of one seed's load; starting, draining and counting take about two more."""

TIMES = 20
"""Crashes at each window."""

LEAST_REGISTRATIONS = 50
LEAST_MINUTES = 1.0
MOST_MINUTES = 240.0


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Declare the options."""
    command.add_argument(
        "--seed",
        type=int,
        default=1,
        metavar="N",
        help="what decides when which fault strikes whom (default: 1)",
    )
    command.add_argument(
        "--seeds",
        type=_whole,
        default=1,
        metavar="N",
        help="run so many seeds, one after the other, each with data of its own (default: 1)",
    )
    command.add_argument(
        "--registrations",
        type=_registrations,
        default=REGISTRATIONS,
        metavar="N",
        help=f"per seed, at a steady rate (default: {REGISTRATIONS})",
    )
    command.add_argument(
        "--minutes",
        type=_minutes,
        default=MINUTES,
        metavar="N",
        help=f"of load and faults per seed (default: {MINUTES:g})",
    )
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.add_argument(
        "--windows",
        action="store_true",
        help="instead: end a process at each point of the code where a crash matters",
    )
    command.add_argument(
        "--times",
        type=_whole,
        default=TIMES,
        metavar="N",
        help=f"with --windows: how often at each (default: {TIMES})",
    )
    command.add_argument(
        "--only",
        nargs="+",
        choices=tuple(WINDOWS),
        metavar="WINDOW",
        help="with --windows: only at these, such as w13",
    )


def _whole(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a whole number from 1 up")
    return int(text)


def _registrations(text: str) -> int:
    if (number := _whole(text)) < LEAST_REGISTRATIONS:
        raise argparse.ArgumentTypeError(f"at least {LEAST_REGISTRATIONS}; fewer show nothing")
    return number


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = 0.0
    if not LEAST_MINUTES <= minutes <= MOST_MINUTES:
        raise argparse.ArgumentTypeError(
            f"{text} is not a number of minutes from {LEAST_MINUTES:g} to {MOST_MINUTES:g}"
        )
    return minutes
