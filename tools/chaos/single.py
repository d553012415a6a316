"""A private stack with one of each service, one of which can be made to die at a failpoint."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from common.failpoints import KILLED
from tools.launcher.broker import Broker
from tools.launcher.cache import RUN_DIRECTORY
from tools.launcher.invocation import Invocation
from tools.launcher.ports import require_free
from tools.launcher.postgres import Postgres
from tools.launcher.processes import Program, describe_exit, start
from tools.launcher.running import start_infrastructure
from tools.launcher.services import SETTINGS
from tools.launcher.stack import Stack, build_stack, listening_ports
from tools.launcher.supervisor import Supervisor
from tools.launcher.terminal import Terminal
from tools.testing.ephemeral_stack import free_offset, make_folder, remove_folder, without_addresses

LOOK_SECONDS = 0.05
"""Between two looks at the processes: who dies is started again at once."""

TOLD = {
    "CANARY_SECONDS": "0",
    "LEDGER_INTERVAL_SECONDS": "0",
    "RETRY_DELAY_MS": "1000",
}
"""What all are told: nothing happens but what the windows are about."""

ONE_MAIL = {"PREFETCH": "1"}
"""Of the sender: with several mails under way, the death at one would cut off the others."""


@dataclass(slots=True)
class Lone:
    """The stack, and the failpoint that is set in it."""

    stack: Stack
    broker: Broker
    postgres: Postgres
    supervisor: Supervisor
    service: str = ""
    """Which one is to die."""
    window: str = ""
    times: int = 0
    """How often it is to die; then it is started again without the failpoint."""
    deaths: int = 0
    unplanned: list[str] = field(default_factory=list)
    """Processes that ended although nobody had told them to."""
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
        """Whether the service has died as often as it was to."""
        return self.deaths >= self.times

    def services(self) -> list[Program]:
        """The five services, as they are told when nobody is to die."""
        for program in self.stack.services():
            more = ONE_MAIL if program.name == "sender" else {}
            told = replace(program, environment={**program.environment, **more})
            self._programs[program.name] = told
        return list(self._programs.values())

    async def arm(self, service: str, window: str, times: int) -> None:
        """Let a service die at a window, so many times, from now on."""
        self.service, self.window, self.times, self.deaths = service, window, times, 0
        await self._restart(service)

    async def disarm(self) -> None:
        """Let nobody die any more, also where nobody has."""
        if not self.is_over:
            self.times = self.deaths
            await self._restart(self.service)

    async def _restart(self, service: str) -> None:
        part = self.supervisor.parts[service]
        running, part.running = part.running, None  # not dead, only being stopped
        if running:
            await asyncio.to_thread(running.stop)
        part.running = start(self._told(service))

    async def watch(self) -> None:
        """Start again who died, for ever."""
        while True:
            self._look()
            await asyncio.sleep(LOOK_SECONDS)

    def _look(self) -> None:
        for name in SETTINGS:
            running = self.supervisor.parts[name].running
            if running is None or (code := running.exit_code) is None:
                continue
            if name == self.service and code == KILLED and not self.is_over:
                self.deaths += 1
            else:
                self.unplanned.append(f"{name} {describe_exit(code)}")
            running.kill()
            self.supervisor.parts[name].running = start(self._told(name))

    def _told(self, name: str) -> Program:
        program = self._programs[name]
        if name != self.service or self.is_over:
            return program
        # Never at the first pass: what is delivered again first gets through, as chance would
        # have it, and no message looks like one that kills.
        failpoint = f"{self.window}:nth={2 + self.deaths % 3}"
        return replace(
            program, environment={**program.environment, "USERSTREAM_FAILPOINT": failpoint}
        )


@asynccontextmanager
async def running_lone(
    *, offset: int, data: Path | None, terminal: Terminal
) -> AsyncIterator[Lone]:
    """Start everything with data of its own; end it and remove the data.

    Where an invariant is broken the caller raises, and the logs stay.

    Raises:
        LauncherError: Something could not be started.
    """
    offset = offset or free_offset()
    folder = make_folder(data or RUN_DIRECTORY, prefix="windows-")
    given = {**without_addresses(os.environ), **TOLD}
    given.pop("USERSTREAM_FAILPOINT", None)
    stack = await asyncio.to_thread(
        build_stack, offset=offset, data=folder, given=given, terminal=terminal
    )
    if stack.broker is None or stack.postgres is None:
        raise AssertionError("no address is handed on, so both are the stack's own")
    require_free(
        listening_ports(stack.given, offset), invocation=Invocation(offset=offset, data=folder)
    )
    supervisor = Supervisor(terminal=terminal, on_change=lambda _: None)
    single = Lone(stack, stack.broker, stack.postgres, supervisor)
    failed = True
    try:
        await asyncio.to_thread(start_infrastructure, stack, supervisor, terminal)
        await asyncio.to_thread(supervisor.start, single.services())
        watching = asyncio.create_task(single.watch())
        try:
            yield single
        finally:
            watching.cancel()
        failed = False
    finally:
        await asyncio.to_thread(_end, supervisor)
        await asyncio.to_thread(remove_folder, folder, keep_logs=failed)
        if failed:
            terminal.say(f"The logs are kept in {stack.logs}")


def _end(supervisor: Supervisor) -> None:
    """End everything: nothing of it is needed any more, so nothing is given time to finish."""
    for name, part in supervisor.parts.items():
        if part.running and name != "postgres":
            part.running.kill()
    # In good order: it would leave its shared memory behind.
    if (postgres := supervisor.parts.get("postgres")) and postgres.running:
        postgres.running.stop()
