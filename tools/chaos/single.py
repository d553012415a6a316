"""A stack with one of each service, one of which can be killed at a failpoint."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.failpoints import KILLED
from tools.launcher.broker import Broker
from tools.launcher.postgres import Postgres
from tools.launcher.processes import Program, describe_exit, start
from tools.launcher.services import SETTINGS
from tools.launcher.stack import Stack
from tools.launcher.supervisor import Supervisor
from tools.launcher.terminal import Terminal
from tools.testing.ephemeral_stack import ephemeral_stack

LOOK_SECONDS = 0.05
"""Between two looks at the processes: one that ended is started again at once."""

SETTINGS_OF_ALL = {
    "CANARY_SECONDS": "0",
    "LEDGER_INTERVAL_SECONDS": "0",
    "RETRY_DELAY_MS": "1000",
    "USERSTREAM_FAILPOINT": "",
}
"""Nothing happens but what the windows are about."""

ONE_MAIL = {"PREFETCH": "1"}
"""Of the sender: with several mails in flight, a crash at one would cut off the others."""


@dataclass(slots=True)
class SingleStack:
    """The stack, and the failpoint that is set in it."""

    stack: Stack
    broker: Broker
    postgres: Postgres
    supervisor: Supervisor
    service: str = ""
    """The one that is killed."""
    window: str = ""
    times: int = 0
    """How often it is killed; then it is started again without the failpoint."""
    crashes: int = 0
    unplanned: list[str] = field(default_factory=list)
    """Processes that ended unexpectedly."""
    _programs: dict[str, Program] = field(default_factory=dict)

    def url(self, service: str) -> str:
        """Where a service listens."""
        return f"http://127.0.0.1:{self.stack.ports[service]}"

    @property
    def mailbox(self) -> str:
        """The page, and API, of the mails that were caught."""
        return f"http://127.0.0.1:{self.stack.ports['mailbox web']}"

    @property
    def reports(self) -> Path:
        """Where report files lie."""
        return self.stack.data / "reports"

    @property
    def is_over(self) -> bool:
        """Whether the service was killed as often as planned."""
        return self.crashes >= self.times

    def services(self) -> list[Program]:
        """The five services, without a failpoint."""
        for program in self.stack.services():
            more = ONE_MAIL if program.name == "sender" else {}
            self._programs[program.name] = replace(
                program, environment={**program.environment, **more}
            )
        return list(self._programs.values())

    async def arm(self, service: str, window: str, times: int) -> None:
        """Kill a service at a window, so many times, from now on."""
        self.service, self.window, self.times, self.crashes = service, window, times, 0
        await self._restart(service)

    async def disarm(self) -> None:
        """Kill the service no more, however often it was killed."""
        if not self.is_over:
            self.times = self.crashes
            await self._restart(self.service)

    async def _restart(self, service: str) -> None:
        part = self.supervisor.parts[service]
        running, part.running = part.running, None  # being stopped, not crashed
        if running:
            await asyncio.to_thread(running.stop)
        part.running = start(self._program(service))

    async def watch(self) -> None:
        """Restart what ended, until cancelled."""
        while True:
            self._look()
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        for name in SETTINGS:
            running = self.supervisor.parts[name].running
            if running is None or (code := running.exit_code) is None:
                continue
            if name == self.service and code == KILLED and not self.is_over:
                self.crashes += 1
            else:
                self.unplanned.append(f"{name} {describe_exit(code)}")
            running.kill()
            self.supervisor.parts[name].running = start(self._program(name))

    def _program(self, name: str) -> Program:
        program = self._programs[name]
        if name != self.service or self.is_over:
            return program
        # Never at the first pass: what is delivered again gets through first, so that no message
        # looks like one that kills.
        failpoint = f"{self.window}:nth={2 + self.crashes % 3}"
        return replace(
            program, environment={**program.environment, "USERSTREAM_FAILPOINT": failpoint}
        )


@contextmanager
def running_single(*, offset: int, data: Path | None, terminal: Terminal) -> Iterator[SingleStack]:
    """Start everything with data of its own; end it and remove the data.

    Raises:
        LauncherError: Something could not be started.
    """
    with ephemeral_stack(
        "windows", offset=offset, data=data, settings=SETTINGS_OF_ALL, terminal=terminal
    ) as running:
        single = SingleStack(running.stack, running.broker, running.postgres, running.supervisor)
        running.supervisor.start(single.services())
        yield single
