"""``demo`` and ``up``: runs a stack in this process, or in one of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any, NoReturn

from common.setting_names import misspelt
from tools.launcher.cache import PROJECT
from tools.launcher.errors import LauncherError
from tools.launcher.folders import PRIVATE_UMASK, open_data
from tools.launcher.given import is_given
from tools.launcher.invocation import Invocation
from tools.launcher.logs import Tail
from tools.launcher.ports import require_free
from tools.launcher.processes import POLL_INTERVAL
from tools.launcher.services import KNOWN, SETTINGS, all_waiting
from tools.launcher.side_by_side import side_by_side
from tools.launcher.stack import Stack, build_stack, listening_ports
from tools.launcher.state import StateFile
from tools.launcher.supervisor import Supervisor
from tools.launcher.terminal import BEGUN, STAMP, Terminal

READY_WITHIN = 60.0
"""Seconds that a start waits for services which only wait for parts that are started here."""

OTHERS_WITHIN = 10.0
"""Seconds that it waits once only parts of others are missing: a mail server, a broker."""

LEADS_TO = {
    "publisher": "rabbitmq",
    "consumer": "rabbitmq",
    "topology": "rabbitmq",
    "work_binding": "rabbitmq",
    "postgres": "postgres",
    "smtp": "mailbox",
}
"""Dependency, as services call it, to the part that it is about."""

Waiting = dict[str, dict[str, str]]
"""Service that is not ready to what it waits for, each with its reason."""


@dataclass(slots=True, kw_only=True)
class Runner:
    """Runs one stack in this process until it is told to stop."""

    invocation: Invocation
    terminal: Terminal
    phase: str = "starting"

    def run(self, announce: Callable[[dict[str, Any]], None]) -> None:
        """Start everything, announce where it is, keep it running until SIGINT or SIGTERM.

        Raises:
            LauncherError: It could not be started. What had been started is stopped.
        """
        interrupt_on_signals()
        offset, data = self.invocation.offset, self.invocation.data
        open_data(data)
        state = StateFile(data)
        # Held to the very end of this process: who waits for it finds nothing left.
        _claim(state, self.invocation)
        for name, like in misspelt(os.environ, KNOWN).items():
            hint = f"; {like} is one" if like else ""
            self.terminal.say(f"{name} has no effect: there is no such setting{hint}.")
        require_free(listening_ports(os.environ, offset), invocation=self.invocation)
        stack = build_stack(offset=offset, data=data, given=os.environ, terminal=self.terminal)
        os.umask(PRIVATE_UMASK)
        supervisor = Supervisor(
            terminal=self.terminal,
            on_change=lambda supervisor: state.write(self._state(stack, supervisor)),
        )
        try:
            start_infrastructure(stack, supervisor, self.terminal)
            supervisor.start(stack.services(), until_live=True)
            with self.terminal.step("Looking whether every service is ready"):
                waiting = wait_for_readiness(stack, supervisor)
            self.phase = "up"
            state.write(self._state(stack, supervisor))
            tell_who_waits(waiting, self.terminal, self.invocation)
            announce(_with_waiting(stack.connections(), waiting))
            supervisor.watch()
        except KeyboardInterrupt:
            self.terminal.say("\nStopping, in order. Once more stops at once.")
        finally:
            self.phase = "stopping"
            supervisor.give_up()
            if supervisor.parts:
                state.write(self._state(stack, supervisor))
            self._stop(supervisor)
        self.terminal.say("Everything is stopped. The data is kept for the next start.")

    def _stop(self, supervisor: Supervisor) -> None:
        try:
            supervisor.stop()
        except KeyboardInterrupt:
            supervisor.kill()

    def _state(self, stack: Stack, supervisor: Supervisor) -> dict[str, Any]:
        return {
            "supervisor": os.getpid(),
            "phase": self.phase,
            "ports": dict(stack.ports),
            "connections": stack.connections(),
            "parts": {
                name: {"pid": part.running and part.running.pid, "restarts": part.restarts}
                for name, part in supervisor.parts.items()
            },
        }


def interrupt_on_signals() -> None:
    """Make SIGTERM and a closed terminal stop this process as Ctrl-C does."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)


def start_infrastructure(stack: Stack, supervisor: Supervisor, terminal: Terminal) -> None:
    """Start what the services need; return when it is ready and survives a crash.

    Raises:
        LauncherError: Something did not start; what had been started goes on.
    """
    if stack.broker:
        stack.broker.directory.mkdir(parents=True, exist_ok=True)
        stack.broker.prepare()
    side_by_side(
        lambda: _start_broker(stack, supervisor, terminal),
        lambda: _start_others(stack, supervisor, terminal),
        give_up=supervisor.give_up,
    )


def _start_broker(stack: Stack, supervisor: Supervisor, terminal: Terminal) -> None:
    if stack.broker is None:
        return
    supervisor.start([stack.broker.epmd()])
    supervisor.start([stack.broker.node()])
    with terminal.step("Checking RabbitMQ's queues and bindings"):
        stack.broker.settle()


