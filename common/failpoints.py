"""Ends the process at a chosen point, to show what a crash there leaves behind.

``USERSTREAM_FAILPOINT=w13:nth=3`` ends the service that passes window 13 for the third time, as
``kill -9`` would. The windows are those of docs/reliability.md. Without the variable, a
failpoint compares two values and returns.
"""

import os
import re
from dataclasses import dataclass

KILLED = 137
"""Exit code: what a shell shows for a process that ``kill -9`` ended."""

WINDOWS = {
    "w1": "a registration is valid and not published",
    "w2": "a registration is published, its 202 is not sent",
    "w10": "a registration is delivered, nothing is done",
    "w11": "database_service has answered, the answer is not read",
    "w12": "a registration is about to be stored",
    "w13": "a registration is committed, the answer is not sent",
    "w14": "a registration is stored, its mail is not asked for",
    "w16": "the mail request is confirmed, the registration is not settled",
    "w19": "the work is done, the delivery is not acknowledged",
    "w23": "a mail is claimed, nothing of it is sent",
    "w24": "the mail server has said 250, that is not recorded",
    "w29": "a mail is recorded as sent, its delivery is not acknowledged",
    "w32": "a report is written, it has no name yet",
    "w33": "a report has its name, it is not recorded",
    "w34": "a report is recorded, its mail is not asked for",
    "w44": "a dead letter is published anew, it is still in its queue",
}
"""Each failpoint there is: where the process stands when it ends."""

_SYNTAX = re.compile(r"(?P<window>w[0-9]+)(?::nth=(?P<nth>[1-9][0-9]{0,8}))?")


@dataclass(slots=True)
class _Armed:
    window: str = ""
    passes_left: int = 0


_armed = _Armed()


def failpoint(window: str) -> None:
    """End the process here if this window is armed and it was passed often enough."""
    if window == _armed.window:
        _armed.passes_left -= 1
        if _armed.passes_left <= 0:
            os._exit(KILLED)


def arm(text: str) -> None:
    """Choose the window at which the process ends: ``w13:nth=3``; empty: none.

    Raises:
        ValueError: There is no such window.
    """
    _armed.window, _armed.passes_left = parse(text)


def parse(text: str) -> tuple[str, int]:
    """Window and pass of ``w13:nth=3``.

    Raises:
        ValueError: There is no such window.
    """
    if not text:
        return "", 0
    found = _SYNTAX.fullmatch(text)
    if found is None or found["window"] not in WINDOWS:
        raise ValueError(f"say it as w13:nth=3, with one of {', '.join(WINDOWS)}")
    return found["window"], int(found["nth"] or 1)
