"""While no consumer takes messages: ``accept``, and the ``backlog`` that is let go at the end."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from uuid import uuid4

import aio_pika

from tools.bench.comparison import Comparison, Figure, Run
from tools.bench.harness import Harness
from tools.bench.http_client import closed_loop, connected, post_json
from tools.bench.loop import run
from tools.bench.peer_system import PEER
from tools.bench.pipeline import Person, burst_of, latencies, missing_of, people, refused
from tools.bench.procfs import measuring
from tools.bench.systems import System

CONNECTIONS = 64
"""Enough to keep one process at work while the broker's disk confirms what it has published."""

PUBLISHED_AT_ONCE = 500
"""Messages on their way to the broker when the backlog is made."""

COUNTED_WITHIN_SECONDS = 10.0
"""A quorum queue may count what it has confirmed a moment later."""

ACCEPT_FIGURES = (
    Figure("posts_per_s", "accepted POSTs/s"),
    Figure("post_p50_ms", "POST p50, ms", 1),
    Figure("post_p99_ms", "POST p99, ms", 1),
    Figure("cpu_ms", "CPU of the process per POST, ms", 2),
)
BACKLOG_FIGURES = (
    Figure("ms_per_registration", "time per registration, ms", 3),
    Figure("cpu_ms", "CPU per registration, ms", 2),
    Figure("rss_mb", "memory, all processes, MB"),
    Figure("rss_growth", "memory, last quarter to first", 2),
)


def accept(harness: Harness, *, rounds: int, number: int, say: Callable[[str], None]) -> Comparison:
    """POSTs to one process of each system, whose consumers are stopped."""
    runs: dict[str, list[Run]] = {system.name: [] for system in harness.systems}
    with _consumers_stopped(harness.systems):
        for turn in range(rounds):
            for system in harness.systems[:: -1 if turn % 2 else 1]:
                done = run(_fill_by_http(system, people(number)))
                runs[system.name].append(done)
                said = f"{done.figures['posts_per_s']:,.0f} POSTs/s"
                say(f"accept {turn + 1}/{rounds}, {system.name}: {said}")
    return Comparison(
        name="accept",
        how=f"{number:,} POSTs over {CONNECTIONS} connections to one process while nothing takes"
        " the messages; each that was accepted is counted in the queue afterwards.",
        figures=ACCEPT_FIGURES,
        baseline=PEER,
        runs=runs,
    )


def backlog(
    harness: Harness,
    *,
    number: int,
    burst_number: int,
    bursts: Sequence[Run],
    say: Callable[[str], None],
) -> Comparison:
    """Let go what has piled up; the bursts of this run are the baseline.

    Args:
        harness: What is measured.
        number: Messages that wait.
        burst_number: Registrations of a burst.
        bursts: Runs of ours; where there are none, one is made.
        say: Hears of the progress.
    """
    bursts = bursts or [burst_of(harness, harness.ours, burst_number)]
    say(f"backlog: publishing {number:,} messages")
    with _consumers_stopped([harness.ours]):
        persons = people(number)
        run(_fill_by_amqp(harness.ours, persons))
    done = run(_drain(harness, persons))
    each = done.figures.get("ms_per_registration")
    say(f"backlog, {number:,} messages: {f'{each:.3f} ms each' if each else 'no mail came'}")
    return Comparison(
        name="backlog",
        how=f"{number:,} registrations that wait in the queue when the consumer starts, from the"
        f" first mail to the last, against bursts of {burst_number:,} in the same run.",
        figures=BACKLOG_FIGURES,
        baseline=f"burst of {burst_number:,}",
        runs={
            f"backlog of {number:,}": [done],
            f"burst of {burst_number:,}": [_per_registration(each) for each in bursts],
        },
    )


@contextmanager
def _consumers_stopped(systems: Sequence[System]) -> Iterator[None]:
    for system in systems:
        system.stop_consumer()
    try:
        yield
    finally:
        for system in systems:
            system.start_consumer()


async def _fill_by_http(system: System, persons: Sequence[Person]) -> Run:
    posts = [post_json(system.path, person.as_json()) for person in persons]
    async with connected(system.port) as client, measuring(system.pids()) as meter:
        begun = time.monotonic()
        made = await closed_loop(client, posts, connections=CONNECTIONS)
        seconds = time.monotonic() - begun
    waiting = await _wait_until_counted(system, len(persons))
    await system.purge()
    usage = meter.usage()
    busiest = max(used.cpu_seconds for used in usage.values())  # the others have nothing to do
    problems = [*refused(made), *system.crashes()]
    if waiting != len(persons):
        problems.append(f"{waiting} messages are in the queue, {len(persons)} were accepted")
    return Run(
        figures={
            "posts_per_s": len(made) / seconds,
            **latencies("post", [post.answered - post.due for post in made]),
            "cpu_ms": 1e3 * busiest / len(made),
        },
        usage=usage,
        problems=problems,
    )


async def _wait_until_counted(system: System, number: int) -> int:
    deadline = time.monotonic() + COUNTED_WITHIN_SECONDS
    while True:
        waiting = await system.waiting()
        if waiting == number or time.monotonic() > deadline:
            return waiting
        await asyncio.sleep(0.05)


async def _fill_by_amqp(system: System, persons: Sequence[Person]) -> None:
    """Publish one message each, as any program could, and return when all are confirmed."""
    async with await aio_pika.connect(system.amqp_url) as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(system.queue)
        for start in range(0, len(persons), PUBLISHED_AT_ONCE):
            some = persons[start : start + PUBLISHED_AT_ONCE]
            await asyncio.gather(
                *(exchange.publish(_message(person), routing_key=_TYPE) for person in some)
            )


_TYPE = "user.registration.submitted.v1"


def _message(person: Person) -> aio_pika.Message:
    body = {**person.as_json(), "timestamp": datetime.now(UTC).isoformat()}
    return aio_pika.Message(
        json.dumps(body, ensure_ascii=False).encode(),
        message_id=str(uuid4()),
        type=_TYPE,
        content_type="application/json",
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
    )


async def _drain(harness: Harness, persons: Sequence[Person]) -> Run:
    """Wait until each has a row and a mail; the consumer has just been started."""
    system, own = harness.ours, harness.ours.pids()
    async with measuring(own | harness.around()) as meter:
        missing = await harness.mails.wait_for([person.email for person in persons])
    rows = await system.rows_of(person.email for person in persons)
    instants = [
        harness.mails.first[person.email]
        for person in persons
        if person.email in harness.mails.first
    ]
    usage = meter.usage()
    first_quarter, last_quarter = meter.peak(own, end=0.25), meter.peak(own, begin=0.75)
    pace = {}
    if len(instants) > 1:
        seconds = max(instants) - min(instants)
        pace["ms_per_registration"] = 1e3 * seconds / (len(instants) - 1)
    return Run(
        figures={
            **pace,
            "cpu_ms": 1e3 * sum(usage[name].cpu_seconds for name in own) / len(persons),
            "rss_mb": meter.peak(own) / 1e6,
            "rss_growth": last_quarter / first_quarter,
        },
        usage=usage,
        problems=[*missing_of(len(persons), rows, missing), *system.crashes()],
    )


def _per_registration(burst: Run) -> Run:
    per_second = burst.figures["registrations_per_s"]
    pace = {"ms_per_registration": 1e3 / per_second} if per_second else {}
    figures = {**burst.figures, **pace}
    return Run(figures=figures, usage=burst.usage, problems=burst.problems)
