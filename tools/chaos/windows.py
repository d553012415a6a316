"""``./userstream chaos --windows``: ends a process at each window in turn, and counts by ids.

For each window of docs/reliability.md that has a failpoint: the service is killed there so many
times, while people register (or ask for reports, or dead letters are sent back); then everything
comes to rest, and everything that was promised must be there once.
"""

import asyncio
import json
import time
from argparse import Namespace
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import aiohttp
import asyncpg

from common.contracts.topology import ROUTES, USER_REGISTRATION
from common.failpoints import WINDOWS
from tools.chaos.interruptible import run_interruptibly
from tools.chaos.single import SingleStack, running_single
from tools.launcher.errors import LauncherError
from tools.launcher.terminal import STDERR, Terminal

CLIENTS = 2
"""Clients that register at the same time."""

PAUSE_SECONDS = 0.1
"""Of each client after a registration: enough to be in the middle of something, no flood."""

REACH_SECONDS = 30.0
"""Longest time for one crash; starting a service again takes one or two."""

REST_SECONDS = 90.0
"""Longest time until all is done after the last crash: three leases of a mail."""

ANSWER_SECONDS = 10.0

PERSON = {"name": "Ada", "surname": "Lovelace"}


@dataclass(slots=True)
class Promises:
    """What was promised while one window was tried."""

    registrations: dict[UUID, str] = field(default_factory=dict)
    """Id to address."""
    tried: set[str] = field(default_factory=set)
    """Every address that was given, promised or not."""
    reports: dict[UUID, str] = field(default_factory=dict)
    """Id to the address that gets the mail."""


@dataclass(slots=True)
class Result:
    """What was found at one window."""

    window: str
    service: str
    crashes: int = 0
    promised: int = 0
    duplicate_mails: int = 0
    seconds: float = 0.0
    broken: list[str] = field(default_factory=list)
    """What was lost, stored or mailed twice, or left; empty if every promise was kept."""

    def line(self) -> str:
        """For the terminal."""
        outcome = "kept" if not self.broken else f"BROKEN: {'; '.join(self.broken[:5])}"
        return (
            f"{self.window:>4}  {self.service:<17} crashes={self.crashes:<3} "
            f"promised={self.promised:<5} dup_mail={self.duplicate_mails:<3} "
            f"{self.seconds:5.1f} s  {outcome}"
        )

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "window": self.window,
            "means": WINDOWS[self.window],
            "service": self.service,
            "crashes": self.crashes,
            "promised": self.promised,
            "duplicateMails": self.duplicate_mails,
            "seconds": round(self.seconds, 1),
            "broken": self.broken,
        }


def main(given: Namespace) -> int:
    """Try every window, print what was found, and return 0 if every promise was kept."""
    try:
        results = run_windows(given, STDERR)
    except BrokenWindowsError as error:
        results = error.results
    except LauncherError as error:
        STDERR.fail(str(error))
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        STDERR.say("\nStopped; everything that was started is ended.")
        return 1
    holds = not any(result.broken for result in results)
    if given.json:
        print(json.dumps({"holds": holds, "windows": [each.as_json() for each in results]}))
    else:
        print(summary(results))
    return 0 if holds else 1


def summary(results: Sequence[Result]) -> str:
    """The promise line."""
    broken = [result.window for result in results if result.broken]
    return (
        f"windows={len(results)} crashes={sum(result.crashes for result in results)} "
        f"promised={sum(result.promised for result in results)} "
        f"dup_mail={sum(result.duplicate_mails for result in results)} "
        f"broken={','.join(broken) or 0}"
    )


def run_windows(given: Namespace, terminal: Terminal) -> list[Result]:
    """Try every window, or those that are named, on one stack.

    Raises:
        BrokenWindowsError: A promise was broken.
        LauncherError: The stack could not be started.
    """
    with running_single(offset=given.port_offset, data=given.data, terminal=terminal) as single:
        results = run_interruptibly(_run_windows(given, single, terminal))
        if any(result.broken for result in results):
            raise BrokenWindowsError(results)
        return results


