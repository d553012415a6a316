"""Gathers what is there: at the database, at the broker, at the mail server, on the disk."""

import asyncio
import http.client
import time
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import aio_pika
import aiohttp
import asyncpg

from common.contracts.topology import EMAIL_NOTIFICATIONS, ROUTES
from report_generator.files import DRAFT_MARK, DRAFT_MAX_AGE
from tools.chaos.accounting import Attempt, DeadLetter, Mail, Observations, Registration
from tools.chaos.harness import Harness
from tools.chaos.journal import Journal
from tools.chaos.mail_server import SmtpFault
from tools.launcher.errors import LauncherError

DRAIN_SECONDS = 120.0
"""Longest wait for everything to come to rest once it is healed."""

LOOK_SECONDS = 1.0
"""Between two looks; the management API's figures are up to 5 s old."""

LEDGER_SECONDS = 90.0
"""Longest wait for the ledger to have read everything."""

RESTS = 7
"""Looks in a row at which nothing was under way: longer than those figures are old."""

WORK_QUEUES = frozenset(name for route in ROUTES for name in (route.queue, *route.retries))
DEAD_LETTER_QUEUES = frozenset(route.dead_letter_queue for route in ROUTES)

HELD_ELSEWHERE_SECONDS = 60.0
"""Longest wait for another reader of the dead letters to put back what it holds."""

UNFINISHED = """
    SELECT (SELECT count(*)
              FROM registrations AS r
         LEFT JOIN notification_logs AS n ON n.registration_id = r.registration_id
             WHERE n.message_id IS NULL OR n.status IN ('sending', 'deferred', 'unsure'))
         + (SELECT count(*) FROM report_logs WHERE status IN ('requested', 'generating'))
"""

REGISTRATIONS = """
    SELECT r.registration_id, r.outcome, r.stored_at, lower(u.email) AS email
      FROM registrations AS r
      LEFT JOIN users AS u ON u.id = r.user_id
"""
USERS = "SELECT lower(email) AS email, count(*) AS number FROM users GROUP BY 1"
MAILS = "SELECT id, message_id, registration_id, recipient, status FROM notification_logs"
ATTEMPTS = """
    SELECT notification_id, status, started_at, reply_code
      FROM notification_attempts
  ORDER BY notification_id, attempt
"""
REPORTS = "SELECT report_id, status FROM report_logs"
UNPROMISED = "SELECT registration_id FROM ledger_entries WHERE unpromised"

NOT_THERE = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)
"""What is raised while PostgreSQL is away."""


@dataclass(slots=True)
class Rest:
    """Whether, and after how long, everything came to rest."""

    seconds: float
    left: str = ""
    """What was still under way when the time was over."""


async def drained(harness: Harness, journal: Journal) -> Rest:
    """Wait until nothing is under way any more, at most two minutes."""
    begun, quiet, left = time.monotonic(), 0, ""
    while (waited := time.monotonic() - begun) < DRAIN_SECONDS:
        left = await _unfinished(harness, journal)
        quiet = 0 if left else quiet + 1
        if quiet == RESTS:
            return Rest(waited - RESTS * LOOK_SECONDS)
        await asyncio.sleep(LOOK_SECONDS)
    return Rest(waited, left or "something new all the time")


async def _unfinished(harness: Harness, journal: Journal) -> str:
    """What is not at rest, in words; empty if all is."""
    try:
        queues = await asyncio.to_thread(waiting, harness)
        dead = await asyncio.to_thread(waiting, harness, [EMAIL_NOTIFICATIONS.dead_letter_queue])
        connection = await asyncpg.connect(harness.postgres.dsn(), timeout=5)
        try:
            rows = await connection.fetchval(UNFINISHED)
            stored = await connection.fetchval("SELECT count(*) FROM registrations")
        finally:
            await connection.close()
    except (*NOT_THERE, LauncherError, http.client.HTTPException) as error:
        return f"{type(error).__name__}: {error}"
    parts = [f"{queue}: {number}" for queue, number in queues.items()]
    # A mail that was given up stays as it was at its last try: a person decides.
    if (rows := rows - sum(dead.values())) > 0:
        parts.append(f"{rows} mails or reports that have not ended")
    if stored < len(journal.accepted) and queues:
        parts.append(f"{len(journal.accepted) - stored} not stored")
    return ", ".join(parts)


def waiting(harness: Harness, names: Collection[str] = WORK_QUEUES) -> dict[str, int]:
    """Which of these queues have messages, ready or unacknowledged, and how many."""
    queues: Any = harness.broker.management("GET", "/api/queues")
    return {
        queue["name"]: queue["messages"]
        for queue in queues
        if queue["name"] in names and queue.get("messages")
    }


