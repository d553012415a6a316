"""Makes the faults happen, mends them, and notes when each began and ended."""

import asyncio
import http.client
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import asyncpg

from common.contracts.topology import USER_REGISTRATION, definitions
from tools.bench.procfs import all_processes, family
from tools.chaos.harness import Harness
from tools.chaos.proxy import Mode
from tools.chaos.schedule import Fault, Kind, instances_of
from tools.launcher.errors import LauncherError

READY_SECONDS = 60.0
"""How long a service that was told to stop may take until its successor is ready."""

POLL_SECONDS = 0.03

MEMORY_LIMIT = "0.4"
"""RabbitMQ's default share of the memory at which it blocks publishers."""

LOG = f"/api/queues/%2F/{USER_REGISTRATION.log}"

LOCK_NEWEST_USERS = """
      SELECT lower(email) AS email
        FROM users
    ORDER BY id DESC
       LIMIT 10
         FOR UPDATE SKIP LOCKED
"""
"""Their mails are just being claimed; and some of them register again."""


@dataclass(slots=True)
class Happened:
    """A fault as it was injected; instants in seconds since 1970."""

    fault: Fault
    begun: float
    mended: float = 0.0
    """When it was over; 0 while it is not."""
    ready_again: float | None = None
    """Of a kill: when the instance that took the place said that it can work."""
    skipped: str = ""
    """Why it did not happen."""


