"""Whether a broker does what it is there for: confirm a message that it has on disk.

An open port says little: after a full disk, RabbitMQ's log writer may stay dead while everything
else answers, and then no publish is confirmed any more.
"""

import http.client
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tools.launcher.errors import LauncherError

QUEUE = "health.probe"
"""Made where it is missing. It keeps no message: each is confirmed and dropped."""

ARGUMENTS = {"x-queue-type": "quorum", "x-max-length": 0}

PUBLISH = {
    "routing_key": QUEUE,
    "properties": {"delivery_mode": 2},
    "payload": "",
    "payload_encoding": "string",
}

Ask = Callable[[str, str, object], Any]
"""Calls the management API as administrator: method, path, body; returns the JSON.

Its publish returns after the broker's confirm. Raises LauncherError or OSError."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What came of an examination."""

    problem: str = ""
    """In words; empty if all is well."""

    needs_restart: bool = False
    """Whether a restart may cure it; none frees memory or disk."""


def examine_broker(ask: Ask) -> Finding:
    """Publish a message and wait for its confirm; takes as long as a few calls of ``ask``."""
    try:
        for node in ask("GET", "/api/nodes?columns=mem_alarm,disk_free_alarm", None):
            for alarm, what in (("mem_alarm", "memory"), ("disk_free_alarm", "disk space")):
                if node and node.get(alarm):  # an empty list before it has been counted
                    return Finding(f"It takes no messages until there is more {what}.")
    except (OSError, http.client.HTTPException, LauncherError) as error:
        return Finding(f"Its management API does not answer: {error}", needs_restart=True)
    try:
        if _is_confirmed(ask):
            return Finding()
    except (OSError, http.client.HTTPException, LauncherError):
        pass  # the queue alone may be broken, as one that was killed in its first seconds is
    try:
        _make_anew(ask)
        if _is_confirmed(ask):
            return Finding()
        reason = "the queue made for it takes nothing"
    except (OSError, http.client.HTTPException, LauncherError) as error:
        reason = str(error)
    return Finding(f"It confirms no message: {reason}", needs_restart=True)


def _is_confirmed(ask: Ask) -> bool:
    """False where there is no such queue."""
    return bool(ask("POST", "/api/exchanges/%2F/amq.default/publish", PUBLISH)["routed"])


def _make_anew(ask: Ask) -> None:
    queue = f"/api/queues/%2F/{QUEUE}"
    if any(each["name"] == QUEUE for each in ask("GET", "/api/queues/%2F?columns=name", None)):
        ask("DELETE", queue, None)
    ask("PUT", queue, {"durable": True, "arguments": ARGUMENTS})
