"""``./userstream mails``: how a mail stands, sending again, and addresses that get none."""

import argparse
import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from tools.cli.api_client import add_url, ask, invocation_of
from tools.cli.person import person
from tools.launcher.errors import LauncherError
from tools.launcher.terminal import STDERR, Terminal

PAGE = 1000
"""Mails that one request sends again."""


def add_arguments(command: ArgumentParser, options: ArgumentParser) -> None:
    """What stands behind ``mails``; ``options`` are those of every command."""
    add_url(command)
    actions = command.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> ArgumentParser:
        added = actions.add_parser(
            name, help=text, description=text, parents=[options], allow_abbrev=False
        )
        added.add_argument("--json", action="store_true", help="one JSON object on stdout")
        add_url(added, default=argparse.SUPPRESS)
        return added

    show = action("show", "show a mail: every attempt, who sent it again, what came back")
    show.add_argument("id", help="what its Message-ID begins with")
    _add_resend(action("resend", "send a mail again, or all of a day that failed"))
    suppressed = action("suppressed", "show which addresses get no more mails, or why one does not")
    suppressed.add_argument("address", nargs="?", help="this one only")
    suppressed.add_argument("--remove", action="store_true", help="let it get mails again")


def _add_resend(resend: ArgumentParser) -> None:
    which = resend.add_mutually_exclusive_group(required=True)
    which.add_argument("id", nargs="?", help="what its Message-ID begins with")
    for status, text in (("failed", "that were refused"), ("unsure", "that may have arrived")):
        which.add_argument(
            f"--{status}",
            dest="status",
            action="store_const",
            const=status,
            help=f"the mails {text} on --day",
        )
    resend.add_argument("--day", help="day in UTC on which they failed, such as 2026-11-21")
    resend.add_argument("--template", help="this template only: welcome, report_ready, …")
    resend.add_argument("--limit", type=_positive, help="so many at most; without it, all")
    resend.add_argument("--dry-run", action="store_true", help="count only, send nothing")
    resend.add_argument(
        "--force", action="store_true", help="also a mail that was sent, or is still being tried"
    )
    resend.add_argument("--reason", default="", help="why; kept with the mails")


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def run(given: Namespace, terminal: Terminal) -> None:
    """Do what was asked and print the result.

    Raises:
        LauncherError: It cannot be done, in the service's words.
    """
    result, lines = _ACTIONS[given.action](given)
    if given.json:
        terminal.say(json.dumps(result))
    else:
        for line in lines:
            terminal.say(line)


def _show(given: Namespace) -> tuple[Any, list[str]]:
    mail = ask(given, "sender", "GET", f"/api/notifications/{quote(given.id, safe='')}")
    return mail, mail_lines(mail)


def mail_lines(mail: Mapping[str, Any]) -> list[str]:
    """A mail as a person reads it."""
    facts = [
        ("mail", mail["notificationId"]),
        ("template", mail["template"]),
        ("to", mail["recipient"]),
        ("status", " ".join(filter(None, (mail["status"], mail.get("reason"))))),
        ("asked for", mail["createdAt"]),
        ("sent", mail.get("sentAt") or "no"),
    ]
    lines = [f"{name:<10} {value}" for name, value in facts]
    for attempt in mail["attempts"]:
        reply = " ".join(str(part) for part in (attempt["replyCode"], attempt["replyText"]) if part)
        lines.append(
            f"{'attempt ' + str(attempt['attempt']):<10} {attempt['at']}  {attempt['status']}"
            f"  {reply}".rstrip()
        )
    for resend in mail["resends"]:
        forced = ", by force" if resend["forced"] else ""
        why = f": {resend['reason']}" if resend["reason"] else ""
        lines.append(
            f"{'again':<10} {resend['askedAt']}  {resend['askedBy'] or 'someone'} had it sent"
            f" again when it was {resend['statusBefore']}{forced}{why}"
        )
    lines += [
        f"{'report':<10} {report['reportedAt']}  {report['action']}  {report['status']}"
        f"  {report['diagnostic']}".rstrip()
        for report in mail["bounces"]
    ]
    return lines


