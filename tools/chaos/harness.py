"""The private stack that is broken: two of each service, and a proxy in every link."""

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

from tools.chaos.disk import SmallDisk
from tools.chaos.faketime import Clock
from tools.chaos.mail_server import FaultyMailServer
from tools.chaos.proxy import Proxy
from tools.chaos.schedule import instances, instances_of, links_of, service_of
from tools.launcher.broker import Broker
from tools.launcher.cache import RUN_DIRECTORY
from tools.launcher.invocation import Invocation
from tools.launcher.ports import HOST, ports, require_free
from tools.launcher.postgres import Postgres
from tools.launcher.processes import Program
from tools.launcher.running import start_infrastructure
from tools.launcher.services import READY, answers_ok, service_program
from tools.launcher.stack import Stack, build_stack
from tools.launcher.supervisor import Part, Supervisor
from tools.launcher.terminal import Terminal
from tools.testing.ephemeral_stack import free_offset, make_folder, remove_folder, without_addresses

FURTHER_PORTS = 10
"""From a service's port to that of its second instance; offsets are 20 apart."""

LOOK_SECONDS = 0.05
"""Between two looks of the supervisor: who dies is started again at once."""

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
        # Killed by us, it shows no sign of dying by itself: no longer and longer pauses.
        part.deaths = 0
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


@asynccontextmanager
async def running_arena(
    *, seed: int, offset: int, data: Path | None, terminal: Terminal
) -> AsyncIterator[Harness]:
    """Start everything with data of its own; end it and remove the data.

    Where an invariant is broken the caller raises, and the logs stay.

    Raises:
        LauncherError: Something could not be started.
    """
    offset = offset or free_offset()
    folder = make_folder(data or RUN_DIRECTORY, prefix="chaos-")
    keep_logs = True
    try:
        async with AsyncExitStack() as running:
            yield await _start(running, seed=seed, offset=offset, folder=folder, terminal=terminal)
        keep_logs = False
    except Exception:
        terminal.say(f"The logs are kept in {folder / 'logs'}")
        raise
    finally:
        await asyncio.to_thread(remove_folder, folder, keep_logs=keep_logs)


async def _start(
    running: AsyncExitStack, *, seed: int, offset: int, folder: Path, terminal: Terminal
) -> Harness:
    numbers = ports(offset)
    given = without_addresses(os.environ)
    # The mailbox is not started where a mail server is named; ours is behind the proxies.
    given |= {"SMTP_HOST": HOST, "SMTP_SECURE": "none"}
    stack = await asyncio.to_thread(
        build_stack, offset=offset, data=folder, given=given, terminal=terminal
    )
    if stack.broker is None or stack.postgres is None:
        raise AssertionError("no address is handed on, so both are the stack's own")
    mail_server = FaultyMailServer(seed=seed)
    await mail_server.start()
    running.push_async_callback(mail_server.stop)
    where = _where(numbers)
    proxies = await _proxies(stack.broker, stack.postgres, where, mail_server)
    for proxy in proxies.values():
        running.push_async_callback(proxy.stop)
    require_free(where, invocation=Invocation(offset=offset, data=folder))
    disk = SmallDisk.made(folder / "reports")
    clock = await asyncio.to_thread(Clock.made, folder / "clock")
    supervisor = _QuietSupervisor(terminal=terminal, on_change=lambda _: None)
    harness = Harness(
        stack=stack,
        broker=stack.broker,
        postgres=stack.postgres,
        supervisor=supervisor,
        mail_server=mail_server,
        proxies=proxies,
        disk=disk,
        clock=clock,
        numbers=where,
        notes=[note for note in (disk.why_not, clock.why_not) if note],
    )
    running.push_async_callback(_end, harness)
    await asyncio.to_thread(start_infrastructure, stack, supervisor, terminal)
    await asyncio.to_thread(supervisor.start, _programs(harness))
    watching = asyncio.create_task(_watch(supervisor))
    running.push_async_callback(_cancelled, watching)
    return harness


def _where(numbers: dict[str, int]) -> dict[str, int]:
    return {
        name: numbers[service_of(name)] + FURTHER_PORTS * (int(name.partition("-")[2] or 1) - 1)
        for name in instances()
    }


async def _proxies(
    broker: Broker, postgres: Postgres, where: dict[str, int], mail_server: FaultyMailServer
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
                "amqp": [broker.ports.amqp],
                "http": databases,
                "sql": [postgres.port],
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
    """A supervisor that keeps to itself what the faults bring about."""

    def log(self, text: str) -> None:
        """Say nothing: a part that dies is what this is for."""


async def _watch(supervisor: Supervisor) -> None:
    while True:
        supervisor.look(time.monotonic())
        await asyncio.sleep(LOOK_SECONDS)


async def _cancelled(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def _end(harness: Harness) -> None:
    """End everything: nothing of it is needed any more, so nothing is given time to finish."""
    parts = harness.supervisor.parts
    for name, part in parts.items():
        if part.running and name != "postgres":
            await asyncio.to_thread(part.running.kill)
    # In good order: it would leave its shared memory behind.
    if (postgres := parts.get("postgres")) and postgres.running:
        await asyncio.to_thread(postgres.running.stop)
    harness.disk.remove()
    harness.clock.remove()
