"""``./userstream dead-letters``: show dead letters, and decide what becomes of them."""

import json
import time
from argparse import SUPPRESS, ArgumentParser, Namespace
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from tools.cli.api_client import add_url, ask
from tools.cli.person import person
from tools.launcher.errors import LauncherError
from tools.launcher.terminal import STDERR, Terminal, printable

API = "/api/dead-letters"

PAGE = 500
"""Messages of one request."""

POLL_SECONDS = 0.5
"""Between two requests for a redrive's progress."""

DONE = "done"
LIST = "list"


def add_arguments(command: ArgumentParser, options: ArgumentParser) -> None:
    """What stands behind ``dead-letters``; ``options`` are those of every command."""
    _add_filter(command, default=None)
    command.add_argument("--json", action="store_true", help="JSON on stdout")
    add_url(command)
    actions = command.add_subparsers(dest="action", metavar="ACTION")

    def action(name: str, text: str) -> ArgumentParser:
        added = actions.add_parser(
            name, help=text, description=text, parents=[options], allow_abbrev=False
        )
        added.add_argument("--json", action="store_true", default=SUPPRESS, help="JSON on stdout")
        add_url(added, default=SUPPRESS)
        return added

    _add_filter(action("list", "show all, grouped by reason (also without an action)"))
    show = action("show", "show one: why it is here, its headers, its body")
    show.add_argument("id")
    show.add_argument(
        "--unmask", action="store_true", help="show the values, too, which may be personal"
    )
    show.add_argument("--body", action="store_true", help="print the body alone")
    for name, text in (
        ("redrive", "send back one, those of a kind, or all; a few first, then more"),
        ("dry-run", "show what would become of them; stores, sends and moves nothing"),
    ):
        several = action(name, text)
        several.add_argument("ids", nargs="*", metavar="ID")
        _add_filter(several)
        several.add_argument("--all", action="store_true", help="every message of every route")
        if name == "redrive":
            several.add_argument("--rate", type=int, default=100, help="at most so many a second")
            several.add_argument(
                "--wait", type=int, default=60, help="seconds for one step to be handled"
            )
    resend = action("resend", "send one back with another body, checked first")
    resend.add_argument("id")
    resend.add_argument("--body", type=Path, required=True, metavar="FILE", help="JSON")
    discard = action("discard", "remove one, or those of a kind, for good; the reason is kept")
    discard.add_argument("ids", nargs="*", metavar="ID")
    _add_filter(discard)
    discard.add_argument("--reason", required=True, help="why; name no person in it")
    action("discards", "show what was discarded, and why")


def _add_filter(command: ArgumentParser, default: str | None = SUPPRESS) -> None:
    command.add_argument("--route", default=default, help="user.registration, …")
    command.add_argument("--code", default=default, help="malformed, upstream_error, …")


def run(given: Namespace, terminal: Terminal) -> bool:
    """Do what was asked and print the result; False if messages could not be sent back.

    Raises:
        LauncherError: It cannot be done, in the service's words.
    """
    result, lines = _ACTIONS[given.action or LIST](given)
    if given.json:
        terminal.say(json.dumps(result))
    else:
        for line in lines:
            terminal.say(printable(line))
    return given.action != "redrive" or bool(result["state"] == DONE)


def _list(given: Namespace) -> tuple[Any, list[str]]:
    """All pages as one."""
    query = {"route": given.route, "code": given.code, "limit": PAGE}
    result = _ask(given, "GET", "?" + _query(query))
    page = result
    while page["nextAfter"] is not None:
        page = _ask(given, "GET", "?" + _query({**query, "after": page["nextAfter"]}))
        result["messages"] += page["messages"]
        STDERR.say(f"  … {len(result['messages'])} messages")
    result["nextAfter"] = None
    return result, list_lines(result)


def list_lines(found: Mapping[str, Any]) -> list[str]:
    """Messages as text."""
    lines = [
        f"{queue['route']}: " + _incomplete(queue)
        for queue in found["queues"]
        if not queue["complete"]
    ]
    if not found["groups"]:
        return [*lines, "No message waits for a decision."]
    for group in found["groups"]:
        lines += [
            f"{group['count']:>7}  {group['code']}  ({group['route']})",
            f"         {group['meaning']} {group['advice']}",
        ]
    if not found["messages"]:
        lines += ["", "None of these has that route and code."]
    for message in found["messages"]:
        by = f" by {message['failedService']}" if message["failedService"] else ""
        lines += [
            "",
            f"{message['id']}  {message['route']}  {message['code']}",
            f"    {message['detail'] or 'no further detail'}",
            f"    tries: {message['attempts']}{by}, first failed {message['firstSeen'] or '?'}",
        ]
    return lines


def _incomplete(queue: Mapping[str, Any]) -> str:
    if queue["lockedByAnotherReader"]:
        return "another reader has locked some of these messages; try again in a few seconds"
    return (
        f"{queue['read']} of {queue['messages']} messages were read; the others follow when these "
        "are gone"
    )


