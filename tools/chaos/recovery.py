"""How long it takes until work goes on after a kill -9 or a freeze, from what was observed."""

import asyncio
import math
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from uuid import UUID

import asyncpg

from tools.chaos.accounting import Observations
from tools.chaos.harness import Harness
from tools.chaos.inject import Happened
from tools.chaos.observations import NOT_THERE
from tools.chaos.schedule import Kind, service_of

WATCH_SECONDS = 0.05
"""Between two looks at how many rows there are: the resolution of what is measured."""

QUIET_BEFORE, QUIET_AFTER = 3.0, 2.0
"""Seconds around a kill in which no outage may be, for it to count as the only fault."""

OTHERS_ALONE = (
    *(Kind.KILL, Kind.FREEZE, Kind.ROLLING_RESTART),
    *(Kind.DISK_FULL, Kind.CLOCK_JUMP, Kind.ROW_LOCK),
)
"""Faults that other services do not feel, because an instance is left, or other rows."""

CALM_AFTER = 5.0
"""Seconds after the end of an outage from which on everything must go on without a stop: breakers
and connections have tried again by then."""


@dataclass(slots=True)
class Progress:
    """Instants at which a service was seen to have done something, in seconds since 1970."""

    harness: Harness
    stored: list[float] = field(default_factory=list)
    rows: int = 0

    async def watch(self) -> None:
        """Look again and again until cancelled."""
        while True:
            with suppress(*NOT_THERE):
                connection = await asyncpg.connect(self.harness.postgres.dsn(), timeout=2)
                try:
                    await self._count(connection)
                finally:
                    connection.terminate()
            await asyncio.sleep(WATCH_SECONDS)

    async def _count(self, connection: "asyncpg.Connection[asyncpg.Record]") -> None:
        while True:
            rows = await connection.fetchval("SELECT count(*) FROM registrations", timeout=2)
            if rows > self.rows:
                self.rows = rows
                self.stored.append(time.time())
            await asyncio.sleep(WATCH_SECONDS)


@dataclass(frozen=True, slots=True)
class Figures:
    """How long something took, in seconds; ``n`` times."""

    n: int
    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Figures":
        """Nearest-rank percentiles."""
        ordered = sorted(seconds)
        if not ordered:
            return cls(0, 0.0, 0.0, 0.0)
        at = [ordered[max(0, math.ceil(share * len(ordered)) - 1)] for share in (0.5, 0.99)]
        return cls(len(ordered), at[0], at[1], ordered[-1])

    def as_json(self) -> dict[str, float]:
        """By the names that they have in JSON."""
        shown = {"p50_s": self.p50, "p99_s": self.p99, "max_s": self.longest}
        return {"n": self.n} | {name: round(value, 3) for name, value in shown.items()}


@dataclass(slots=True)
class Recovery:
    """All that was measured, in seconds each; of several seeds the lists are joined."""

    service: list[float] = field(default_factory=list)
    """From a kill that was the only fault until the service did something again."""
    by_service: dict[str, list[float]] = field(default_factory=dict)
    instance: list[float] = field(default_factory=list)
    """From such a kill until the instance in its place said that it can work."""
    redelivered: list[float] = field(default_factory=list)
    """From such a kill of a receiver until all that was promised before was stored."""
    frozen: list[float] = field(default_factory=list)
    """Longest wait for a row or a mail while a receiver or a sender was frozen."""
    whatever_else: list[float] = field(default_factory=list)
    """As ``instance``, of the kills that met other faults."""
    stood_still: dict[str, float] = field(default_factory=dict)
    """Service to the longest time in which, outside of outages, it was not seen to do anything."""

    def add(self, other: "Recovery") -> None:
        """Take in what another seed measured."""
        for name in ("service", "instance", "redelivered", "frozen", "whatever_else"):
            getattr(self, name).extend(getattr(other, name))
        for service, seconds in other.by_service.items():
            self.by_service.setdefault(service, []).extend(seconds)
        for service, longest in other.stood_still.items():
            self.stood_still[service] = max(longest, self.stood_still.get(service, 0.0))

    def as_json(self) -> dict[str, object]:
        """Percentiles of everything."""
        return {
            "service_works_again": Figures.of(self.service).as_json(),
            "service_works_again_by_service": {
                name: Figures.of(seconds).as_json() for name, seconds in self.by_service.items()
            },
            "instance_ready_again": Figures.of(self.instance).as_json(),
            "redelivered": Figures.of(self.redelivered).as_json(),
            "freeze": Figures.of(self.frozen).as_json(),
            "instance_ready_again_amid_other_faults": Figures.of(self.whatever_else).as_json(),
            "stood_still_s": {name: round(took, 3) for name, took in self.stood_still.items()},
        }


