"""Compares any broker with ``common.contracts.topology``, and says what to do about differences.

``python -m rabbitmq.check http://user:password@host:15672`` asks a management API and changes
nothing; ``./userstream check-broker`` does the same. The readiness of the services looks at a
part of this every few seconds; this looks at all of it, once. See ``common.amqp.topology_check``.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from common.amqp.management import ManagementApi
from common.amqp.topology_check import IMPORT, Difference, Rows, differences, unknown_bindings
from common.contracts.topology import VHOST
from common.errors import BrokerUnavailableError

ALIKE, DIFFERENT, NO_ANSWER = 0, 1, 2
"""Exit codes."""

OLDEST = (3, 10)
"""The first RabbitMQ with at-least-once dead-lettering and message TTL on quorum queues."""

_VHOST = quote(VHOST, safe="")

_PATHS = {
    "exchanges": f"/api/exchanges/{_VHOST}",
    "queues": f"/api/queues/{_VHOST}",
    "bindings": f"/api/bindings/{_VHOST}",
    "policies": f"/api/policies/{_VHOST}",
    "users": "/api/users",
    "permissions": "/api/permissions",
}
"""What is compared, and where the management API has it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a comparison found."""

    broker: str
    """Product and version."""

    compared: list[str]
    """The kinds of things that were looked at."""

    differences: list[Difference]

    notes: list[str] = field(default_factory=list)
    """What could not be looked at, and what is unusual but does no harm."""

    @property
    def alike(self) -> bool:
        """Whether nothing differs."""
        return not self.differences


def check(management: ManagementApi) -> Report:
    """Compare the broker behind a management API with the topology.

    Raises:
        BrokerUnavailableError: It does not answer, or not to this user.
    """
    overview = management.call("GET", "/api/overview")
    version = str(overview["rabbitmq_version"])
    present: dict[str, Rows] = {}
    notes = []
    if VHOST not in {vhost["name"] for vhost in management.call("GET", "/api/vhosts")}:
        remedy = f"rabbitmqctl add_vhost {VHOST}; then import the topology: {IMPORT}"
        lost = [Difference(f"vhost {VHOST} is missing, or hidden from this user", remedy)]
        return Report(broker=f"RabbitMQ {version}", compared=["vhosts"], differences=lost)
    for kind, path in _PATHS.items():
        rows = management.call("GET", path, or_none=True)
        if rows is None:
            notes.append(f"{kind} were not compared: only an administrator may see them")
        else:
            present[kind] = rows
    return Report(
        broker=f"RabbitMQ {version}",
        compared=["vhosts", *present],
        differences=[*_too_old(version), *differences(present)],
        notes=[*notes, *unknown_bindings(present)],
    )


def _too_old(version: str) -> Iterator[Difference]:
    numbers = tuple(int(number) for number in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        yield Difference(
            f"RabbitMQ {version} is too old: its quorum queues drop messages on the way to the "
            "dead letters",
            "Use RabbitMQ 3.10 or later.",
        )


def as_json(report: Report) -> dict[str, object]:
    """The report for programs."""
    return {
        "broker": report.broker,
        "alike": report.alike,
        "compared": report.compared,
        "differences": [{"what": d.what, "remedy": d.remedy} for d in report.differences],
        "notes": report.notes,
    }


def as_text(report: Report) -> str:
    """The report for people; one remedy stands once, below all that it mends."""
    lines = [f"{report.broker}: compared {', '.join(report.compared)}."]
    by_remedy: dict[str, list[str]] = {}
    for difference in report.differences:
        by_remedy.setdefault(difference.remedy, []).append(difference.what)
    for remedy, whats in by_remedy.items():
        lines += [f"  ✗ {what}" for what in whats]
        lines.append(f"    → {remedy}")
    lines += [f"  · {note}" for note in report.notes]
    lines.append(
        "Everything is as common/contracts/topology.py says. rabbitmq.conf cannot be seen from"
        " here."
        if report.alike
        else f"{len(report.differences)} differences. Nothing was changed."
    )
    return "\n".join(lines)


def run(url: str, *, machine_readable: bool) -> int:
    """Check the broker behind ``url``, print the report, and return the exit code."""
    try:
        report = check(ManagementApi(url))
    except BrokerUnavailableError as error:
        sys.stderr.write(f"✗ {error}\n")
        return NO_ANSWER
    text = json.dumps(as_json(report)) if machine_readable else as_text(report)
    sys.stdout.write(f"{text}\n")
    return ALIKE if report.alike else DIFFERENT


def main(arguments: list[str]) -> int:
    """Read the command line and check."""
    parser = argparse.ArgumentParser(prog="rabbitmq.check", description=__doc__)
    parser.add_argument("url", help="http://user:password@host:15672, or amqp://… of the same host")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    given = parser.parse_args(arguments)
    return run(given.url, machine_readable=given.json)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