async def gather(harness: Harness, journal: Journal) -> Observations:
    """Everything that is there now."""
    mail_server = harness.mail_server
    connection = await asyncpg.connect(harness.postgres.dsn(), timeout=10)
    try:
        registrations = await connection.fetch(REGISTRATIONS)
        users = await connection.fetch(USERS)
        mails = await _mails(connection)
        reports = await connection.fetch(REPORTS)
        ledger = await _ledger(harness)
        unpromised = await connection.fetch(UNPROMISED)
    finally:
        await connection.close()
    put_off: Counter[str] = Counter()
    for fault in (
        SmtpFault.DEFER,
        SmtpFault.DROP_IN_TEXT,
        SmtpFault.DROP_AFTER_DOT,
        SmtpFault.HANG_UP,
    ):
        put_off += mail_server.faulted.get(fault, Counter())
    return Observations(
        journal=journal,
        registrations=[
            Registration(
                id=UUID(int=row["registration_id"].int),
                email=row["email"] or "",
                outcome=row["outcome"],
                stored_at=row["stored_at"].timestamp(),
            )
            for row in registrations
        ],
        users={row["email"]: row["number"] for row in users},
        mails=mails,
        taken=[(mail.message_id, mail.recipient) for mail in mail_server.taken],
        put_off=put_off,
        refused=mail_server.faulted.get(SmtpFault.REFUSE, Counter()),
        locked=harness.locked,
        ledger=ledger,
        unpromised=[UUID(int=row["registration_id"].int) for row in unpromised],
        logs_deleted=harness.logs_deleted,
        dead=await dead_letters(harness),
        waiting=await asyncio.to_thread(waiting, harness),
        reports=[(UUID(int=row["report_id"].int), row["status"]) for row in reports],
        stray_files=[
            file.name
            for file in harness.disk.folder.rglob(f"*{DRAFT_MARK}*")
            if time.time() - file.stat().st_mtime > DRAFT_MAX_AGE.total_seconds()
        ],
    )


async def _ledger(harness: Harness) -> Mapping[str, Any]:
    """What the ledger says once it has read all there is, and has been to rest for a while."""
    deadline = time.monotonic() + LEDGER_SECONDS
    url = f"{harness.urls('queue_receiver')[0]}/api/ledger"
    said: dict[str, Any] = {"caughtUp": False, "lost": 0, "incidents": [], "rejected": 0}
    said["totals"] = dict.fromkeys(("accepted", "stored", "duplicates", "missing", "unpromised"), 0)
    timeout = aiohttp.ClientTimeout(total=LEDGER_SECONDS)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        while time.monotonic() < deadline:
            with suppress(aiohttp.ClientError, OSError, TimeoutError):
                async with session.get(url) as response:
                    answer = await response.json()
                    if response.ok:
                        said = answer
                        if said["caughtUp"]:
                            return said
            await asyncio.sleep(LOOK_SECONDS)
    return said


async def _mails(connection: "asyncpg.Connection[asyncpg.Record]") -> list[Mail]:
    attempts: dict[int, list[Attempt]] = defaultdict(list)
    for row in await connection.fetch(ATTEMPTS):
        attempts[row["notification_id"]].append(
            Attempt(
                status=row["status"],
                started_at=row["started_at"].timestamp(),
                reply_code=row["reply_code"],
            )
        )
    return [
        Mail(
            message_id=UUID(int=row["message_id"].int),
            registration_id=row["registration_id"] and UUID(int=row["registration_id"].int),
            recipient=row["recipient"],
            status=row["status"],
            attempts=attempts[row["id"]],
        )
        for row in await connection.fetch(MAILS)
    ]


async def dead_letters(harness: Harness) -> list[DeadLetter]:
    """Every dead letter, which stays where it is.

    A queue_receiver that reads them for the ledger at this moment holds them: then they are read
    again, until they are as many as the broker says.
    """
    deadline = time.monotonic() + HELD_ELSEWHERE_SECONDS
    while True:
        found = await _read_dead_letters(harness.broker.url())
        there = await asyncio.to_thread(waiting, harness, DEAD_LETTER_QUEUES)
        if len(found) >= sum(there.values()) or time.monotonic() > deadline:
            return found
        await asyncio.sleep(1)


async def _read_dead_letters(amqp_url: str) -> list[DeadLetter]:
    """Read those that are ready; none is acknowledged, so the end of the channel requeues all."""
    found: list[DeadLetter] = []
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        for route in ROUTES:
            channel = await connection.channel()
            queue = await channel.get_queue(route.dead_letter_queue)
            while message := await queue.get(no_ack=False, fail=False, timeout=10):
                found.append(
                    DeadLetter(route.name, *_identity(message.message_id, message.headers))
                )
            await channel.close()
    return found


def _identity(message_id: str | None, headers: Mapping[str, Any]) -> tuple[UUID, str]:
    identity = UUID(int=0)
    with suppress(ValueError, TypeError):
        identity = UUID(message_id)
    return identity, str(headers.get("x-error-code", "no reason"))
