"""Which fault strikes whom and when: a pure function of the seed and the length of the run."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import count

INSTANCES = {
    "frontend": 2,
    "queue_receiver": 2,
    "sender": 2,
    "database_service": 2,
    "report_generator": 1,
}
"""How many of each service run."""

LINKS = {
    "amqp": ("frontend", "queue_receiver", "sender", "report_generator"),
    "http": ("frontend", "queue_receiver", "sender", "report_generator"),
    "sql": ("database_service",),
    "smtp": ("sender",),
}
"""Kind of link to the services that have one; each instance has its own."""


class Kind(StrEnum):
    """A way in which something goes wrong."""

    KILL = "kill9"
    FREEZE = "freeze"
    BROKER_RESTART = "broker_restart"
    BROKER_KILL = "broker_kill9"
    POSTGRES_IMMEDIATE = "pg_immediate"
    POSTGRES_BACKEND_KILL = "pg_backend_kill9"
    LINK = "link"
    MEMORY_ALARM = "memory_alarm"
    ROLLING_RESTART = "rolling_sigterm"
    DISK_FULL = "disk_full"
    CLOCK_JUMP = "clock_jump"
    ROW_LOCK = "row_lock"
    LOG_DELETED = "log_deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One fault; seconds count from the first registration."""

    at: float
    kind: Kind
    target: str = ""
    """An instance, a service, or a link; empty where there is only one."""
    lasts: float = 0.0
    """Seconds until it is mended; 0 where it mends itself."""
    mode: str = ""
    """Of a link: what it does with bytes."""
    amount: int = 0
    """Bytes until a reset; seconds of a clock's jump."""

    @property
    def ends(self) -> float:
        """When it is mended."""
        return self.at + self.lasts


FIRST_FAULT_SECONDS = 5.0
"""Nothing breaks before, so that there is something to break."""

BROKER_SECONDS = 12.0
"""A stop and a start in good order, with a minute's messages."""

QUIET_SECONDS = 2.5
"""Between the end of one outage and the begin of the next: the breakers' pauses."""

CALM = (2.5, 12.0)
"""The same once every kind has had its turn: kills meet nothing else, and can be timed."""

FREEZE_SECONDS = 38.0
"""Longer than three heartbeats, so that what a frozen consumer holds must go to another."""

SECONDS_PER_KILL = 2.0
"""Of the kill -9 of services, all through the run."""

SECONDS_PER_LOCK = 35.0
LOCK_SECONDS = 30.0
"""A foreign transaction that holds some rows; longer than all retries of a registration."""

SECONDS_PER_DELETION = 150.0
DELETION_SECONDS = 15.0
"""The stream is deleted and made anew at once; it is watched as long as a kill may lose it."""

MODES = ("cut", "blackhole", "throttle", "reset_after")
JUMPS = (3600, -3600)

_OUTAGES: tuple[tuple[Kind, float, float], ...] = (
    # kind, seconds, share of the turns
    (Kind.POSTGRES_IMMEDIATE, 5.0, 1.2),
    (Kind.BROKER_KILL, BROKER_SECONDS, 0.75),
    (Kind.BROKER_RESTART, BROKER_SECONDS, 0.75),
    (Kind.POSTGRES_BACKEND_KILL, 3.0, 4.0),
    (Kind.MEMORY_ALARM, 8.0, 0.6),
    (Kind.DISK_FULL, 8.0, 0.6),
    (Kind.CLOCK_JUMP, 8.0, 0.6),
    (Kind.ROLLING_RESTART, 6.0, 4.0),
)


SHORTEST_SECONDS = 3.0
"""Of an outage; where less is left, no other one begins."""


_FIRST_ROUND = len(_OUTAGES) + len(LINKS) + 1


def plan(seed: int, seconds: float) -> list[Fault]:
    """All faults of a run, in order.

    Outages come one after the other, each kind at least once where there is time; kills go on
    all through; nothing but kills happens while an instance is frozen, so that the time until
    its messages come back is known.
    """
    chance = random.Random(f"userstream chaos {seed}")
    outages = list(_one_after_the_other(chance, seconds))
    kills = list(_kills(chance, seconds, [fault for fault in outages if _freezes(fault)]))
    locks = list(_locks(chance, seconds))
    deletions = list(_deletions(chance, seconds))
    return sorted(
        [*outages, *kills, *locks, *deletions],
        key=lambda fault: (fault.at, fault.kind, fault.target),
    )


def scale(faults: Sequence[Fault]) -> dict[str, int]:
    """How often each kind strikes, links by what they do."""
    return dict(Counter(fault.kind.value for fault in faults).most_common())


def instances() -> list[str]:
    """Every instance: the first of a service has its name, further ones a number behind it."""
    return [name for service, number in INSTANCES.items() for name in instances_of(service)]


def instances_of(service: str) -> list[str]:
    """The instances of one service."""
    further = (f"{service}-{n}" for n in range(2, INSTANCES[service] + 1))
    return [service, *further]


def service_of(instance: str) -> str:
    """The service that an instance is one of."""
    return instance.partition("-")[0]


def links_of(instance: str) -> list[str]:
    """The kinds of link that an instance has."""
    return [kind for kind, services in LINKS.items() if service_of(instance) in services]


