"""The stack that is broken: two of each service, and a proxy in every connection."""

import asyncio
import signal
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from tools.chaos.disk import SmallDisk
from tools.chaos.faketime import Clock
from tools.chaos.mail_server import FaultyMailServer
from tools.chaos.proxy import Proxy
from tools.chaos.schedule import instances, instances_of, links_of, service_of
from tools.launcher.broker import Broker
from tools.launcher.ports import HOST
from tools.launcher.postgres import Postgres
from tools.launcher.processes import Program
from tools.launcher.services import READY, answers_ok, service_program
from tools.launcher.stack import Stack
from tools.launcher.supervisor import Part, Supervisor
from tools.launcher.terminal import Terminal
from tools.testing.ephemeral_stack import EphemeralStack, ephemeral_stack
from tools.testing.smtp_server import running_smtp_server

FURTHER_PORTS = 10
"""From a service's port to that of its second instance; offsets are 20 apart."""

LOOK_SECONDS = 0.05
"""Between two looks of the supervisor: one that ended is started again at once."""

SHORTENED = {
    "frontend": {"CANARY_SECONDS": "0"},
    "queue_receiver": {"RETRY_DELAY_MS": "1000", "LEDGER_LOST_AFTER_SECONDS": "30"},
    "report_generator": {"RETRY_DELAY_MS": "2000"},
    # Times six with each step: 10 ms, 60 ms, 0.4 s, 2 s, 13 s, 78 s. The drain outlasts each.
    "sender": {"RETRY_DELAY_MS": "10", "SMTP_CONNECTIONS": "10"},
}
"""Waits that take hours in earnest; the steps, their number and their order stay."""

CLOCKED = ("sender-2", "queue_receiver-2")
"""Instances whose clock can be set."""


@dataclass(slots=True, kw_only=True)
class Harness:
    """Everything that runs, and the handles by which it is broken."""

    stack: Stack
    broker: Broker
    postgres: Postgres
    supervisor: Supervisor
    mail_server: FaultyMailServer
    proxies: dict[str, Proxy]
    disk: SmallDisk
    clock: Clock
    numbers: dict[str, int]
    """Instance to its port."""
    locked: set[str] = field(default_factory=set)
    """Addresses of users whose rows a transaction held for a while."""
    logs_deleted: int = 0
    """How often the stream of registrations was deleted."""
    notes: list[str] = field(default_factory=list)
    """What this machine does not allow."""

    def part(self, name: str) -> Part:
        """A process by its name."""
        return self.supervisor.parts[name]

    def send(self, name: str, number: signal.Signals) -> int | None:
        """Signal a process; its id, or None if it is down at the moment."""
        part = self.part(name)
        if part.running is None or part.running.exit_code is not None:
            return None
        # Killed by us, it did not crash by itself: no longer and longer pauses.
        part.crashes = 0
        part.running.send(number)
        return part.running.pid

    def links(self, target: str) -> list[Proxy]:
        """The proxies of ``kind/instance``, or of all instances for ``kind/*``."""
        kind, _, whose = target.partition("/")
        return [
            proxy
            for name, proxy in self.proxies.items()
            if name == target or (whose == "*" and name.startswith(f"{kind}/"))
        ]

    def is_ready(self, instance: str) -> bool:
        """Whether an instance says that it can work (takes up to 2 s)."""
        return answers_ok(self.numbers[instance], READY)

    def urls(self, service: str) -> list[str]:
        """Where the instances of a service listen."""
        return [f"http://{HOST}:{self.numbers[name]}" for name in instances_of(service)]


@contextmanager
def stack_to_break(
    *, offset: int, data: Path | None, terminal: Terminal
) -> Iterator[EphemeralStack]:
    """Run a broker and a database with data of their own; end them and remove the data.

    Where an invariant is broken the caller raises, and the logs stay.

    Raises:
        LauncherError: Something could not be started.
    """
    # The mailbox is not started where a mail server is named; ours is behind the proxies.
    settings = {"SMTP_HOST": HOST, "SMTP_SECURE": "none"}
    supervisor = _QuietSupervisor(terminal=terminal, on_change=lambda _: None)
    with ephemeral_stack(
        "chaos",
        offset=offset,
        data=data,
        settings=settings,
        terminal=terminal,
        supervisor=supervisor,
    ) as running:
        yield running


