"""Registers people at a steady rate, insists until it is promised, and keeps a journal."""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from uuid import UUID

import aio_pika
import aiohttp
from aio_pika.abc import AbstractConnection, AbstractExchange

from tools.chaos.journal import Journal

NAMES = ("Ada", "Grace", "Linus", "Zoë", "Jürgen", "Mária", "Nguyễn", "Jean-Luc")
SURNAMES = ("Lovelace", "Hopper", "O'Brien", "Müller", "Smith-Jones", "García")

EVERY_TWICE = 10
"""Every so manieth registration is sent twice."""

EVERY_FOREIGN = 6
"""Every so manieth comes over AMQP from a program that is not ours."""

EVERY_KNOWN = 25
"""One registration of so many is for an address that is registered already."""

EVERY_REUSED = 60
"""Every so manieth foreign one comes under the id of another person, who was there before."""

EVERY_MALFORMED = 5
"""One message that cannot be handled for so many registrations."""

EVERY_REPORT = 250
"""One report for so many registrations."""

ANSWER_SECONDS = 8.0
"""Until a request counts as unanswered: above the publisher's own deadline of 5 s."""

PAUSE_SECONDS = 0.25
"""Before a request that was not promised is made again."""

TYPE = "user.registration.submitted.v1"
ROUTE = "user.registration"

ACCEPTED = 202
LARGEST_BODY = 64 * 1024

AMQP_ERRORS = (
    aio_pika.exceptions.AMQPError,
    OSError,
    TimeoutError,
    RuntimeError,
    StopAsyncIteration,  # a broker that goes away amid the greeting
)
"""What comes of a connection that a fault broke."""