async def _run_windows(given: Namespace, single: SingleStack, terminal: Terminal) -> list[Result]:
    results = []
    watching = asyncio.create_task(single.watch())
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(ANSWER_SECONDS)) as session:
            for window in given.only or WINDOWS:
                result = await _Trial(single, session, window, given.times).run()
                terminal.say(result.line())
                results.append(result)
    finally:
        watching.cancel()
    return results


class BrokenWindowsError(Exception):
    """A promise was broken at a window; the logs are kept."""

    def __init__(self, results: list[Result]) -> None:
        super().__init__("A promise was broken.")
        self.results = results


class _Trial:
    """One window: the service killed there, what drives the stack to it, and what must hold."""

    def __init__(
        self, single: SingleStack, session: aiohttp.ClientSession, window: str, times: int
    ) -> None:
        self._single = single
        self._session = session
        self._window = window
        self._service, self._drive = _DRIVEN[window]
        self._times = times
        self._promises = Promises()
        self._is_over = False
        self._result = Result(window, self._service)

    async def run(self) -> Result:
        begun = time.monotonic()
        self._single.unplanned.clear()
        await self._single.arm(self._service, self._window, self._times)
        driving = [asyncio.create_task(work) for work in self._drive(self)]
        reached = await self._wait_for_crashes(driving)
        self._is_over = True
        done, late = await asyncio.wait(driving, timeout=REACH_SECONDS)
        for task in late:
            task.cancel()
        result = self._result
        result.crashes = self._single.crashes
        if not reached:
            result.broken.append(f"killed {self._single.crashes} times of {self._times}")
            await self._single.disarm()
        result.broken += [repr(error) for task in done if (error := task.exception())]
        result.broken += ["a request is still not answered with 202"] * len(late)
        left = await self._at_rest()
        result.broken += left + await self._check() + self._single.unplanned
        result.promised = len(self._promises.registrations) + len(self._promises.reports)
        result.seconds = time.monotonic() - begun
        return result

    async def _wait_for_crashes(self, driving: list[asyncio.Task[None]]) -> bool:
        """Wait for all of them; False if the next one does not come."""
        seen, since = 0, time.monotonic()
        while not self._single.is_over:
            if self._single.crashes > seen:
                seen, since = self._single.crashes, time.monotonic()
                await self._end_leases()
            if time.monotonic() - since > REACH_SECONDS or all(task.done() for task in driving):
                return False
            await asyncio.sleep(0.02)
        await self._end_leases()
        return True

    async def _end_leases(self) -> None:
        """End the half minute for which a mail is kept for the sender that was just killed."""
        if self._service != "sender":
            return
        connection = await asyncpg.connect(self._single.postgres.dsn())
        try:
            await connection.execute(
                "UPDATE notification_logs SET lease_until = now() WHERE status = 'sending'"
            )
        finally:
            await connection.close()

    # -- driving ----------------------------------------------------------------------------

    async def register(self) -> None:
        """Register one person after the other, each until it is promised."""
        while not self._is_over:
            address = f"{self._window}-{uuid4().hex}@example.org"
            self._promises.tried.add(address)
            answer = await self._insist(
                f"{self._single.url('frontend')}/api/registrations",
                {**PERSON, "email": address},
            )
            self._promises.registrations[UUID(answer["registrationId"])] = address
            await asyncio.sleep(PAUSE_SECONDS)

    async def ask_for_reports(self) -> None:
        """Ask for one report after the other, each until it is promised."""
        while not self._is_over:
            address = f"{self._window}-{uuid4().hex}@example.org"
            answer = await self._insist(
                f"{self._single.url('report_generator')}/api/reports/generate",
                {"reportName": "windows", "recipient": address},
            )
            self._promises.reports[UUID(answer["reportId"])] = address
            await asyncio.sleep(PAUSE_SECONDS)

    async def redrive(self) -> None:
        """Put registrations among the dead letters, and send them back again and again."""
        connection = await aio_pika.connect(self._single.broker.url())
        async with connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            dead = await channel.get_exchange(USER_REGISTRATION.dead_letter_exchange, ensure=False)
            for _ in range(5 * self._times + 10):
                await self._bury(dead)
        while not self._is_over or await self._dead_letters():
            url = f"{self._single.url('queue_receiver')}/api/dead-letters/redrive"
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                body = {"route": USER_REGISTRATION.name, "rate": 1000}
                async with self._session.post(url, json=body) as response:
                    await response.read()
            await asyncio.sleep(0.2)

    async def _bury(self, dead: aio_pika.abc.AbstractExchange) -> None:
        message_id, address = uuid4(), f"{self._window}-{uuid4().hex}@example.org"
        self._promises.tried.add(address)
        message = aio_pika.Message(
            b'{"name": "Ada", "surname": "Lovelace", "email": "%s"}' % address.encode(),
            delivery_mode=2,
            message_id=str(message_id),
            headers={"x-error-code": "unexpected_error", "x-failed-attempts": 1},
        )
        await dead.publish(message, USER_REGISTRATION.name)
        self._promises.registrations[message_id] = address

    async def _insist(self, url: str, body: Mapping[str, str]) -> dict[str, Any]:
        """Repeat a POST with the same key until it is answered with 202."""
        key = {"Idempotency-Key": str(uuid4())}
        while True:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with self._session.post(url, json=body, headers=key) as response:
                    answer = await response.json(content_type=None)
                    if response.status == 202:  # noqa: PLR2004
                        promised: dict[str, Any] = answer
                        return promised
                    if response.status < 500:  # noqa: PLR2004
                        raise RuntimeError(f"{response.status}: {answer}")
            await asyncio.sleep(PAUSE_SECONDS)

    # -- what must hold ---------------------------------------------------------------------

    async def _at_rest(self) -> list[str]:
        """Wait until all is done; what is not, in words."""
        deadline = time.monotonic() + REST_SECONDS
        left = ["not checked yet"]
        while left and time.monotonic() < deadline:
            await asyncio.sleep(0.5)
            left = await self._unfinished()
        return left

    async def _unfinished(self) -> list[str]:
        registrations, reports = await self._stored()
        promises = self._promises
        statuses = {row["registration_id"]: row["status"] for row in registrations}
        left = [
            f"registration {each}: {statuses.get(each, 'lost')}"
            for each in promises.registrations
            if statuses.get(each) != "sent"
        ]
        ready = {row["report_id"] for row in reports if row["status"] == "ready"}
        left += [f"report {each} is not ready" for each in promises.reports if each not in ready]
        mailed = {address for _, address in await self._mails()}
        left += [
            f"no mail about report {k}" for k, a in promises.reports.items() if a not in mailed
        ]
        if dead := await self._dead_letters():
            left.append(f"{dead} dead letters")
        return left

    async def _check(self) -> list[str]:
        """What breaks a promise, once all is at rest."""
        registrations, reports = await self._stored()
        promises, broken = self._promises, []
        addresses = Counter(row["email"] for row in registrations)
        broken += [f"{each}: stored {n} times" for each, n in addresses.items() if n > 1]
        broken += [f"{each}: never registered" for each in addresses if each not in promises.tried]
        for row in registrations:
            if promises.registrations.get(row["registration_id"], row["email"]) != row["email"]:
                broken.append(f"{row['registration_id']}: another person's")
        records = Counter(row["report_id"] for row in reports)
        broken += [
            f"report {each}: {records[each]} records"
            for each in promises.reports
            if records[each] != 1
        ]
        broken += await asyncio.to_thread(_wrong_files, self._single, reports, promises)
        return broken + await self._check_mails()

    async def _check_mails(self) -> list[str]:
        mails = await self._mails()
        by_address: dict[str, set[str]] = {}
        for message_id, address in mails:
            by_address.setdefault(address, set()).add(message_id)
        broken = [
            f"{a}: {len(ids)} different mails" for a, ids in by_address.items() if len(ids) > 1
        ]
        wanted = {*self._promises.registrations.values(), *self._promises.reports.values()}
        broken += [f"{address}: no mail" for address in wanted if address not in by_address]
        self._result.duplicate_mails = len(mails) - len(set(mails))
        # SMTP cannot prevent it there: RFC 5321, 4.5.3.2.6.
        allowed = self._single.crashes if self._window == "w24" else 0
        if self._result.duplicate_mails > allowed:
            broken.append(f"{self._result.duplicate_mails} mails sent twice, {allowed} explained")
        return broken

    async def _stored(self) -> tuple[list[Any], list[Any]]:
        """This window's registrations with their mails, and its reports."""
        connection = await asyncpg.connect(self._single.postgres.dsn())
        try:
            registrations = await connection.fetch(
                """
                SELECT registrations.registration_id, users.email, notification_logs.status
                  FROM registrations
                  JOIN users ON users.id = registrations.user_id
             LEFT JOIN notification_logs USING (registration_id)
                 WHERE users.email LIKE $1
                """,
                f"{self._window}-%",
            )
            reports = await connection.fetch(
                """
                SELECT report_id, status, record_count, file_path
                  FROM report_logs
                 WHERE report_id = ANY ($1::uuid[])
                """,
                list(self._promises.reports),
            )
        finally:
            await connection.close()
        return list(registrations), list(reports)

    async def _mails(self) -> list[tuple[str, str]]:
        """Message-ID and recipient of every mail of this window that was caught."""
        found: list[tuple[str, str]] = []
        start = 0
        while True:
            url = f"{self._single.mailbox}/api/v1/messages?limit=1000&start={start}"
            async with self._session.get(url) as response:
                page = (await response.json())["messages"]
            if not page:
                return [mail for mail in found if mail[1].startswith(f"{self._window}-")]
            found += [(mail["MessageID"], mail["To"][0]["Address"]) for mail in page]
            start += len(page)

    async def _dead_letters(self) -> int:
        connection = await aio_pika.connect(self._single.broker.url())
        async with connection:
            channel = await connection.channel()
            queues = [
                await channel.get_queue(route.dead_letter_queue, ensure=True) for route in ROUTES
            ]
            return sum(queue.declaration_result.message_count or 0 for queue in queues)