@asynccontextmanager
async def running_harness(running: EphemeralStack, *, seed: int) -> AsyncIterator[Harness]:
    """Start every instance of every service, and what is between them; end all processes.

    Raises:
        LauncherError: Something could not be started.
    """
    folder, supervisor = running.stack.data, running.supervisor
    async with AsyncExitStack() as exits:
        mail_server = FaultyMailServer(seed=seed)
        await exits.enter_async_context(running_smtp_server(mail_server))
        where = _where(running.stack.ports)
        proxies = await _proxies(running, where, mail_server)
        for proxy in proxies.values():
            exits.push_async_callback(proxy.stop)
        disk = SmallDisk.made(folder / "reports")
        exits.callback(disk.remove)
        clock = await asyncio.to_thread(Clock.made, folder / "clock")
        exits.callback(clock.remove)
        exits.push_async_callback(asyncio.to_thread, running.end)
        harness = Harness(
            stack=running.stack,
            broker=running.broker,
            postgres=running.postgres,
            supervisor=supervisor,
            mail_server=mail_server,
            proxies=proxies,
            disk=disk,
            clock=clock,
            numbers=where,
            notes=[note for note in (disk.why_not, clock.why_not) if note],
        )
        await asyncio.to_thread(supervisor.start, _programs(harness))
        watching = asyncio.create_task(_watch(supervisor))
        exits.push_async_callback(_cancelled, watching)
        yield harness


def _where(numbers: Mapping[str, int]) -> dict[str, int]:
    return {
        name: numbers[service_of(name)] + FURTHER_PORTS * (int(name.partition("-")[2] or 1) - 1)
        for name in instances()
    }


async def _proxies(
    running: EphemeralStack, where: dict[str, int], mail_server: FaultyMailServer
) -> dict[str, Proxy]:
    """One proxy for each link of each instance."""
    databases = [where[name] for name in instances_of("database_service")]

    async def is_well(port: int) -> bool:
        return await answers_in_time(port)

    made: dict[str, Proxy] = {}
    for instance in instances():
        for kind in links_of(instance):
            name = f"{kind}/{instance}"
            backends = {
                "amqp": [running.broker.ports.amqp],
                "http": databases,
                "sql": [running.postgres.port],
                "smtp": [mail_server.port],
            }[kind]
            made[name] = Proxy(name, backends, is_well if kind == "http" else None)
            await made[name].start()
    return made


async def answers_in_time(port: int) -> bool:
    """Whether a service there answers ``GET /health/live`` within a second."""
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(HOST, port)
            writer.write(b"GET /health/live HTTP/1.1\r\nHost: [::1]\r\nConnection: close\r\n\r\n")
            status = await reader.readline()
            writer.close()
            return b" 200 " in status
    except (OSError, TimeoutError):
        return False


def _programs(harness: Harness) -> list[Program]:
    """Every instance of every service, told to speak through its proxies."""
    single = {program.name: program for program in harness.stack.services()}
    return [_instance(harness, name, single[service_of(name)]) for name in instances()]


def _instance(harness: Harness, name: str, single: Program) -> Program:
    service, port = service_of(name), harness.numbers[name]
    log = harness.stack.logs / f"{name}.log"
    told = dict(single.environment) | SHORTENED.get(service, {}) | {"PORT": str(port)}
    for kind in links_of(name):
        told |= _through(harness.proxies[f"{kind}/{name}"], kind, told)
    told = {key: value for key, value in told.items() if value}
    if name in CLOCKED:
        told |= harness.clock.environment
    made = service_program(
        service, python=harness.stack.python, environment=told, port=port, log=log
    )
    return replace(made, name=name)


def _through(proxy: Proxy, kind: str, told: dict[str, str]) -> dict[str, str]:
    match kind:
        case "amqp":
            url = urlsplit(told["QUEUE_URL"])
            login = url.netloc.rpartition("@")[0]
            return {"QUEUE_URL": url._replace(netloc=f"{login}@{HOST}:{proxy.port}").geturl()}
        case "http":
            return {"DATABASE_SERVICE_URL": f"http://{HOST}:{proxy.port}"}
        case "sql":
            return {"DB_HOST": HOST, "DB_PORT": str(proxy.port)}
        case _:
            return {"SMTP_HOST": HOST, "SMTP_PORT": str(proxy.port), "SMTP_SECURE": "none"}


class _QuietSupervisor(Supervisor):
    """A supervisor that does not print what the faults bring about."""

    def log(self, text: str) -> None:
        """Print nothing: parts are meant to crash here."""


async def _watch(supervisor: Supervisor) -> None:
    while True:
        supervisor.look(time.monotonic())
        await asyncio.sleep(LOOK_SECONDS)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