@dataclass(slots=True)
class Driver:
    """Everybody who registers, by HTTP and by AMQP."""

    seed: int
    number: int
    seconds: float
    frontends: Sequence[str]
    reports: Sequence[str]
    amqp_url: str
    journal: Journal = field(default_factory=Journal)
    begun: float = 0.0
    """On the monotonic clock."""
    _turn: "count[int]" = field(default_factory=count)
    _foreign: list[UUID] = field(default_factory=list)
    """Promised, published by the foreign program, oldest first."""
    _connection: AbstractConnection | None = None
    _exchange: AbstractExchange | None = None
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, *, give_up_after: float) -> None:
        """Send everything; return when each is promised, or the time for insisting is over.

        Args:
            give_up_after: Seconds after the last was due.
        """
        self.begun = time.monotonic()
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS)
        connector = aiohttp.TCPConnector(limit=0, force_close=False)
        try:
            async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
                tasks = [asyncio.create_task(work) async for work in self._due(session)]
                _, late = await asyncio.wait(tasks, timeout=give_up_after)
                for task in late:
                    task.cancel()
                done = await asyncio.gather(*tasks, return_exceptions=True)
        finally:
            if self._connection:
                with suppress(Exception):
                    await self._connection.close()
        for outcome in done:
            if isinstance(outcome, Exception):
                raise outcome

    async def _due(
        self, session: aiohttp.ClientSession
    ) -> AsyncIterator[Coroutine[Any, Any, None]]:
        """Each task at the moment when it is due."""
        chance = random.Random(f"userstream driver {self.seed}")
        for number in range(self.number):
            due = self.begun + number * self.seconds / self.number
            await asyncio.sleep(max(0.0, due - time.monotonic()))
            person = self._person(number, chance)
            if number % EVERY_REUSED == EVERY_REUSED - 1 and self._foreign:
                yield self._reuse(self._foreign.pop(0), person)
            elif number % EVERY_FOREIGN == EVERY_FOREIGN - 1:
                yield self._publish(UUID(int=chance.getrandbits(128), version=4), person, number)
            else:
                yield self._register(session, person, number)
            if number % EVERY_MALFORMED == 0:
                yield self._poison(UUID(int=chance.getrandbits(128), version=4), number, chance)
            if number % EVERY_REPORT == EVERY_REPORT // 2:
                yield self._report(session, f"chaos-{self.seed}-{number}")

    def _person(self, number: int, chance: random.Random) -> dict[str, str]:
        known = number > EVERY_KNOWN and number % EVERY_KNOWN == 0
        # Of a known address: another registration, of another name, for the same mailbox.
        whose = number - EVERY_KNOWN + 1 if known else number
        email = f"p{whose}.s{self.seed}@example.org"
        self.journal.attempted[email] = self.journal.attempted.get(email, 0) + 1
        name = "Else" if known else chance.choice(NAMES)
        return {"name": name, "surname": chance.choice(SURNAMES), "email": email}

    # -- HTTP -------------------------------------------------------------------------------

    async def _register(
        self, session: aiohttp.ClientSession, person: dict[str, str], number: int
    ) -> None:
        key = f"chaos-{self.seed}-{number}"
        self.journal.unpromised += 1
        first = await self._insist(session, "/api/registrations", person, key)
        self.journal.unpromised -= 1
        registration_id = UUID(first["registrationId"])
        self._promised(registration_id, person)
        if number % EVERY_TWICE == 0:
            self.journal.repeated += 1
            again = UUID(
                (await self._insist(session, "/api/registrations", person, key))["registrationId"]
            )
            if again != registration_id:
                self.journal.two_answers.append(again)

    async def _report(self, session: aiohttp.ClientSession, key: str) -> None:
        body = {"reportName": "chaos", "columns": ["id", "createdAt"]}
        answer = await self._insist(session, "/api/reports/generate", body, key)
        self.journal.reports.append(UUID(answer["reportId"]))

    async def _insist(
        self, session: aiohttp.ClientSession, path: str, body: object, key: str
    ) -> dict[str, str]:
        """Repeat with the same key until there is a promise; cancelled when time is over."""
        hosts = self.reports if "report" in path else self.frontends
        while True:
            url = hosts[next(self._turn) % len(hosts)] + path
            begun = time.monotonic()
            status, answer = await self._ask(session, url, body, key)
            took = time.monotonic() - begun
            statuses = self.journal.statuses
            statuses[status] = statuses.get(status, 0) + 1
            if status == ACCEPTED:
                if hosts is self.frontends:
                    self.journal.seconds.append(took)
                    self.journal.first_answers.append(time.time())
                return answer
            if status:
                self.journal.slowest_refusal = max(self.journal.slowest_refusal, took)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _ask(
        self, session: aiohttp.ClientSession, url: str, body: object, key: str
    ) -> tuple[int, dict[str, str]]:
        """Status and JSON of one request; status 0 where there was no answer."""
        try:
            async with session.post(url, json=body, headers={"Idempotency-Key": key}) as response:
                return response.status, await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError):
            return 0, {}

    # -- AMQP -------------------------------------------------------------------------------

    async def _publish(self, message_id: UUID, person: dict[str, str], number: int) -> None:
        """Register a person as a foreign program would, some twice under the same id."""
        body = json.dumps(person, ensure_ascii=False).encode()
        twice = number % EVERY_TWICE == 1
        self.journal.repeated += twice
        self.journal.unpromised += 1
        for _ in range(1 + twice):
            await self._until_confirmed(message_id, body, TYPE)
        self.journal.unpromised -= 1
        self._promised(message_id, person)
        self._foreign.append(message_id)

    async def _reuse(self, message_id: UUID, person: dict[str, str]) -> None:
        """Register a person under the id of another one."""
        body = json.dumps(person, ensure_ascii=False).encode()
        await self._until_confirmed(message_id, body, TYPE)
        self.journal.reused.add(message_id)

    async def _poison(self, message_id: UUID, number: int, chance: random.Random) -> None:
        body, kind, reason = _malformed(number // EVERY_MALFORMED, chance)
        self.journal.poisoned[message_id] = reason
        await self._until_confirmed(message_id, body, kind)
        self.journal.malformed[message_id] = reason

    async def _until_confirmed(self, message_id: UUID, body: bytes, kind: str) -> None:
        message = aio_pika.Message(
            body,
            message_id=str(message_id),
            type=kind,
            content_type="application/json",
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        while True:
            try:
                exchange = await self._connected()
                await exchange.publish(message, routing_key=kind, timeout=ANSWER_SECONDS)
            except (*AMQP_ERRORS, asyncio.CancelledError):
                # aio-pika cancels who waits for a confirm when its connection is closed.
                if (task := asyncio.current_task()) and task.cancelling():
                    raise
                self._exchange = None
                self.journal.insisted.add(message_id)
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return

    async def _connected(self) -> AbstractExchange:
        async with self._lock:
            if self._exchange is None:
                if self._connection:
                    with suppress(Exception):
                        await self._connection.close()
                self._connection = await aio_pika.connect(self.amqp_url, timeout=ANSWER_SECONDS)
                channel = await self._connection.channel(
                    publisher_confirms=True, on_return_raises=True
                )
                self._exchange = await channel.get_exchange(ROUTE, ensure=False)
            return self._exchange

    def _promised(self, registration_id: UUID, person: dict[str, str]) -> None:
        self.journal.accepted.setdefault(registration_id, person["email"])
        self.journal.accepted_at.setdefault(registration_id, time.time())


def _malformed(number: int, chance: random.Random) -> tuple[bytes, str, str]:
    """A body, its type, and the reason with which it must be dead-lettered."""
    person = {"name": "Ada", "surname": "Lovelace", "email": "poison@example.org"}
    kinds: tuple[tuple[bytes, str, str], ...] = (
        (b'{"name": "Ada", ', TYPE, "malformed"),
        (b"", TYPE, "malformed"),
        (chance.randbytes(200), TYPE, "malformed"),
        (json.dumps({**person, "name": 7}).encode(), TYPE, "malformed"),
        (json.dumps({**person, "email": "no-address"}).encode(), TYPE, "malformed"),
        (json.dumps({"name": "Ada"}).encode(), TYPE, "malformed"),
        (json.dumps(person).encode(), "user.registration.submitted.v99", "unknown_version"),
        (json.dumps({**person, "name": "A" * LARGEST_BODY}).encode(), TYPE, "too_large"),
    )
    return kinds[number % len(kinds)]
