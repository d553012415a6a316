"""Asks a service of the running stack over HTTP, in words for a person where it refuses."""

import json
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, Request, build_opener

from launcher.errors import LauncherError
from launcher.state import StateFile

ASK_SECONDS = 120.0
"""Longest wait for an answer: sending thousands of mails again takes some of it."""

_OPENER = build_opener(ProxyHandler({}))
"""Without proxies: everything that is asked is on this machine."""


def ask(data: Path, service: str, method: str, path: str, body: object = None) -> Any:
    """The answer of a service of the stack whose data lies in ``data``; None where it is empty.

    Raises:
        LauncherError: Nothing runs there, or the service refused: what it said.
    """
    state = StateFile(data).read()
    if state is None:
        raise LauncherError(
            f"Nothing runs with the data in {data}. `./userstream demo` starts it; another"
            " stack is named by --data or --port-offset."
        )
    request = Request(  # noqa: S310 - an address of our own
        f"{state['connections']['services'][service]}{path}",
        method=method,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": "application/json"} if body is not None else {},
    )
    try:
        with _OPENER.open(request, timeout=ASK_SECONDS) as response:
            content = response.read()
    except HTTPError as error:
        raise LauncherError(_problem(service, error)) from error
    except (URLError, OSError) as error:
        raise LauncherError(
            f"{service} does not answer. Is it up? `./userstream status` tells."
        ) from error
    return json.loads(content) if content else None


def _problem(service: str, error: HTTPError) -> str:
    """What a problem document says (RFC 9457)."""
    try:
        problem = json.loads(error.read())
        wrong = [f"{item['pointer']}: {item['detail']}" for item in problem.get("errors", ())]
        return " ".join([problem["detail"], *wrong])
    except (ValueError, KeyError, TypeError):
        return f"{service} answered {error.code}."