def _one_after_the_other(chance: random.Random, seconds: float) -> Iterator[Fault]:
    now, links = FIRST_FAULT_SECONDS, _links(chance)
    for number, (kind, lasts) in enumerate(_turns(chance)):
        # The broker is never killed in its first ten seconds; see docs/reliability.md, W8.
        begin = max(now, 10.0) if kind in (Kind.BROKER_KILL, Kind.BROKER_RESTART) else now
        if begin + lasts > seconds:
            if now + SHORTEST_SECONDS > seconds:
                return
            continue
        if kind is Kind.LINK:
            yield _link_fault(chance, *next(links), at=begin, lasts=lasts)
        else:
            yield _fault(chance, kind, begin, lasts)
        now = begin + lasts + (QUIET_SECONDS if number < _FIRST_ROUND else chance.uniform(*CALM))


def _turns(chance: random.Random) -> Iterator[tuple[Kind, float]]:
    """Kinds with their lengths, without end: every kind once, then as the dice fall."""
    first: list[tuple[Kind, float]] = [(kind, lasts) for kind, lasts, _ in _OUTAGES]
    first += [(Kind.LINK, 5.0) for _ in LINKS] + [(Kind.FREEZE, FREEZE_SECONDS)]
    chance.shuffle(first)
    yield from first
    while True:
        kinds = [(kind, lasts) for kind, lasts, _ in _OUTAGES]
        shares = [share for _, _, share in _OUTAGES]
        kinds += [(Kind.LINK, chance.choice((3.0, 8.0, 15.0))), (Kind.FREEZE, FREEZE_SECONDS)]
        yield chance.choices(kinds, [*shares, 8.0, 1.0])[0]


def _fault(chance: random.Random, kind: Kind, at: float, lasts: float) -> Fault:
    match kind:
        case Kind.FREEZE:
            # One of two: frozen alone, it is an outage, and those are other faults.
            frozen = [name for name in instances() if INSTANCES[service_of(name)] > 1]
            return Fault(at=at, kind=kind, target=chance.choice(frozen), lasts=lasts)
        case Kind.ROLLING_RESTART:
            target = chance.choice(list(INSTANCES))
            return Fault(at=at, kind=kind, target=target, lasts=lasts)
        case Kind.CLOCK_JUMP:
            jump = chance.choice(JUMPS)
            return Fault(at=at, kind=kind, lasts=lasts, amount=jump)
        case _:
            return Fault(at=at, kind=kind, lasts=lasts)


def _links(chance: random.Random) -> Iterator[tuple[str, str]]:
    """Kinds of link and what happens to them: each kind and each mode among the first four."""
    links, modes = list(LINKS), list(MODES)
    chance.shuffle(links)
    chance.shuffle(modes)
    for number in count():
        shift = number // len(links)
        yield links[number % len(links)], modes[(number + shift) % len(modes)]


def _link_fault(chance: random.Random, link: str, mode: str, *, at: float, lasts: float) -> Fault:
    """A link of one instance, or, one time in three, that kind of link of all."""
    instance = chance.choice([name for name in instances() if service_of(name) in LINKS[link]])
    whose = "*" if chance.random() < 1 / 3 else instance
    amount = chance.randrange(1, 20_000) if mode == "reset_after" else 0
    return Fault(
        at=at, kind=Kind.LINK, target=f"{link}/{whose}", lasts=lasts, mode=mode, amount=amount
    )


def _freezes(fault: Fault) -> bool:
    return fault.kind is Kind.FREEZE


def _locks(chance: random.Random, seconds: float) -> Iterator[Fault]:
    """Locks on rows, nearly all the time: they are no outage, and whatever else breaks, goes on."""
    now = FIRST_FAULT_SECONDS + chance.uniform(0.0, SECONDS_PER_LOCK - LOCK_SECONDS)
    while now + LOCK_SECONDS <= seconds:
        yield Fault(at=now, kind=Kind.ROW_LOCK, lasts=LOCK_SECONDS)
        now += SECONDS_PER_LOCK


def _deletions(chance: random.Random, seconds: float) -> Iterator[Fault]:
    """Deletions of the log, once the ledger has read some of it: they are no outage either."""
    now = seconds * chance.uniform(0.3, 0.6) if seconds < SECONDS_PER_DELETION * 2 else 60.0
    while now + DELETION_SECONDS <= seconds:
        yield Fault(at=now, kind=Kind.LOG_DELETED, lasts=DELETION_SECONDS)
        now += SECONDS_PER_DELETION


def _kills(chance: random.Random, seconds: float, frozen: Sequence[Fault]) -> Iterator[Fault]:
    """Kill -9 of every service in turns, at random moments; a frozen instance is left alone."""
    services = list(INSTANCES)
    now, turn = FIRST_FAULT_SECONDS, 0
    while (now := now + chance.uniform(0.5, 1.5) * SECONDS_PER_KILL) < seconds:
        instance = chance.choice(instances_of(services[turn % len(services)]))
        turn += 1
        spared = {each.target for each in frozen if each.at - 5 <= now <= each.ends + 5}
        if service_of(instance) not in {service_of(name) for name in spared}:
            yield Fault(at=now, kind=Kind.KILL, target=instance)
