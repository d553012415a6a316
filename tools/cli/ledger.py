"""``./userstream ledger``: what became of every registration, and bringing back what is lost."""

import json
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from typing import Any

from tools.cli.api_client import add_url, ask, invocation_of
from tools.cli.person import person
from tools.launcher.invocation import Invocation
from tools.launcher.terminal import STDERR, Terminal

SERVICE = "queue_receiver"

STORED_WITHIN = 30.0
"""Seconds to wait until what was sent to the work queue again is stored."""

POLL_SECONDS = 0.5

Row = tuple[str, int, str]
"""Name, figure, remark."""


def add_arguments(command: ArgumentParser, _options: ArgumentParser) -> None:
    """The options of ``ledger``."""
    add_url(command)
    command.add_argument("--json", action="store_true", help="one JSON object on stdout")
    command.add_argument(
        "--repair",
        action="store_true",
        help="send what is lost from the stream to the work queue; safe to repeat",
    )
    command.add_argument(
        "--mail",
        choices=("auto", "all", "none"),
        default="auto",
        help="with --repair, who of those brought back is mailed: auto leaves out those that had"
        " been read before the database was restored from a backup, since they were mailed then",
    )
    command.add_argument(
        "--acknowledge",
        metavar="REASON",
        help="acknowledge what cannot be accounted for; who and why is kept",
    )


def run(given: Namespace, terminal: Terminal) -> bool:
    """Show the ledger, after a repair if one is wanted.

    False if something is lost or cannot be accounted for, or if that is not known.

    Raises:
        LauncherError: It cannot be read, in the service's words.
    """
    repair = _repair(given) if given.repair else None
    if given.acknowledge is not None:
        _acknowledge(given, STDERR)
    ledger = _read(given)
    if given.json:
        terminal.say(json.dumps(ledger if repair is None else {**ledger, "repair": repair}))
    else:
        for line in [*(repair_lines(repair) if repair else []), *ledger_lines(ledger)]:
            terminal.say(line)
        _conclude(ledger, terminal, invocation_of(given))
    return not ledger["lost"] and not ledger["incidents"] and bool(ledger["caughtUp"])


def _acknowledge(given: Namespace, terminal: Terminal) -> None:
    wish = {"reason": given.acknowledge, "acknowledgedBy": person()}
    done = ask(given, SERVICE, "POST", "/api/ledger/acknowledgements", wish)
    for incident in done["acknowledged"]:
        terminal.say(f"  ✓ Acknowledged: {incident['kind']}, noticed {_time(incident)}")
    if not done["acknowledged"]:
        terminal.say("  There was nothing to acknowledge.")


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
    query = "" if given.mail == "auto" else f"?mail={given.mail}"
    repair: dict[str, Any] = ask(given, SERVICE, "POST", f"/api/ledger/repairs{query}")
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
    if unmailed := repair["withoutMail"]:
        lines.append(
            f"Of those {unmailed:,} without a mail: they had been read, and so were mailed, before"
            " the database was restored. `./userstream mails resend ID --force` sends one all the"
            " same."
        )
    if forgotten := repair["notInStream"]:
        lines.append("The stream no longer has these, so they cannot be brought back from it:")
        lines += [f"  {registration_id}" for registration_id in forgotten]
    return lines


def ledger_lines(ledger: Mapping[str, Any]) -> list[str]:
    """The ledger as text."""
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
    if vanished := totals["vanished"]:
        yield "  vanished", vanished, "of these two: their rows are no longer there"
    yield "  rejected", ledger["rejected"], _reasons(ledger["rejectedByCode"])
    if unpromised := totals["unpromised"]:
        yield "  unpromised", unpromised, "answered with 503 and not stored"
    yield "  not stored", totals["missing"], ""
    in_queues = f"ready {place['ready']:,}, in delivery {held}, to be retried {place['retrying']:,}"
    yield "    in flight", ledger["inFlight"], in_queues
    yield "    dead letters", ledger["deadLettered"], _reasons(ledger["deadLetteredByCode"])
    yield "    lost", ledger["lost"], f"for more than {ledger['lostAfterSeconds']:g} s in no queue"


def _reasons(by_code: Mapping[str, int]) -> str:
    return ", ".join(f"{code} {count:,}" for code, count in sorted(by_code.items()))


def _mails(mails: Mapping[str, int]) -> Iterator[Row]:
    yield "  handed over", mails["mailed"], ""
    yield "  suppressed", mails["suppressed"], "the owner of the address was notified before"
    yield "  failed", mails["failed"], "refused for good"
    yield "  bounced", mails["bounced"], ""
    yield "  unsure", mails["unsure"], "the link was lost after the text; sent again"
    yield "  waiting", mails["waiting"], ""


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
            "The work queue is not bound: what is accepted reaches the stream and no receiver."
            f" {invocation.line('check-broker')} shows how to repair it."
        )
    if not ledger["caughtUp"]:
        terminal.fail(
            "The stream cannot be read to its end yet, so what is behind is unknown: is the broker"
            " just starting, or was the stream created anew? Try again in half a minute."
        )
    for incident in ledger["incidents"]:
        terminal.fail(incident["detail"])
    if ledger["incidents"]:
        command = invocation.line("ledger --acknowledge REASON")
        terminal.fail(f"This stays a warning until it is acknowledged: {command}")
    if ledger["lost"]:
        terminal.fail(
            f"{ledger['lost']:,} registrations are lost. {invocation.line('ledger --repair')}"
            " brings back what the stream still has."
        )
    elif ledger["incidents"]:
        terminal.heading("Nothing else is lost, as far as can be proved.")
    elif not ledger["caughtUp"]:
        terminal.heading("Nothing is lost of what was read.")
    else:
        terminal.heading("Nothing is lost.")


def _time(incident: Mapping[str, Any]) -> str:
    return str(incident["noticedAt"])[:19].replace("T", " ")
