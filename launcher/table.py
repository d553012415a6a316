"""The table that a person sees when everything runs."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

WHAT_FOR = {
    "frontend": "the form: register somebody",
    "queue_receiver": "stores what comes from the queue; what was given up: /dead-letters",
    "sender": "sends the mails; previews of them under /api-docs",
    "database_service": "users and records; try it under /api-docs",
    "report_generator": "makes reports to download; try it under /api-docs",
}


def overview(connections: Mapping[str, Any], *, data: Path) -> str:
    """Every address with what can be done there, and how to stop."""
    rows = [(name, url, WHAT_FOR[name]) for name, url in connections["services"].items()]
    if mailbox := connections["mailbox"]:
        rows.insert(1, ("mailbox", mailbox["web"], "the mails that were sent"))
    if rabbitmq := connections["rabbitmq"]:
        login = f"the queues; user {rabbitmq['user']}, password {rabbitmq['password']}"
        rows.append(("RabbitMQ", rabbitmq["management"], login))
    if postgres := connections["postgres"]:
        rows.append(("PostgreSQL", postgres["dsn"], ""))
    rows.append(("logs", connections["logs"], "one file per part, or: ./userstream logs"))
    rows.append(("data", str(data), "kept from start to start"))
    return "\n".join(["", "UserStream is ready.", "", *_aligned(rows), ""])


def status_lines(status: Mapping[str, Any]) -> list[str]:
    """One line per part: ready or not, address, process, restarts; below, what they note."""
    parts = {**status["services"], **status["parts"]}
    rows = [
        (
            name,
            "ready" if part["ready"] else "NOT READY",
            part["url"] or "",
            f"pid {part['pid']}" if part["pid"] else "down",
            f"restarts {part['restarts']}",
        )
        for name, part in parts.items()
    ]
    return _aligned(rows) + _notes(parts)


def _notes(parts: Mapping[str, Any]) -> list[str]:
    return [
        f"  {name}, {topic}: {'WARNING: ' if note['warning'] else ''}{note['detail']}"
        for name, part in parts.items()
        for topic, note in part.get("notes", {}).items()
    ]


def _aligned(rows: Sequence[tuple[str, ...]]) -> list[str]:
    # A column is as wide as its widest short cell; one long address does not move the rest.
    columns = range(len(rows[0]))
    widths = [max(len(row[i]) for row in rows if len(row[i]) < 40) for i in columns]  # noqa: PLR2004
    return [
        "  "
        + "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
