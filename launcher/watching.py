"""``status``, ``down`` and ``logs``: looks at a stack that runs in another process."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from launcher.broker import speaks_amqp
from launcher.errors import LauncherError
from launcher.ports import HOST
from launcher.postgres import serves_postgres
from launcher.processes import POLL_INTERVAL
from launcher.services import SETTINGS, answers_ok, summary
from launcher.state import StateFile
from launcher.terminal import Terminal

STOP_WITHIN = 180
"""Seconds: the services drain, the broker and the database write out what they hold."""

SHOWN_OF_EACH = 20
"""Lines per log when all are shown."""


def status(data: Path) -> dict[str, Any] | None:
    """Each part with address, process, readiness, restarts and notes; None if nothing runs."""
    state = StateFile(data).read()
    if state is None:
        return None
    services = {name: _service(name, state) for name in SETTINGS}
    return {
        "phase": state["phase"],
        "supervisor": state["supervisor"],
        "services": services,
        "parts": {
            name: _part(name, state)
            for name in ("rabbitmq", "postgres", "mailbox")
            if state["connections"][name] is not None
        },
        "logs": state["connections"]["logs"],
    }


def management_url(data: Path) -> str:
    """The management API of the broker that runs with this data, with its administrator.

    Raises:
        LauncherError: Nothing runs there, or with a broker of somebody else.
    """
    state = StateFile(data).read()
    broker = state["connections"]["rabbitmq"] if state else None
    if broker is None:
        raise LauncherError(
            f"No broker of ours runs with the data in {data}. Name one:"
            " ./userstream check-broker http://user:password@host:15672"
        )
    user, password = quote(broker["user"], safe=""), quote(broker["password"], safe="")
    return str(broker["management"]).replace("//", f"//{user}:{password}@", 1)


def _service(name: str, state: dict[str, Any]) -> dict[str, Any]:
    said = summary(state["ports"][name])
    url = state["connections"]["services"][name]
    described = _described(name, state, ready=said.get("status") == "ready", url=url)
    return {**described, "notes": said.get("notes", {})}


def _part(name: str, state: dict[str, Any]) -> dict[str, Any]:
    ports, connections = state["ports"], state["connections"][name]
    if name == "rabbitmq":
        ready = speaks_amqp(ports["rabbitmq amqp"])
        return _described(name, state, ready=ready, url=connections["management"])
    if name == "postgres":
        ready = serves_postgres(ports["postgres"])
        url = f"postgresql://{HOST}:{ports['postgres']}"  # without the password
        return _described(name, state, ready=ready, url=url)
    ready = answers_ok(ports["mailbox web"], "/readyz")
    return _described(name, state, ready=ready, url=connections["web"])


def _described(name: str, state: dict[str, Any], *, ready: bool, url: str) -> dict[str, Any]:
    # While the stack is starting, a part may not have been started yet.
    part = state["parts"].get(name, {"pid": None, "restarts": 0})
    return {"url": url, "pid": part["pid"], "ready": ready, "restarts": part["restarts"]}


def down(data: Path, terminal: Terminal) -> bool:
    """Stop the stack and return when it is stopped; False if none was running.

    Raises:
        LauncherError: It did not stop in time, or belongs to another user.
    """
    state = StateFile(data)
    supervisor = state.supervisor()
    if supervisor is None:
        return False
    with terminal.step("Stopping UserStream"):
        try:
            os.kill(supervisor, signal.SIGTERM)
        except PermissionError as error:
            raise LauncherError(f"Process {supervisor} belongs to another user.") from error
        deadline = time.monotonic() + STOP_WITHIN
        while state.supervisor() == supervisor:
            if time.monotonic() > deadline:
                raise LauncherError(
                    f"Process {supervisor} has not stopped after {STOP_WITHIN} s. What it waits"
                    f" for stands in {data / 'logs' / 'launcher.log'}; `kill -9 {supervisor}`"
                    " ends it and all its parts."
                )
            time.sleep(POLL_INTERVAL)
    return True


def show_logs(data: Path, part: str | None, terminal: Terminal, *, follow: bool) -> None:
    """Print one log, or the end of each; with ``follow`` until interrupted.

    Raises:
        LauncherError: There is no such log.
    """
    folder = data / "logs"
    logs = {path.stem: path for path in sorted(folder.glob("*.log"))}
    if not logs:
        raise LauncherError(f"There are no logs in {folder}.")
    if part is not None and part not in logs:
        raise LauncherError(f"There is no log of {part}. There are: {', '.join(logs)}")
    shown = {part: logs[part]} if part else logs
    positions = {}
    for name, path in shown.items():
        lines = path.read_text(errors="replace").splitlines()
        positions[path] = path.stat().st_size
        for line in lines if part else lines[-SHOWN_OF_EACH:]:
            terminal.say(line if part else f"{name}: {line}")
    while follow:
        for name, path in shown.items():
            for line in _added(path, positions):
                terminal.say(line if part else f"{name}: {line}")
        time.sleep(0.2)


def _added(path: Path, positions: dict[Path, int]) -> Iterator[str]:
    with suppress(FileNotFoundError), path.open("rb") as file:
        file.seek(positions[path])
        added = file.read()
        complete = added[: added.rfind(b"\n") + 1]
        positions[path] += len(complete)
        yield from complete.decode(errors="replace").splitlines()
