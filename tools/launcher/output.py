"""The tables that a person sees: where everything is, and how it stands."""

import os
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from tools.launcher.invocation import Invocation

WHAT_FOR = {
    "frontend": "the form: register a person",
    "queue_receiver": "stores; given up: /dead-letters",
    "sender": "sends the mails",
    "database_service": "users and records",
    "report_generator": "reports to download",
}

WIDE = 34
"""Characters; a longer cell does not make its column wider."""


def overview(connections: Mapping[str, Any], invocation: Invocation) -> str:
    """Every address with what can be done there, and how to go on; 80 columns, if paths allow."""
    rows = [(name, url, WHAT_FOR[name]) for name, url in connections["services"].items()]
    if mailbox := connections["mailbox"]:
        rows.insert(1, ("mailbox", mailbox["web"], "the mails that were sent"))
    if rabbitmq := connections["rabbitmq"]:
        rows.append(("RabbitMQ", rabbitmq["management"], f"the queues; user {rabbitmq['user']}"))
        rows.append(("", f"password {rabbitmq['password']}", ""))
    if postgres := connections["postgres"]:
        dsn = urlsplit(postgres["dsn"])
        rows.append(("PostgreSQL", f"{dsn.hostname}:{dsn.port}", f"user {dsn.username}"))
        rows.append(("", f"password {dsn.password}", ""))
    rows.append(("logs", _short(connections["logs"]), ""))
    rows.append(("data", _short(str(invocation.data)), ""))
    title = "UserStream is up." if connections.get("waiting") else "UserStream is ready."
    hints = [
        f"  {invocation.line('status')}",
        f"  {invocation.line('logs --follow')}",
    ]
    return "\n".join(["", title, "", *_aligned(rows), "", *hints, ""])


def _short(path: str) -> str:
    """The path from here, where that is shorter."""
    try:
        relative = os.path.relpath(path)
    except (OSError, ValueError):
        return path
    return min(relative, path, key=len) if not relative.startswith("..") else path


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """One line per part: ready or not, address, process; below, what it waits for and notes."""
    parts = {**status["services"], **status["parts"]}
    rows = [
        (
            name,
            "ready" if part["ready"] else "NOT READY",
            part["url"] or "",
            f"pid {part['pid']}" if part["pid"] else "" if part["restarts"] is None else "down",
            f"restarts {part['restarts']}" if part["restarts"] else "",
        )
        for name, part in parts.items()
    ]
    return _aligned(rows) + _reasons(parts) + _notes(parts)


def _reasons(parts: Mapping[str, Any]) -> list[str]:
    return [
        f"  {name}: {reason}" if topic == "itself" else f"  {name} waits for {topic}: {reason}"
        for name, part in parts.items()
        for topic, reason in part.get("waitsFor", {}).items()
    ]


def _notes(parts: Mapping[str, Any]) -> list[str]:
    return [
        f"  {name}, {topic}: {'WARNING: ' if note['warning'] else ''}{note['detail']}"
        for name, part in parts.items()
        for topic, note in part.get("notes", {}).items()
    ]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    # A column is as wide as its widest short cell; one long address does not move the rest.
    columns = range(len(rows[0]))
    widths = [max((len(row[i]) for row in rows if len(row[i]) < WIDE), default=0) for i in columns]
    return [
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
