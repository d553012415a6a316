"""A running stack as programs and people see it from outside."""

import asyncio
import json
import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg

from tests.amqp import eventually
from tools.testing.ephemeral_stack import free_offset, remove_folder

PROJECT = Path(__file__).parents[2]

CONNECTIONS = 32
"""Clients that post at the same time."""

START_ATTEMPTS = 5
"""Another program may hold a port of the offset that was picked."""

PATIENCE_SECONDS = 120.0
"""How long a client repeats a POST that was not promised."""


@dataclass(kw_only=True)
class Stack:
    """What ``./userstream up --json`` said."""

    options: list[str]
    services: dict[str, str]
    rabbitmq: dict[str, str]
    postgres: dict[str, str]
    mailbox: dict[str, Any]
    logs: str
    known: set[str] = field(default_factory=set)

    def launcher(self, *command: str) -> str:
        """Call the launcher for this stack; returns what it printed."""
        done = subprocess.run(
            [str(PROJECT / "userstream"), *command, *self.options],
            capture_output=True,
            text=True,
            check=True,
            timeout=300,
        )
        return done.stdout

    def status(self) -> dict[str, Any]:
        """What ``./userstream status --json`` says."""
        status: dict[str, Any] = json.loads(self.launcher("status", "--json"))
        return status

    def kill(self, service: str) -> int:
        """End a service as a crash would; returns how often it had been restarted before."""
        state = self.status()["services"][service]
        os.kill(state["pid"], signal.SIGKILL)
        restarts: int = state["restarts"]
        return restarts

    def freeze(self, name: str) -> None:
        """Stop a part without closing its connections, as a machine that hangs would."""
        self._signal(name, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let a frozen part go on."""
        self._signal(name, signal.SIGCONT)

    def _signal(self, name: str, number: signal.Signals) -> None:
        status = self.status()
        for pid in _tree((status["services"] | status["parts"])[name]["pid"]):
            os.kill(pid, number)

    async def rows(self, query: str, *arguments: object) -> list[Any]:
        """Ask the database directly."""
        connection = await asyncpg.connect(self.postgres["dsn"])
        try:
            return list(await connection.fetch(query, *arguments))
        finally:
            await connection.close()

    async def mails(self) -> list[dict[str, Any]]:
        """Every mail that was caught."""
        found: list[dict[str, Any]] = []
        async with aiohttp.ClientSession() as session:
            while True:
                url = f"{self.mailbox['web']}/api/v1/messages?limit=1000&start={len(found)}"
                async with session.get(url) as response:
                    page = (await response.json())["messages"]
                if not page:
                    return found
                found += page

    async def mails_by_address(self) -> dict[str, list[str]]:
        """Address to the Message-IDs of its mails."""
        by_address: dict[str, list[str]] = {}
        for mail in await self.mails():
            by_address.setdefault(mail["To"][0]["Address"], []).append(mail["MessageID"])
        return by_address

    async def queue_depths(self) -> dict[str, int]:
        """Messages in each queue that is not empty, ready or unacknowledged."""
        url = f"{self.rabbitmq['management']}/api/queues"
        login = aiohttp.encode_basic_auth(self.rabbitmq["user"], self.rabbitmq["password"])
        async with (
            aiohttp.ClientSession(headers={"Authorization": login}) as session,
            session.get(url) as response,
        ):
            queues = await response.json()
        return {
            queue["name"]: queue["messages"]
            for queue in queues
            if queue.get("messages") and queue["type"] != "stream"  # which is never empty
        }

    async def drained(self, seconds: float) -> None:
        """Wait until no message is under way and every stored registration has its mail."""

        left: dict[str, int] = {}

        async def empty() -> bool:
            # Twice: the management API's figures are some seconds old.
            for _ in range(2):
                left.clear()
                left.update(await self.queue_depths(), unmailed=await self._unmailed())
                if any(left.values()):
                    return False
                await asyncio.sleep(1)
            return True

        try:
            await eventually(empty, "draining", seconds)
        except AssertionError as error:
            raise AssertionError(f"After {seconds:g} s there is still left: {left}") from error

    async def _unmailed(self) -> int:
        [row] = await self.rows(
            """
            SELECT count(*) FILTER (WHERE n.status IN ('sending', 'deferred', 'unsure')
                                       OR n.message_id IS NULL) AS count
              FROM registrations AS r
              LEFT JOIN notification_logs AS n USING (registration_id)
            """
        )
        return int(row["count"])

    async def stored_once(self, accepted: dict[str, str]) -> None:
        """Make sure that every accepted registration (id to address) is one row and one user."""
        rows = await self.rows(
            """
            SELECT r.registration_id::text AS id, lower(u.email) AS email
              FROM registrations AS r
              JOIN users AS u ON u.id = r.user_id
             WHERE r.registration_id = ANY($1::uuid[])
            """,
            [UUID(registration_id) for registration_id in accepted],
        )
        assert {row["id"]: row["email"] for row in rows} == accepted
        [users] = await self.rows(
            "SELECT count(*) FROM users WHERE lower(email) = ANY($1::text[])",
            list(set(accepted.values())),
        )
        assert users["count"] == len(set(accepted.values()))

    async def all_ready(self) -> None:
        """Wait until every service calls itself ready."""

        def ready() -> bool:
            return all(service["ready"] for service in self.status()["services"].values())

        await eventually(ready, "every service being ready", PATIENCE_SECONDS)


@contextmanager
def running(data: Path, **settings: str) -> Iterator[Stack]:
    """A stack with ports of its own; stopped at the end, and its data removed."""
    stack = _started(data, settings)
    try:
        yield stack
    finally:
        stack.launcher("down")
        remove_folder(data, keep_logs=False)


def _started(data: Path, settings: Mapping[str, str]) -> Stack:
    failures = []
    for _ in range(START_ATTEMPTS):
        options = ["--port-offset", str(free_offset()), "--data", str(data)]
        up = subprocess.run(
            [str(PROJECT / "userstream"), "up", "--detach", "--json", *options],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
        if up.returncode == 0:
            where = json.loads(up.stdout)
            where.pop("waiting", None)  # on a busy machine; every test waits for what it needs
            return Stack(options=options, **where)
        failures.append(up.stderr[-2000:])
    raise AssertionError("The stack did not start:\n" + "\n".join(failures))


def _tree(pid: int) -> list[int]:
    """A process and all below it."""
    table = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True, check=True)
    children: dict[int, list[int]] = {}
    for line in table.stdout.splitlines():
        child, parent = map(int, line.split())
        children.setdefault(parent, []).append(child)
    found = [pid]
    for each in found:
        found += children.get(each, [])
    return found


def addresses(count: int) -> list[str]:
    """Addresses that nobody else uses."""
    run = uuid4().hex[:8]
    return [f"person-{number}-{run}@example.org" for number in range(count)]


async def register(stack: Stack, addresses: list[str]) -> dict[str, str]:
    """Register everybody, repeating what was not promised with the same key.

    Returns:
        Registration id to address, for each 202.
    """
    accepted: dict[str, str] = {}
    waiting = list(addresses)

    async def client(session: aiohttp.ClientSession) -> None:
        while waiting:
            address = waiting.pop()
            accepted[await _register(session, stack, address)] = address

    async with aiohttp.ClientSession() as session:
        await asyncio.gather(*(client(session) for _ in range(CONNECTIONS)))
    return accepted


async def _register(session: aiohttp.ClientSession, stack: Stack, address: str) -> str:
    body = {"name": "Ada", "surname": "Lovelace", "email": address}
    key = {"Idempotency-Key": str(uuid4())}
    url = f"{stack.services['frontend']}/api/registrations"
    outcomes: Counter[str] = Counter()
    async with asyncio.timeout(PATIENCE_SECONDS):
        while True:
            try:
                async with session.post(url, json=body, headers=key) as response:
                    answer = await response.json(content_type=None)
                    assert response.status in (202, 503), answer
                    if response.status == 202:
                        registration_id: str = answer["registrationId"]
                        return registration_id
            except (aiohttp.ClientError, OSError) as error:
                outcomes[type(error).__name__] += 1
            await asyncio.sleep(0.2)
