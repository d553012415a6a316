"""From a POST to a row and a mail: ``burst`` and ``steady``."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from uuid import uuid4

from tools.bench.comparison import Comparison, Figure, Run
from tools.bench.figures import percentile
from tools.bench.harness import Harness
from tools.bench.http_client import Client, Post, closed_loop, connected, open_loop, post_json
from tools.bench.loop import run
from tools.bench.mails import Mails
from tools.bench.peer_system import PEER
from tools.bench.procfs import measuring
from tools.bench.systems import System

CONNECTIONS = 32
"""Clients that post at the same time."""

WARM_UP = 300
"""Registrations before the first that counts: pools fill, caches and plans are made."""

ACCEPTED = 202

SETTLE_SECONDS = 0.3
"""After the last mail: late duplicates would come now, and outcomes are recorded."""

NAMES = ("Ada", "Grace", "Linus", "Zoë", "Jürgen", "Mária", "Olga", "Ivan")
SURNAMES = ("Lovelace", "Hopper", "O'Brien", "Müller", "Smith-Jones", "García")

BURST_FIGURES = (
    Figure("registrations_per_s", "registrations/s"),
    Figure("posts_per_s", "accepted POSTs/s"),
    Figure("post_p50_ms", "POST p50, ms", 1),
    Figure("post_p99_ms", "POST p99, ms", 1),
    Figure("cpu_ms", "CPU per registration, ms", 2),
    Figure("rss_mb", "memory, all processes, MB"),
)
STEADY_FIGURES = (
    Figure("mail_p50_ms", "POST to mail p50, ms", 1),
    Figure("mail_p99_ms", "POST to mail p99, ms", 1),
    Figure("post_p99_ms", "POST p99, ms", 1),
    Figure("cpu_ms", "CPU per registration, ms", 2),
)

_runs = count(1)


@dataclass(frozen=True, slots=True)
class Person:
    """A person who is registered once."""

    name: str
    surname: str
    email: str

    def as_json(self) -> dict[str, str]:
        """The body of the POST, and of the message."""
        return {"name": self.name, "surname": self.surname, "email": self.email}


Load = Callable[[Client, Sequence[bytes]], Awaitable[list[Post]]]


def people(number: int) -> list[Person]:
    """People with new addresses."""
    run = f"{next(_runs)}-{uuid4().hex[:8]}"
    return [
        Person(NAMES[i % len(NAMES)], SURNAMES[i % len(SURNAMES)], f"u{i}.{run}@example.com")
        for i in range(number)
    ]


def burst(harness: Harness, *, rounds: int, number: int, say: Callable[[str], None]) -> Comparison:
    """``number`` registrations as fast as 32 clients get them in."""

    def told(done: Run) -> str:
        return f"{done.figures['registrations_per_s']:,.0f} registrations/s"

    return Comparison(
        name="burst",
        how=f"{number:,} registrations over {CONNECTIONS} connections, each posting again as soon"
        " as it has its answer; from the first POST to the last mail that is accepted, with every"
        " row counted.",
        figures=BURST_FIGURES,
        baseline=PEER,
        runs=_in_turns(
            harness,
            _Course(
                name="burst", rounds=rounds, number=number, load=_as_fast_as_possible, told=told
            ),
            say,
        ),
    )


def steady(
    harness: Harness, *, rate: int, rounds: int, seconds: float, say: Callable[[str], None]
) -> Comparison:
    """``rate`` registrations a second, whatever the answers take."""

    async def load(client: Client, posts: Sequence[bytes]) -> list[Post]:
        return await open_loop(client, posts, rate=rate)

    def told(done: Run) -> str:
        p50, p99 = (done.figures.get(f"mail_p{percent}_ms") for percent in (50, 99))
        return f"p50 {p50:.1f} ms, p99 {p99:.1f} ms" if p50 and p99 else "no mail came"

    return Comparison(
        name=f"steady {rate}/s",
        how=f"{rate} POSTs a second for {seconds:g} s, sent when they are due and not when earlier"
        " ones are answered; latency from the instant a POST was due to its mail being accepted.",
        figures=STEADY_FIGURES,
        baseline=PEER,
        runs=_in_turns(
            harness,
            _Course(
                name=f"steady {rate}/s",
                rounds=rounds,
                number=max(10, round(rate * seconds)),
                load=load,
                told=told,
            ),
            say,
        ),
    )


def warm_up(harness: Harness) -> None:
    """Send some registrations through each system that do not count."""
    for system in harness.systems:
        burst_of(harness, system, WARM_UP)


def burst_of(harness: Harness, system: System, number: int) -> Run:
    """One burst to one system."""
    return run(register(harness, system, people(number), _as_fast_as_possible))


async def _as_fast_as_possible(client: Client, posts: Sequence[bytes]) -> list[Post]:
    return await closed_loop(client, posts, connections=CONNECTIONS)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Course:
    """How a workload runs."""

    name: str
    rounds: int
    number: int
    """Registrations per run."""
    load: Load
    told: Callable[[Run], str]
    """What is said of a run when it is done."""


def _in_turns(
    harness: Harness, course: _Course, say: Callable[[str], None]
) -> dict[str, list[Run]]:
    """Each system once a round; the order changes, so that drift favours neither."""
    runs: dict[str, list[Run]] = {system.name: [] for system in harness.systems}
    for turn in range(course.rounds):
        for system in harness.systems[:: -1 if turn % 2 else 1]:
            done = run(register(harness, system, people(course.number), course.load))
            runs[system.name].append(done)
            say(f"{course.name} {turn + 1}/{course.rounds}, {system.name}: {course.told(done)}")
    return runs


async def register(harness: Harness, system: System, persons: Sequence[Person], load: Load) -> Run:
    """Register these people and wait until each has a row and a mail."""
    posts = [post_json(system.path, person.as_json()) for person in persons]
    mails, own = harness.mails, system.pids()
    async with connected(system.port) as client, measuring(own | harness.around()) as meter:
        begun = time.monotonic()
        made = await load(client, posts)
        posted = time.monotonic()
        missing = await mails.wait_for([person.email for person in persons])
        await asyncio.sleep(SETTLE_SECONDS)
    mails.read()
    rows = await system.rows_of(person.email for person in persons)
    usage = meter.usage()
    arrived = [mails.first[person.email] for person in persons if person.email in mails.first]
    figures = {
        "registrations_per_s": len(arrived) / (max(arrived, default=posted) - begun),
        "posts_per_s": len(made) / (posted - begun),
        **latencies("post", [post.answered - post.due for post in made]),
        **latencies("mail", _until_mailed(persons, made, mails)),
        "cpu_ms": 1e3 * sum(usage[name].cpu_seconds for name in own) / len(persons),
        "rss_mb": meter.peak(own) / 1e6,
    }
    problems = [*refused(made), *missing_of(len(made), rows, missing), *system.crashes()]
    return Run(figures=figures, usage=usage, problems=problems)


def _until_mailed(persons: Sequence[Person], made: Sequence[Post], mails: Mails) -> list[float]:
    """Seconds from when each POST was due to when its mail was accepted."""
    return [
        mails.first[person.email] - post.due
        for person, post in zip(persons, made, strict=True)
        if person.email in mails.first
    ]


def latencies(what: str, seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles in milliseconds, by the names they have in JSON."""
    if not seconds:
        return {}
    return {f"{what}_p{percent}_ms": 1e3 * percentile(seconds, percent) for percent in (50, 99)}


def refused(made: Sequence[Post]) -> Iterator[str]:
    """POSTs that were not accepted, as a problem."""
    if statuses := [post.status for post in made if post.status != ACCEPTED]:
        first = statuses[0] or "none at all"
        yield f"{len(statuses)} POSTs were not accepted (the first answer: {first})"


def missing_of(number: int, rows: int, missing_mails: int) -> Iterator[str]:
    """Rows and mails that did not come, as problems."""
    if rows < number:
        yield f"{number - rows} of {number} registrations have no row"
    if missing_mails:
        yield f"{missing_mails} of {number} registrations have no mail"
