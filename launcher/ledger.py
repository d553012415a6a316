"""``./userstream ledger``: what became of every registration, and bringing back what is lost."""

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from launcher.asking import add_url, ask, invocation_of
from launcher.invocation import Invocation
from launcher.terminal import STDERR, Terminal

SERVICE = "queue_receiver"

STORED_WITHIN = 30.0
"""Seconds to wait until what was sent to the work queue again is stored."""

POLL_SECONDS = 0.5

Row = tuple[str, int, str]
"""Name, figure, and what to know about it."""


def add_arguments(command: ArgumentParser, _options: ArgumentParser) -> None:
    """What stands behind ``ledger``."""
    add_url(command)
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.add_argument(
        "--repair",
        action="store_true",
        help="send what is lost from the stream to the work queue; safe to repeat",
    )


def run(given: Namespace, terminal: Terminal) -> bool:
    """Show the ledger, after a repair if one is wanted; False if something is lost.

    Raises:
        LauncherError: It can not be read, in the service's words.
    """
    repair = _repair(given) if given.repair else None
    ledger = _read(given)
    if given.json:
        terminal.say(json.dumps(ledger if repair is None else {**ledger, "repair": repair}))
    else:
        for line in [*(repair_lines(repair) if repair else []), *ledger_lines(ledger)]:
            terminal.say(line)
        _conclude(ledger, terminal, invocation_of(given))
    return not ledger["lost"]


def _read(given: Namespace) -> dict[str, Any]:
    """The ledger up to the end of the stream, or as far as it can be read."""
    before = -1
    while True:
        ledger: dict[str, Any] = ask(given, SERVICE, "GET", "/api/ledger")
        if ledger["caughtUp"] or ledger["readUpTo"] == before:
            return ledger
        before = ledger["readUpTo"]
        STDERR.say(f"  … read up to {before:,}")


def _repair(given: Namespace) -> dict[str, Any]:
    """Repair, and wait until what was sent again is stored."""
    _read(given)
    repair: dict[str, Any] = ask(given, SERVICE, "POST", "/api/ledger/repairs")
    if repair["republished"]:
        with STDERR.step(f"Sent {repair['republished']:,} registrations to the work queue"):
            deadline = time.monotonic() + STORED_WITHIN
            forgotten = len(repair["notInStream"])
            while _read(given)["lost"] > forgotten and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
    return repair


def repair_lines(repair: Mapping[str, Any]) -> list[str]:
    """What a repair did."""
    if not repair["lost"]:
        return ["There was nothing to repair."]
    lines = [f"Sent again: {repair['republished']:,} of {repair['lost']:,} that were lost."]
    if forgotten := repair["notInStream"]:
        lines.append("The stream has forgotten these, so they can not be brought back from here:")
        lines += [f"  {registration_id}" for registration_id in forgotten]
    return lines


def ledger_lines(ledger: Mapping[str, Any]) -> list[str]:
    """The ledger as a person reads it."""
    lines = ["", f"What was accepted, and what became of it ({ledger['asOf'][:19]} UTC):", ""]
    lines += _table(_registrations(ledger))
    lines += ["", "Mails of those stored:", ""]
    lines += _table(_mails(ledger["totals"]["mails"]))
    lines += [""]
    if ledger["lostRegistrations"]:
        lines += _table(
            (f"  {lost['registrationId']}", lost["ageSeconds"], "seconds ago")
            for lost in ledger["lostRegistrations"]
        )
        if (more := ledger["lost"] - len(ledger["lostRegistrations"])) > 0:
            lines.append(f"    and {more:,} more")
        lines += [""]
    return lines


def _registrations(ledger: Mapping[str, Any]) -> Iterator[Row]:
    totals, place = ledger["totals"], ledger["inFlightByPlace"]
    repeated = f"published again: {totals['repeated']:,}" if totals["repeated"] else ""
    held = "?" if place["unacknowledged"] is None else f"{place['unacknowledged']:,}"
    yield "accepted", totals["accepted"], repeated
    yield "  stored", totals["stored"], ""
    yield "  duplicates", totals["duplicates"], "of addresses that were known"
    yield "  rejected", ledger["rejected"], _reasons(ledger["rejectedByCode"])
    yield "  not stored", totals["missing"], ""
    in_queues = f"ready {place['ready']:,}, in hand {held}, to be retried {place['retrying']:,}"
    yield "    in flight", ledger["inFlight"], in_queues
    yield "    in hospital", ledger["inHospital"], _reasons(ledger["inHospitalByCode"])
    yield "    lost", ledger["lost"], f"for more than {ledger['lostAfterSeconds']:g} s in no queue"


def _reasons(by_code: Mapping[str, int]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in sorted(by_code.items()))


def _mails(mails: Mapping[str, int]) -> Iterator[Row]:
    yield "  handed over", mails["mailed"], ""
    yield "  suppressed", mails["suppressed"], "the owner of the address was told before"
    yield "  failed", mails["failed"], "refused for good"
    yield "  bounced", mails["bounced"], ""
    yield "  unsure", mails["unsure"], "the link was lost after the text; sent again"
    yield "  under way", mails["waiting"], ""


def _table(rows: Iterator[Row] | list[Row]) -> list[str]:
    cells = [(name, f"{number:,}", text) for name, number, text in rows]
    first = max(len(name) for name, _, _ in cells)
    second = max(len(number) for _, number, _ in cells)
    return [
        f"  {name:<{first}}  {number:>{second}}  {text}".rstrip() for name, number, text in cells
    ]


def _conclude(ledger: Mapping[str, Any], terminal: Terminal, invocation: Invocation) -> None:
    if ledger["workBinding"] == "missing":
        terminal.fail(
            "The work queue is not bound: what is accepted reaches the stream and nobody else."
            f" {invocation.line('check-broker')} says how to mend it."
        )
    if not ledger["caughtUp"]:
        terminal.fail("The stream can not be read to its end yet; is the broker just starting?")
    if unread := ledger["totals"]["unread"]:
        terminal.fail(f"The stream dropped {unread:,} messages before they were read.")
    if ledger["lost"]:
        terminal.fail(
            f"{ledger['lost']:,} registrations are lost. {invocation.line('ledger --repair')}"
            " brings back what the stream still has."
        )
    else:
        terminal.heading("Nothing is lost.")