def _registering(trial: _Trial) -> list[Any]:
    return [trial.register() for _ in range(CLIENTS)]


def _reporting(trial: _Trial) -> list[Any]:
    return [trial.ask_for_reports()]


def _redriving(trial: _Trial) -> list[Any]:
    return [trial.redrive()]


_DRIVEN: Mapping[str, tuple[str, Callable[[_Trial], list[Any]]]] = {
    "w1": ("frontend", _registering),
    "w2": ("frontend", _registering),
    "w10": ("queue_receiver", _registering),
    "w11": ("queue_receiver", _registering),
    "w12": ("database_service", _registering),
    "w13": ("database_service", _registering),
    "w14": ("queue_receiver", _registering),
    "w16": ("queue_receiver", _registering),
    "w19": ("queue_receiver", _registering),
    "w23": ("sender", _registering),
    "w24": ("sender", _registering),
    "w29": ("sender", _registering),
    "w32": ("report_generator", _reporting),
    "w33": ("report_generator", _reporting),
    "w34": ("report_generator", _reporting),
    "w44": ("queue_receiver", _redriving),
}
"""Window to the service that is killed there, and what brings it there."""


def _wrong_files(single: SingleStack, reports: list[Any], promises: Promises) -> list[str]:
    """Files that do not hold what their record says."""
    wrong = []
    for row in reports:
        file = single.reports / (row["file_path"] or "none")
        lines = len(file.read_bytes().splitlines()) if file.is_file() else 0
        if row["report_id"] in promises.reports and lines != (row["record_count"] or 0) + 1:
            wrong.append(f"{file.name}: {lines} lines, {row['record_count']} records")
    return wrong