def _start_others(stack: Stack, supervisor: Supervisor, terminal: Terminal) -> None:
    if stack.postgres:
        with terminal.step("Preparing PostgreSQL"):
            stack.postgres.prepare()
    supervisor.start(stack.others())


def wait_for_readiness(stack: Stack, supervisor: Supervisor) -> Waiting:
    """Return when every service is ready, or when waiting longer is of no use here.

    What waits only for parts of others goes on waiting by itself, and so does what needs too
    long: a start does not fail by it.
    """
    deadline = time.monotonic() + READY_WITHIN
    others_deadline: float | None = None
    while True:
        waiting = all_waiting(stack.ports, SETTINGS)
        now = time.monotonic()
        if not waiting or now > deadline:
            return waiting
        if waits_for_others_only(waiting, stack):
            others_deadline = others_deadline or now + OTHERS_WITHIN
            if now > others_deadline:
                return waiting
        else:
            others_deadline = None
        supervisor.look(now)
        time.sleep(POLL_INTERVAL)


def waits_for_others_only(waiting: Waiting, stack: Stack) -> bool:
    """Whether nothing that is started here could make any of these services ready."""
    others = set()
    if stack.broker is None:
        others.add("rabbitmq")
    if stack.postgres is None:
        others.add("postgres")
    if not stack.has_mailbox:
        others.add("mailbox")

    def is_others(dependency: str) -> bool:
        if dependency == "database_service":
            if is_given(stack.given, "DATABASE_SERVICE_URL"):
                return True
            return all(map(is_others, waiting.get(dependency, {"itself": ""})))
        return LEADS_TO.get(dependency) in others

    return all(is_others(dependency) for waits in waiting.values() for dependency in waits)


def tell_who_waits(waiting: Waiting, terminal: Terminal, invocation: Invocation) -> None:
    """Say which service waits for what, one line each."""
    if not waiting:
        return
    terminal.say()
    for service, waits in waiting.items():
        for dependency, reason in waits.items():
            terminal.say(f"  ! {service} waits for {dependency}: {reason}")
    terminal.say(
        "  They go on by themselves as soon as it is there. See how it stands:"
        f"\n    {invocation.line('status')}"
    )


def detach(invocation: Invocation, terminal: Terminal) -> dict[str, Any]:
    """Run a stack in a process of its own; return its connections when it is up.

    A stack that runs already is as good as a new one, and so is one that is just being started.

    Raises:
        LauncherError: It could not be started.
    """
    data = invocation.data
    state = StateFile(data)
    if connections := _when_up(state):
        terminal.say(f"It runs already (process {state.supervisor()}).")
        tell_who_waits(connections.get("waiting", {}), terminal, invocation)
        return connections
    if state.supervisor() is not None:
        terminal.say(f"Process {state.supervisor()} is starting or stopping it; waiting for that.")
        while state.supervisor() is not None:
            if connections := _when_up(state):
                return connections
            time.sleep(POLL_INTERVAL)
    open_data(data)
    log = data / "logs" / "launcher.log"
    try:
        log.parent.mkdir(exist_ok=True, mode=0o700)
        output = os.fdopen(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "ab")
    except PermissionError as error:
        raise LauncherError(f"{error.filename} cannot be written by this user.") from error
    shown = Tail(log)
    options = ["--port-offset", str(invocation.offset), "--data", str(data)]
    with output:
        runner = subprocess.Popen(
            [sys.executable, "-P", "-m", "tools.launcher", "up", *options, "--background"],
            env={**os.environ, "PYTHONPATH": str(PROJECT), "PYTHONIOENCODING": "utf-8"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while not (up := _when_up(state)):
            _show(shown, terminal)
            if runner.poll() is not None:
                _show(shown, terminal)
                raise LauncherError(
                    "UserStream did not start; why stands above. All it wrote:"
                    f"\n  {invocation.line('logs')}"
                )
            time.sleep(POLL_INTERVAL)
    except KeyboardInterrupt:
        runner.send_signal(signal.SIGTERM)
        runner.wait()
        raise
    _show(shown, terminal)
    return up


def _when_up(state: StateFile) -> dict[str, Any] | None:
    """The connections of a stack that is up, with who waits for what at this moment."""
    found = state.read()
    if found is None or found["phase"] != "up":
        return None
    return _with_waiting(found["connections"], all_waiting(found["ports"], SETTINGS))


def _with_waiting(connections: dict[str, Any], waiting: Waiting) -> dict[str, Any]:
    """The connections; with ``waiting``, where a service waits for something."""
    return {**connections, "waiting": waiting} if waiting else connections


def _show(log: Tail, terminal: Terminal) -> None:
    """Print what was added to the log of the process that stays; what begins, only for a moment."""
    for stamped in log.texts():
        line = STAMP.sub("", stamped)
        if line.startswith(BEGUN):
            terminal.transient(line)
        else:
            terminal.say(line)


def _claim(state: StateFile, invocation: Invocation) -> None:
    if state.claim():
        return
    raise LauncherError(
        f"A stack with the data in {invocation.data} runs already (process {state.supervisor()}).\n"
        f"  {invocation.line('status')}    shows it\n"
        f"  {invocation.line('down')}    stops it\n"
        "A second one needs its own --port-offset."
    )


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
