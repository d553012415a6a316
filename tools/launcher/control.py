"""``status`` and ``down``: looks at a stack that runs in another process, or elsewhere."""

import os
import signal
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from common.amqp.management import ManagementApi
from tools.cli.api_client import Addresses, health
from tools.launcher.broker import speaks_amqp
from tools.launcher.confirming import examine_broker
from tools.launcher.errors import LauncherError
from tools.launcher.invocation import Invocation
from tools.launcher.ports import HOST
from tools.launcher.postgres import serves_postgres
from tools.launcher.processes import POLL_INTERVAL
from tools.launcher.services import SETTINGS, answers_ok, not_ready, summary
from tools.launcher.state import StateFile
from tools.launcher.terminal import Terminal

STOP_WITHIN = 180
"""Seconds: the services drain, the broker and the database write out what they hold."""

SILENT = {"itself": "It does not answer."}


def status(invocation: Invocation) -> dict[str, Any] | None:
    """Each part with address, process, readiness, restarts and notes; None if nothing runs.

    Raises:
        LauncherError: A service that ``--url`` should name cannot be told.
    """
    return _elsewhere(invocation) if invocation.urls else _here(invocation)


def _here(invocation: Invocation) -> dict[str, Any] | None:
    state = StateFile(invocation.data).read()
    if state is None:
        return None
    services = _together(lambda name: _service(name, state), SETTINGS)
    parts = {
        name: _part(name, state)
        for name in ("rabbitmq", "postgres", "mailbox")
        if state["connections"][name] is not None
    }
    phase = state["phase"]
    if phase == "up":
        phase = _phase([*services.values(), *parts.values()])
    return {
        "phase": phase,
        "supervisor": state["supervisor"],
        "services": services,
        "parts": parts,
        "logs": state["connections"]["logs"],
    }


def _elsewhere(invocation: Invocation) -> dict[str, Any] | None:
    addresses = Addresses.parse(invocation.urls, offset=invocation.offset)
    urls = {name: addresses.of(name) for name in SETTINGS}

    def look(name: str) -> dict[str, Any]:
        said = health(urls[name])
        if said is None or said["service"] != name:
            said = {}
        return {"url": urls[name], "pid": None, "restarts": None, **_said(said)}

    services = _together(look, SETTINGS)
    if all(part["waitsFor"] == SILENT for part in services.values()):
        return None
    return {"phase": _phase(services.values()), "services": services, "parts": {}}


def _together(
    look: Callable[[str], dict[str, Any]], names: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """Look at all at the same time: one that hangs takes seconds."""
    asked = list(names)
    with ThreadPoolExecutor(len(asked)) as pool:
        return dict(zip(asked, pool.map(look, asked), strict=True))


def _phase(parts: Iterable[dict[str, Any]]) -> str:
    return "ready" if all(part["ready"] for part in parts) else "waiting"


def management_url(invocation: Invocation) -> str:
    """The management API of the broker that runs with this data, with its administrator.

    Raises:
        LauncherError: Nothing runs there, or with a broker that is not its own.
    """
    state = StateFile(invocation.data).read()
    broker = state["connections"]["rabbitmq"] if state else None
    if broker is None:
        raise LauncherError(
            f"No broker of ours runs with the data in {invocation.data}. Name one:"
            " ./userstream check-broker http://user:password@host:15672"
        )
    return _with_login(broker)


def _with_login(broker: dict[str, Any]) -> str:
    user, password = quote(broker["user"], safe=""), quote(broker["password"], safe="")
    return str(broker["management"]).replace("//", f"//{user}:{password}@", 1)


def _service(name: str, state: dict[str, Any]) -> dict[str, Any]:
    said = summary(state["ports"][name])
    url = state["connections"]["services"][name]
    return {**_process(name, state), "url": url, **_said(said)}


def _said(said: dict[str, Any]) -> dict[str, Any]:
    ready = said.get("status") == "ready"
    waits = {} if ready else not_ready(said) if said else SILENT
    return {"ready": ready, "waitsFor": waits, "notes": said.get("notes", {})}


def _part(name: str, state: dict[str, Any]) -> dict[str, Any]:
    ports, connections = state["ports"], state["connections"][name]
    problem = SILENT["itself"]
    if name == "rabbitmq":
        ready, url = speaks_amqp(ports["rabbitmq amqp"]), connections["management"]
        if ready:
            problem = examine_broker(ManagementApi(_with_login(connections))).problem
            ready = not problem
    elif name == "postgres":
        ready = serves_postgres(ports["postgres"])
        url = f"postgresql://{HOST}:{ports['postgres']}"  # without the password
    else:
        ready, url = answers_ok(ports["mailbox web"], "/readyz"), connections["web"]
    process = _process(name, state)
    waits = {}
    if not ready:
        down = "It is down, and is started again." if process["pid"] is None else problem
        waits = {"itself": down}
    return {**process, "url": url, "ready": ready, "waitsFor": waits}


def _process(name: str, state: dict[str, Any]) -> dict[str, Any]:
    # While the stack is starting, a part may not have been started yet.
    part = state["parts"].get(name, {"pid": None, "restarts": 0})
    return {"pid": part["pid"], "restarts": part["restarts"]}


def down(invocation: Invocation, terminal: Terminal) -> bool:
    """Stop the stack and return when it is stopped; False if none was running.

    Raises:
        LauncherError: It did not stop in time, or belongs to another user.
    """
    state = StateFile(invocation.data)
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
                    f" for stands in {invocation.data / 'logs' / 'launcher.log'};"
                    f" `kill -9 {supervisor}` ends it and all its parts."
                )
            time.sleep(POLL_INTERVAL)
    return True