def _show(given: Namespace) -> tuple[Any, list[str]]:
    query = "?unmask=true" if given.unmask else ""
    message = _ask(given, "GET", f"/{given.id}{query}")
    return message, [message["body"] or ""] if given.body else message_lines(message)


def message_lines(message: Mapping[str, Any]) -> list[str]:
    """One message as text."""
    facts = {
        "message": message["id"],
        "route": message["route"],
        "contract": message["type"] or "not named",
        "why": f"{message['code']}: {message['detail']}".removesuffix(": "),
        "means": message["meaning"],
        "do": message["advice"],
        "tries": message["attempts"],
        "given up by": message["failedService"] or "the broker",
        "first failed": message["firstSeen"] or "not known",
        "bytes": message["sizeBytes"],
    }
    lines = [f"{name:<13} {value}" for name, value in facts.items()]
    lines += ["headers:", *(f"    {name}: {text}" for name, text in message["headers"].items())]
    return [*lines, "body:", message["body"] or "(too large to be shown)"]


def _dry_run(given: Namespace) -> tuple[Any, list[str]]:
    result = _ask(given, "POST", "/dry-run", _selection(given))
    lines = [
        f"{'would succeed' if message['wouldSucceed'] else 'would FAIL   '}  {message['id']}"
        f"  {message['route']}  {message['outcome']}: {message['detail']}"
        for message in result["messages"]
    ]
    if result["leftOut"]:
        lines.append(f"{result['leftOut']} more were left out.")
    return result, lines or ["There is nothing to try."]


def _redrive(given: Namespace) -> tuple[Any, list[str]]:
    wish = {**_selection(given), "rate": given.rate, "waitSeconds": given.wait}
    redrive = _ask(given, "POST", "/redrive", wish)
    path = f"/redrives/{redrive['redriveId']}"
    try:
        for redrive in _progress(given, path):  # noqa: B007 - the last one is the outcome
            pass
    except KeyboardInterrupt:
        _ask(given, "POST", f"{path}/stop")
        *_, redrive = _progress(given, path)
    return redrive, [
        f"{redrive['state']}: {redrive['detail']}",
        f"{redrive['total']} meant, {redrive['sent']} sent back, {redrive['handled']} handled.",
    ]


def _progress(given: Namespace, path: str) -> Iterator[Any]:
    """The redrive, whenever it has come further; the last one has ended."""
    said = ""
    while True:
        redrive = _ask(given, "GET", path)
        text = f"{redrive['handled']}/{redrive['total']} handled. {redrive['detail']}"
        if text != said:
            STDERR.say(printable(f"  … {text}"))
            said = text
        yield redrive
        if redrive["state"] != "running":
            return
        time.sleep(POLL_SECONDS)


def _resend(given: Namespace) -> tuple[Any, list[str]]:
    try:
        body = json.loads(given.body.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LauncherError(f"{given.body} cannot be read as JSON: {error}") from error
    sent = _ask(given, "POST", f"/{given.id}/resend", {"body": body})
    return sent, [f"Sent back to {sent['route']}. If it fails again, it comes back."]


def _discard(given: Namespace) -> tuple[Any, list[str]]:
    why = {"reason": given.reason, "discardedBy": person()}
    if len(given.ids) == 1 and not (given.route or given.code):
        discarded = _ask(given, "POST", f"/{given.ids[0]}/discard", why)
        return discarded, ["Discarded. The reason is kept."]
    discarded = _ask(given, "POST", "/discard", {**_selection(given), **why})
    return discarded, [f"{discarded['discarded']} discarded. The reason is kept with each."]


def _discards(given: Namespace) -> tuple[Any, list[str]]:
    found: list[Any] = []
    query: dict[str, Any] = {"limit": PAGE}
    while True:
        page = _ask(given, "GET", "/discards?" + _query(query))
        found += page["discards"]
        if page["nextBefore"] is None:
            break
        query["before"] = page["nextBefore"]
    lines = [
        f"{d['discardedAt']}  {d['messageId']}  {d['route']}  {d['errorCode']}"
        f"  {d['discardedBy'] or '-'}: {d['reason']}"
        for d in found
    ]
    return {"discards": found}, lines or ["No message has been discarded."]


def _selection(given: Namespace) -> dict[str, Any]:
    selection = {
        "ids": given.ids or None,
        "route": given.route,
        "code": given.code,
        "all": getattr(given, "all", False),
    }
    if not any(selection.values()):
        or_all = ", or --all" if hasattr(given, "all") else ""
        raise LauncherError(f"Which messages? Name ids, --route, --code{or_all}.")
    return {name: value for name, value in selection.items() if value}


def _ask(given: Namespace, method: str, path: str, body: object = None) -> Any:
    return ask(given, "queue_receiver", method, API + path, body)


def _query(values: Mapping[str, Any]) -> str:
    return urlencode({name: value for name, value in values.items() if value is not None})


_ACTIONS = {
    "list": _list,
    "show": _show,
    "redrive": _redrive,
    "dry-run": _dry_run,
    "resend": _resend,
    "discard": _discard,
    "discards": _discards,
}