@dataclass(slots=True)
class Injector:
    """Follows the schedule."""

    harness: Harness
    faults: Sequence[Fault]
    happened: list[Happened] = field(default_factory=list)
    _watching: set[asyncio.Task[None]] = field(default_factory=set)

    async def run(self, begun: float) -> None:
        """Inject every fault when it is due, each in a task of its own; return when all ended."""
        async with asyncio.TaskGroup() as tasks:
            for fault in self.faults:
                await asyncio.sleep(max(0.0, begun + fault.at - time.monotonic()))
                tasks.create_task(self._inject(fault))

    async def heal(self) -> None:
        """End all faults that may still be there."""
        harness = self.harness
        for proxy in harness.proxies.values():
            proxy.set(Mode.PASS)
        for name in harness.supervisor.parts:
            harness.send(name, signal.SIGCONT)
        harness.disk.clear()
        harness.clock.jump(0)
        harness.mail_server.misbehaves = False
        await self._watermark(MEMORY_LIMIT)
        await asyncio.to_thread(self._import_definitions)

    async def _inject(self, fault: Fault) -> None:
        happened = Happened(fault, time.time())
        self.happened.append(happened)
        try:
            await self._do(fault, happened)
        finally:
            happened.mended = time.time()

    async def _do(  # noqa: C901 - one case for each kind
        self, fault: Fault, happened: Happened
    ) -> None:
        match fault.kind:
            case Kind.KILL:
                await self._kill(fault.target, happened)
            case Kind.FREEZE:
                self._signal(fault.target, signal.SIGSTOP, happened)
                await asyncio.sleep(fault.lasts)
                self.harness.send(fault.target, signal.SIGCONT)
            case Kind.BROKER_RESTART | Kind.BROKER_KILL:
                gentle = fault.kind is Kind.BROKER_RESTART
                number = signal.SIGTERM if gentle else signal.SIGKILL
                await self._part("rabbitmq", number, happened)
            case Kind.POSTGRES_IMMEDIATE:
                # What ``pg_ctl stop -m immediate`` sends.
                await self._part("postgres", signal.SIGQUIT, happened)
            case Kind.POSTGRES_BACKEND_KILL:
                await self._kill_backend(happened)
            case Kind.LINK:
                await self._break_link(fault)
            case Kind.MEMORY_ALARM:
                await self._watermark("0")
                await asyncio.sleep(fault.lasts)
                await self._watermark(MEMORY_LIMIT)
            case Kind.ROLLING_RESTART:
                await self._roll(fault.target)
            case Kind.DISK_FULL:
                await self._for_a_while(
                    self.harness.disk.fill, self.harness.disk.clear, fault, happened
                )
            case Kind.ROW_LOCK:
                await self._lock_rows(fault, happened)
            case Kind.LOG_DELETED:
                await self._delete_log(fault, happened)
            case Kind.CLOCK_JUMP:
                clock = self.harness.clock
                await self._for_a_while(
                    lambda: clock.jump(fault.amount), lambda: clock.jump(0), fault, happened
                )

    def _signal(self, name: str, number: signal.Signals, happened: Happened) -> int | None:
        pid = self.harness.send(name, number)
        if pid is None:
            happened.skipped = "it was down already"
        return pid

    async def _kill(self, instance: str, happened: Happened) -> None:
        """Kill -9, and wait until the instance that takes the place can work."""
        pid = self._signal(instance, signal.SIGKILL, happened)
        if pid and await self._ready_again(instance, pid):
            happened.ready_again = time.time()

    async def _ready_again(self, instance: str, killed: int) -> bool:
        deadline = time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            running = self.harness.part(instance).running
            lives = running and running.pid != killed and running.exit_code is None
            if lives and await asyncio.to_thread(self.harness.is_ready, instance):
                return True
            await asyncio.sleep(POLL_SECONDS)
        return False

    async def _part(self, name: str, number: signal.Signals, happened: Happened) -> None:
        """End the broker or the database, and wait until the next one serves."""
        part = self.harness.part(name)
        if self._signal(name, number, happened) is None:
            return
        before, deadline = part.restarts, time.monotonic() + READY_SECONDS
        while time.monotonic() < deadline:
            if part.restarts > before and await asyncio.to_thread(part.program.is_ready):
                happened.ready_again = time.time()
                return
            await asyncio.sleep(POLL_SECONDS)

    async def _kill_backend(self, happened: Happened) -> None:
        """Kill -9 one of PostgreSQL's processes; it restarts them all, for safety's sake."""
        harness = self.harness
        try:
            connection = await asyncpg.connect(harness.postgres.dsn(), timeout=2)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            happened.skipped = "PostgreSQL was down already"
            return
        try:
            pid = await connection.fetchval(
                "SELECT pid FROM pg_stat_activity"
                " WHERE application_name = 'userstream database_service'"
                " ORDER BY query_start DESC LIMIT 1"
            )
        finally:
            await connection.close()
        server = harness.part("postgres").running
        if not server or not pid or pid not in family(server.pid, all_processes()):
            happened.skipped = "there was no connection"
            return
        os.kill(pid, signal.SIGKILL)

    async def _lock_rows(self, fault: Fault, happened: Happened) -> None:
        """Hold the rows of the newest users in a transaction, as a person in psql does."""
        harness = self.harness
        try:
            connection = await asyncpg.connect(harness.postgres.dsn(), timeout=2)
        except (OSError, TimeoutError, asyncpg.PostgresError):
            happened.skipped = "PostgreSQL was down"
            return
        try:
            async with connection.transaction():
                rows = await connection.fetch(LOCK_NEWEST_USERS)
                harness.locked |= {row["email"] for row in rows}
                await asyncio.sleep(fault.lasts)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            pass  # PostgreSQL was ended meanwhile, and the locks with it
        finally:
            connection.terminate()

    async def _delete_log(self, fault: Fault, happened: Happened) -> None:
        """Delete the stream of registrations and make it anew, as a person who tidies up does.

        A broker that is killed soon after may lose a new queue (docs/reliability.md, W8), so it
        is made again until that cannot be.
        """
        until = time.monotonic() + fault.lasts
        is_deleted = False
        while time.monotonic() < until:
            try:
                if not is_deleted:
                    await asyncio.to_thread(self.harness.broker.management, "DELETE", LOG)
                    is_deleted = True
                    self.harness.logs_deleted += 1
                await asyncio.to_thread(self._import_definitions)
            except (LauncherError, OSError, http.client.HTTPException):
                pass  # it is away, for another reason
            await asyncio.sleep(1)
        if not is_deleted:
            happened.skipped = "the broker was down"

    def _import_definitions(self) -> None:
        self.harness.broker.management("POST", "/api/definitions", definitions())

    async def _break_link(self, fault: Fault) -> None:
        proxies = self.harness.links(fault.target)
        for proxy in proxies:
            proxy.set(Mode(fault.mode), fault.amount)
        await asyncio.sleep(fault.lasts)
        for proxy in proxies:
            proxy.set(Mode.PASS)

    async def _roll(self, service: str) -> None:
        """Stop each instance in good order, one after the other."""
        for instance in instances_of(service):
            pid = self.harness.send(instance, signal.SIGTERM)
            if pid:
                await self._ready_again(instance, pid)

    async def _for_a_while(
        self,
        begin: Callable[[], bool],
        end: Callable[[], object],
        fault: Fault,
        happened: Happened,
    ) -> None:
        if not begin():
            happened.skipped = "this machine does not allow it"
            return
        await asyncio.sleep(fault.lasts)
        end()

    async def _watermark(self, share: str) -> None:
        """Set the share of the memory at which the broker blocks publishers; 0: at once."""
        try:
            await asyncio.to_thread(self.harness.broker.ctl, "set_vm_memory_high_watermark", share)
        except LauncherError:
            if share != "0":  # a broker that starts again has its own setting
                await asyncio.sleep(1)