def _resend(given: Namespace) -> tuple[Any, list[str]]:
    return _resend_one(given) if given.id else _resend_many(given)


def _resend_one(given: Namespace) -> tuple[Any, list[str]]:
    if given.day or given.template or given.limit or given.dry_run:
        raise LauncherError(
            "--day, --template, --limit and --dry-run go with --failed or --unsure."
        )
    body = {"askedBy": person(), "reason": given.reason, "force": given.force}
    path = f"/api/notifications/{quote(given.id, safe='')}/resend"
    accepted = ask(given, "sender", "POST", path, body)
    show = invocation_of(given).line(f"mails show {accepted['notificationId']}")
    hint = f"`{show}` tells how it goes."
    return accepted, [f"On its way again; it was {accepted['statusBefore']}. {hint}"]


def _resend_many(given: Namespace) -> tuple[Any, list[str]]:
    """Page by page, so that each answer comes soon and the progress can be seen."""
    if not given.day:
        raise LauncherError("Which day? For example: --day 2026-11-21")
    if given.force:
        raise LauncherError("--force is for one mail only: these are sent again without it.")
    body = {
        "day": given.day,
        "status": given.status,
        "template": given.template,
        "dryRun": given.dry_run,
        "askedBy": person(),
        "reason": given.reason,
    }
    total = dict.fromkeys(("found", "resent", "suppressed", "unwritable", "changed"), 0)
    after = None
    while True:
        size = min(PAGE, given.limit - total["found"]) if given.limit else PAGE
        asked = {**body, "after": after, "limit": size}
        page = ask(given, "sender", "POST", "/api/notifications/resend", asked)
        total = {name: count + page[name] for name, count in total.items()}
        after = page["nextAfter"]
        if after is None or total["found"] == given.limit:
            break
        again = "" if given.dry_run else f", {total['resent']} on their way again"
        STDERR.say(f"  … {total['found']} found{again}")
    result = {"dryRun": given.dry_run, **total, "nextAfter": after}
    return result, count_lines(result)


def count_lines(result: Mapping[str, Any]) -> list[str]:
    """What became of the mails of a day, as a person reads it."""
    told = {
        "resent": "would be sent again" if result["dryRun"] else "on their way again",
        "suppressed": "left alone: their address is on the suppression list",
        "unwritable": "left alone: what they said was not kept",
        "changed": "left alone: they changed meanwhile",
    }
    lines = [f"{result['found']:>7}  found"]
    lines += [f"{result[name]:>7}  {text}" for name, text in told.items() if result[name]]
    if result["nextAfter"] is not None:
        lines.append("There are more: ask again without --limit, or with a higher one.")
    return lines


def _suppressed(given: Namespace) -> tuple[Any, list[str]]:
    if given.address is None:
        if given.remove:
            raise LauncherError(
                "Which address? For example: mails suppressed ada@example.org --remove"
            )
        return _all_suppressed(given)
    path = f"/api/suppressions/{quote(given.address, safe='')}"
    if given.remove:
        ask(given, "database_service", "DELETE", path)
        return {"address": given.address, "removed": True}, ["It gets mails again."]
    entry = ask(given, "database_service", "GET", path)
    return entry, [_entry_line(entry)]


def _all_suppressed(given: Namespace) -> tuple[Any, list[str]]:
    entries: list[dict[str, Any]] = []
    query: dict[str, Any] = {"limit": 500}
    while True:
        path = f"/api/suppressions?{urlencode(query)}"
        page = ask(given, "database_service", "GET", path)
        entries += page["addresses"]
        if page["nextAfter"] is None:
            break
        query["after"] = page["nextAfter"]
    lines = [_entry_line(entry) for entry in entries] or ["Every address gets its mails."]
    return {"addresses": entries}, lines


def _entry_line(entry: Mapping[str, Any]) -> str:
    until = f"until {entry['expiresAt']}" if entry.get("expiresAt") else "for good"
    facts = (entry["suppressedAt"], entry["address"], entry.get("reason", ""), until)
    return "  ".join(filter(None, (*facts, entry["status"], entry["diagnostic"])))


_ACTIONS = {"show": _show, "resend": _resend, "suppressed": _suppressed}