def measure(
    happened: Sequence[Happened], observations: Observations, progress: Progress, harness: Harness
) -> Recovery:
    """What the kills and freezes of a run tell."""
    did = {
        "frontend": sorted(observations.journal.first_answers),
        "queue_receiver": progress.stored,
        "database_service": progress.stored,
        "sender": [mail.at for mail in harness.mail_server.taken],
    }
    calm = list(_calm(happened, observations.journal.accepted_at.values()))
    found = Recovery(stood_still={name: _longest_gap(seen, calm) for name, seen in did.items()})
    for each in happened:
        if each.skipped:
            continue
        if each.fault.kind is Kind.KILL:
            _after_kill(each, happened, observations, did, found)
        elif each.fault.kind is Kind.FREEZE:
            found.frozen += _after_freeze(each, observations, harness)
    return found


def _calm(happened: Sequence[Happened], promised: Iterable[float]) -> Iterator[tuple[float, float]]:
    """From when to when there was load, and no outage; kills and freezes of one are none."""
    accepted_at = sorted(promised)
    if not accepted_at:
        return
    begun, end = accepted_at[0], accepted_at[-1]
    for each in sorted(happened, key=lambda each: each.begun):
        if each.skipped or each.fault.kind in OTHERS_ALONE:
            continue
        if begun < each.begun:
            yield begun, min(each.begun, end)
        begun = max(begun, (each.mended or math.inf) + CALM_AFTER)
    if begun < end:
        yield begun, end


def _longest_gap(seen: Sequence[float], spans: Sequence[tuple[float, float]]) -> float:
    """The longest time without an event; one that reaches over a span's end counts up to it."""
    gaps = [
        after - before
        for begin, end in spans
        for before, after in pairwise([begin, *(at for at in seen if begin < at < end), end])
    ]
    return max(gaps, default=0.0)


def _after_freeze(freeze: Happened, observations: Observations, harness: Harness) -> list[float]:
    """The longest wait for a row or a mail; of services that hold no messages there is none."""
    service = service_of(freeze.fault.target)
    if service == "queue_receiver":
        ended = {row.id: row.stored_at for row in observations.registrations}
    elif service == "sender":
        ended = _mailed_at(observations, harness)
    else:
        return []
    return [_longest_wait(observations, ended, freeze.begun, freeze.mended)]


def _mailed_at(observations: Observations, harness: Harness) -> dict[UUID, float]:
    """Registration to when its mail was taken first, but for those the server played a fault on.

    Their waits are the server's doing, not the freeze's.
    """
    faulted = {
        each for by_recipient in harness.mail_server.faulted.values() for each in by_recipient
    }
    taken: dict[str, float] = {}
    for mail in harness.mail_server.taken:
        if mail.recipient not in faulted:
            taken.setdefault(mail.message_id, mail.at)
    return {
        mail.registration_id: taken[str(mail.message_id)]
        for mail in observations.mails
        if mail.registration_id and str(mail.message_id) in taken
    }


def _after_kill(
    kill: Happened,
    happened: Sequence[Happened],
    observations: Observations,
    did: dict[str, list[float]],
    found: Recovery,
) -> None:
    if not _is_alone(kill, happened):
        if kill.ready_again:
            found.whatever_else.append(kill.ready_again - kill.begun)
        return
    if kill.ready_again:
        found.instance.append(kill.ready_again - kill.begun)
    service = service_of(kill.fault.target)
    instants = did.get(service, [])
    following = bisect_right(instants, kill.begun)
    if following < len(instants):
        took = instants[following] - kill.begun
        found.service.append(took)
        found.by_service.setdefault(service, []).append(took)
    if service == "queue_receiver":
        stored = {row.id: row.stored_at for row in observations.registrations}
        found.redelivered.append(_longest_wait(observations, stored, kill.begun, kill.begun))


def _is_alone(kill: Happened, happened: Sequence[Happened]) -> bool:
    """Whether no outage, and no other fault of the same service, was near it.

    Nor before its successor was ready: an outage that begins while that one starts is waited
    out by it.
    """
    begin = kill.begun - QUIET_BEFORE
    end = max(kill.begun + QUIET_AFTER, kill.ready_again or 0.0)
    near = [
        other.fault
        for other in happened
        if other is not kill and not other.skipped
        if other.begun < end and (other.mended or math.inf) > begin
    ]
    service = service_of(kill.fault.target)
    return all(fault.kind in OTHERS_ALONE and service_of(fault.target) != service for fault in near)


def _longest_wait(
    observations: Observations, ended: Mapping[UUID, float], begun: float, mended: float
) -> float:
    """Seconds that a registration waited at most for its end, from the fault's begin on.

    Counts what was promised while the fault lasted, and whatever had not come to its end when it
    began: after an outage, those who are hit hold the oldest of what is waiting.
    """
    waits = [
        ended[each] - max(at, begun)
        for each, at in observations.journal.accepted_at.items()
        if at <= mended and ended.get(each, 0.0) > begun
    ]
    return max(0.0, *waits) if waits else 0.0
