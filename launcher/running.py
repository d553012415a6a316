"""``demo`` and ``up``: runs a stack in this process, or in one of its own."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from launcher.environment import PROJECT
from launcher.errors import LauncherError
from launcher.ports import require_free
from launcher.processes import POLL_INTERVAL
from launcher.stack import Stack, build_stack
from launcher.state import StateFile
from launcher.supervisor import Supervisor
from launcher.terminal import Terminal


@dataclass(slots=True, kw_only=True)
class Runner:
    """Runs one stack in this process until it is told to stop."""

    offset: int
    data: Path
    terminal: Terminal
    phase: str = "starting"

    def run(self, announce: Callable[[dict[str, Any]], None]) -> None:
        """Start everything, announce where it is, keep it running until SIGINT or SIGTERM.

        Raises:
            LauncherError: It could not be started. What had been started is stopped.
        """
        interrupt_on_signals()
        state = StateFile(self.data)
        stack = build_stack(
            offset=self.offset, data=self.data, given=os.environ, terminal=self.terminal
        )
        # Held to the very end of this process: who waits for it finds nothing left.
        _claim(state, self.data)
        require_free(stack.listening(), offset=self.offset)
        supervisor = Supervisor(
            terminal=self.terminal,
            on_change=lambda supervisor: state.write(self._state(stack, supervisor)),
        )
        try:
            start_parts(stack, supervisor, self.terminal)
            self.phase = "ready"
            state.write(self._state(stack, supervisor))
            announce(stack.connections())
            supervisor.watch()
        except KeyboardInterrupt:
            self.terminal.say("\nStopping, in order. Once more stops at once.")
        finally:
            self.phase = "stopping"
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


def start_parts(stack: Stack, supervisor: Supervisor, terminal: Terminal) -> None:
    """Start everything, what others need first; return when all of it is ready.

    Raises:
        LauncherError: Something did not start; what had been started goes on.
    """
    start_infrastructure(stack, supervisor, terminal)
    supervisor.start(stack.services())


def start_infrastructure(stack: Stack, supervisor: Supervisor, terminal: Terminal) -> None:
    """Start what the services need; return when it is ready and survives a crash.

    Raises:
        LauncherError: Something did not start; what had been started goes on.
    """
    if stack.broker:
        stack.broker.directory.mkdir(parents=True, exist_ok=True)
        stack.broker.prepare()
    if stack.postgres:
        with terminal.step("Preparing PostgreSQL"):
            stack.postgres.directory.mkdir(parents=True, exist_ok=True)
            stack.postgres.prepare()
    if stack.broker:
        supervisor.start([stack.broker.epmd()])
    supervisor.start(stack.infrastructure())
    if stack.broker:
        with terminal.step("Checking RabbitMQ's queues and bindings"):
            stack.broker.settle()


def detach(*, offset: int, data: Path, terminal: Terminal) -> dict[str, Any]:
    """Run a stack in a process of its own; return its connections when it is ready.

    A stack that runs already is as good as a new one.

    Raises:
        LauncherError: It could not be started.
    """
    state = StateFile(data)
    if connections := _when_ready(state):
        terminal.say(f"It runs already (process {state.supervisor()}).")
        return connections
    log = data / "logs" / "launcher.log"
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        shown = log.stat().st_size if log.exists() else 0
        output = log.open("ab")
    except PermissionError as error:
        raise LauncherError(f"{error.filename} can not be written by this user.") from error
    command = ["up", "--port-offset", str(offset), "--data", str(data), "--background"]
    with output:
        runner = subprocess.Popen(
            [sys.executable, "-P", "-m", "launcher", *command],
            env={**os.environ, "PYTHONPATH": str(PROJECT)},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        while not (ready := _when_ready(state)):
            shown = _show(log, shown, terminal)
            if runner.poll() is not None:
                _show(log, shown, terminal)
                raise LauncherError(f"It did not start. Its log: {log}")
            time.sleep(POLL_INTERVAL)
    except KeyboardInterrupt:
        runner.send_signal(signal.SIGTERM)
        runner.wait()
        raise
    _show(log, shown, terminal)
    return ready


def _when_ready(state: StateFile) -> dict[str, Any] | None:
    found = state.read()
    return found["connections"] if found and found["phase"] == "ready" else None


def _show(log: Path, shown: int, terminal: Terminal) -> int:
    """Print what was added to the log, and return how far that goes."""
    with log.open("rb") as file:
        file.seek(shown)
        added = file.read()
    complete = added[: added.rfind(b"\n") + 1]
    for line in complete.decode(errors="replace").splitlines():
        terminal.say(line)
    return shown + len(complete)


def _claim(state: StateFile, data: Path) -> None:
    if state.claim():
        return
    raise LauncherError(
        f"A stack with the data in {data} runs already (process {state.supervisor()}).\n"
        "`./userstream status` shows it, `./userstream down` stops it; give both the same"
        " --port-offset and --data as here. A second one needs its own --port-offset."
    )


def _interrupt(_number: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt
