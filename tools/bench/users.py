"""What becomes of a large table: ``report`` and ``paging``."""

import asyncio
import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

import asyncpg

from common.database_client.http_client import Answer
from tools.bench.comparison import Comparison, Figure, Run
from tools.bench.harness import OURS, Harness
from tools.bench.http_client import Client, connected, get, post_json
from tools.bench.loop import run
from tools.bench.pipeline import latencies
from tools.bench.procfs import forget_peak, measuring, peak_rss
from tools.launcher.errors import LauncherError
from tools.launcher.ports import HOST
from tools.launcher.postgres import DATABASE
from tools.launcher.processes import run_briefly

PSQL = r"psql \copy"

FIRST, MIDDLE, LAST = "first page", "middle", "end"

REPORTERS = ("database_service", "report_generator")
"""What a report passes through."""

PAGE_SIZE = 50

PAGES_PER_ROUND = 200
"""Requests for each of the three pages, in turns."""

REPORT_WITHIN_SECONDS = 300.0
POLL_SECONDS = 0.01

REPORT_FIGURES = (
    Figure("seconds", "time, s", 2),
    Figure("megabytes", "size, MB", 1),
    Figure("cpu_s", "CPU of both services, s", 2),
    Figure("database_service_rss_mb", "peak memory of database_service, MB"),
    Figure("report_generator_rss_mb", "peak memory of report_generator, MB"),
)
PAGING_FIGURES = (Figure("p50_ms", "p50, ms", 2), Figure("p99_ms", "p99, ms", 2))

EMPTY = "TRUNCATE users, registrations, notification_logs CASCADE"

INSERT_USERS = """
INSERT INTO users (name, surname, email, created_at)
SELECT (ARRAY['Ada', 'Grace', 'Linus', 'Zoë', 'Jürgen', 'Mária', 'Olga'])[1 + i % 7],
       (ARRAY['Lovelace', 'Hopper', 'O''Brien', 'Müller', 'Smith-Jones'])[1 + i % 5],
       'person' || i || '@example.com',
       now() - i * interval '7 seconds'
  FROM generate_series(1, $1::integer) AS i
"""

COPY_USERS = r"""
\copy (SELECT id AS "ID", name AS "Name", surname AS "Surname", email AS "Email",
 created_at AS "Created At", updated_at AS "Updated At" FROM users ORDER BY id)
 TO '{file}' WITH (FORMAT csv, HEADER)
"""


def fill(harness: Harness, number: int, say: Callable[[str], None]) -> None:
    """Put exactly ``number`` users into our tables, and nothing else."""
    say(f"inserting {number:,} users")
    run(_fill(harness.ours.dsn, number))


async def _fill(dsn: str, number: int) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(EMPTY)
        await connection.execute(INSERT_USERS, number)
        await connection.execute("VACUUM ANALYZE users")  # as it would be a minute later
    finally:
        await connection.close()


def empty(harness: Harness) -> None:
    """Take everybody out of our tables again."""
    run(_execute(harness.ours.dsn, EMPTY))


async def _execute(dsn: str, statement: str) -> None:
    connection = await asyncpg.connect(dsn)
    try:
        await connection.execute(statement)
    finally:
        await connection.close()


def report(harness: Harness, *, rounds: int, number: int, say: Callable[[str], None]) -> Comparison:
    """A CSV of all users through both services, and by psql."""
    runs: dict[str, list[Run]] = {OURS: [], PSQL: []}
    psql = _psql(harness)

    def ours() -> Run:
        return run(_generate(harness, number))

    def theirs() -> Run:
        return _copy(harness, psql, number)

    for turn in range(rounds):
        both = [(OURS, ours), (PSQL, theirs)]
        for name, measure in both[:: -1 if turn % 2 else 1]:
            done = measure()
            runs[name].append(done)
            say(f"report {turn + 1}/{rounds}, {name}: {done.figures['seconds']:.2f} s")
    return Comparison(
        name="report",
        how=f"{number:,} users to a CSV file: from POST /api/reports/generate until its status is"
        " ready (through the queue, both services and the disk, cells made safe for spreadsheets),"
        " against psql's \\copy of the same columns and rows.",
        figures=REPORT_FIGURES,
        baseline=PSQL,
        runs=runs,
    )


async def _generate(harness: Harness, number: int) -> Run:
    pids = {name: each.pid for name in REPORTERS if (each := harness.part(name).running)}
    for pid in pids.values():
        forget_peak(pid)
    port = harness.stack.ports["report_generator"]
    async with connected(port) as client, measuring(pids) as meter:
        begun = time.monotonic()
        accepted = await client.send(post_json("/api/reports/generate", {}))
        if accepted.status != 202:  # noqa: PLR2004 - Accepted
            return Run(figures={"seconds": 0}, problems=[f"not accepted: {accepted.status}"])
        progress = await _finished(client, json.loads(accepted.body)["statusUrl"])
        seconds = time.monotonic() - begun
    problems = []
    if progress.get("status") != "ready" or progress.get("recordCount") != number:
        problems.append(f"the report is not as it should be: {progress}")
    usage = meter.usage()
    figures = {
        "seconds": seconds,
        "megabytes": progress.get("sizeBytes", 0) / 1e6,
        "cpu_s": sum(used.cpu_seconds for used in usage.values()),
        **{f"{name}_rss_mb": peak_rss(pid) / 1e6 for name, pid in pids.items()},
    }
    return Run(figures=figures, problems=problems)


async def _finished(client: Client, status_url: str) -> dict[str, Any]:
    """Its progress once it is ready or has failed, or the last that was heard in time."""
    deadline = time.monotonic() + REPORT_WITHIN_SECONDS
    while True:
        progress: dict[str, Any] = json.loads((await client.send(get(status_url))).body)
        if progress.get("status") in {"ready", "failed"} or time.monotonic() > deadline:
            return progress
        await asyncio.sleep(POLL_SECONDS)


def _copy(harness: Harness, psql: str, number: int) -> Run:
    file = harness.scratch / "copy.csv"
    command = " ".join(COPY_USERS.format(file=file).split())
    options = ["-X", "-h", HOST, "-p", str(harness.postgres.port), "-U", DATABASE, "-d", DATABASE]
    environment = {"PATH": os.environ["PATH"], "PGPASSWORD": harness.postgres.password}
    begun = time.monotonic()
    said = run_briefly(
        [psql, *options, "-c", command],
        environment=environment,
        timeout=REPORT_WITHIN_SECONDS,
    )
    seconds = time.monotonic() - begun
    problems = [] if said.split() == ["COPY", str(number)] else [f"psql said: {said}"]
    figures = {"seconds": seconds, "megabytes": file.stat().st_size / 1e6}
    file.unlink()
    return Run(figures=figures, problems=problems)


def _psql(harness: Harness) -> str:
    """The client that came with the server, or the system's."""
    servers = harness.postgres.programs
    beside = servers[max(servers)] / "psql"
    found = str(beside) if beside.is_file() else shutil.which("psql")
    if not found:
        raise LauncherError(
            "The report is compared with psql, which is not on this machine. Type: sudo apt-get"
            " install postgresql-client; or leave the report out with --only."
        )
    return found


def paging(harness: Harness, *, rounds: int, number: int, say: Callable[[str], None]) -> Comparison:
    """A page of users at the start, in the middle and at the end."""
    runs: dict[str, list[Run]] = {FIRST: [], MIDDLE: [], LAST: []}
    after = run(_places(harness.ours.dsn))
    for turn in range(rounds):
        for name, done in run(_turn_pages(harness, after)).items():
            runs[name].append(done)
        p50 = ", ".join(
            f"{name} {each[-1].figures['p50_ms']:.2f} ms" for name, each in runs.items()
        )
        say(f"paging {turn + 1}/{rounds}: {p50}")
    return Comparison(
        name="paging",
        how=f"GET /api/users?limit={PAGE_SIZE}&after=… of database_service with {number:,} users,"
        f" {PAGES_PER_ROUND} times per round and page, in turns.",
        figures=PAGING_FIGURES,
        baseline=FIRST,
        runs=runs,
    )


async def _places(dsn: str) -> dict[str, int]:
    """The ids after which the three pages begin."""
    connection = await asyncpg.connect(dsn)
    try:
        (found,) = await connection.fetch("SELECT min(id) - 1, max(id) FROM users")
    finally:
        await connection.close()
    low, high = found
    return {FIRST: low, MIDDLE: (low + high) // 2, LAST: high - PAGE_SIZE}


async def _turn_pages(harness: Harness, after: dict[str, int]) -> dict[str, Run]:
    """Ask for each page in turn, again and again."""
    seconds: dict[str, list[float]] = {name: [] for name in after}
    problems: dict[str, list[str]] = {name: [] for name in after}
    requests = {
        name: get(f"/api/users?limit={PAGE_SIZE}&after={place}") for name, place in after.items()
    }
    async with connected(harness.stack.ports["database_service"]) as client:
        for request in requests.values():
            await client.send(request)
        for _ in range(PAGES_PER_ROUND):
            for name, request in requests.items():
                begun = time.monotonic()
                answer = await client.send(request)
                seconds[name].append(time.monotonic() - begun)
                problems[name] += _incomplete(answer)
    return {
        name: Run(
            figures={
                key.removeprefix("page_"): value
                for key, value in latencies("page", seconds[name]).items()
            },
            problems=problems[name][:1],
        )
        for name in after
    }


def _incomplete(answer: Answer) -> Sequence[str]:
    if answer.status != 200:  # noqa: PLR2004 - OK
        return [f"a page was answered with status {answer.status}"]
    if len(json.loads(answer.body)["users"]) != PAGE_SIZE:
        return [f"a page did not hold {PAGE_SIZE} users"]
    return []
