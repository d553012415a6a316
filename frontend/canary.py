"""The canary: sends a registration of our own the whole way, and knows when it last came home.

One is under way at a time. Where it is late, it may be lost, so another one is sent each minute to
see whether all is well again; in an outage those wait in the queues, one for each minute.
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Protocol
from uuid import UUID

import structlog

from common import metrics
from common.context import CORRELATION_ID, enter_request
from common.contracts.canary import new_canary_id
from common.contracts.registrations import Journey, JourneyStatus
from common.errors import UserStreamError
from common.readiness import HealthNote

log = structlog.get_logger()

FIRST_LOOK_SECONDS = 0.025
LONGEST_PAUSE_SECONDS = 5.0
"""Between looks at the journey: half of what has passed, from the first to the longest. So the
time that is told is at most half too long."""

LATE_SECONDS = 60.0
"""After so long one that is not home is told; or when the next one would be due, if that is sooner.
"""

NEXT_AFTER_SECONDS = 60.0
"""After so long without one coming home the next one is sent, though not before it is due."""

GIVE_UP_SECONDS = 600.0
"""Then nobody waits for it any more; the ledger calls a registration that is nowhere to be found
after as long lost."""

SILENT_ROUNDS = 3
"""After so many intervals without a word from the canary itself, that is the news."""


class Registrations(Protocol):
    """Where journeys are read and canaries removed: ``common.database_client`` in production."""

    async def select_journey(self, registration_id: UUID) -> Journey:
        """How far a registration has come."""
        ...

    async def delete_canary(self, canary_id: UUID) -> None:
        """Remove a canary, and stale ones."""
        ...


Register = Callable[[UUID], Awaitable[None]]
"""Sends a canary in through the form's endpoint; raises one of our errors."""


@dataclass(slots=True, eq=False)
class _Trip:
    """A canary under way."""

    canary_id: UUID = field(default_factory=new_canary_id)
    started_at: float = field(default_factory=time.monotonic)
    status: JourneyStatus | None = None
    """As its journey says; None until it is accepted."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_at


@dataclass(frozen=True, slots=True)
class _Trouble:
    """Why the last canary did not come home (yet)."""

    code: str
    detail: str


class Canary:
    """Sends canaries, one after the other, and says how the last one did."""

    def __init__(
        self, *, every_seconds: float, register: Register, registrations: Registrations
    ) -> None:
        self._every = every_seconds
        self._register = register
        self._registrations = registrations
        self._trouble: _Trouble | None = None
        self._heard_at = time.monotonic()
        self._home_at: float | None = None
        self._home_seconds = 0.0
        self._is_removed = True
        self._under_way: dict[_Trip, asyncio.Task[None]] = {}
        """Oldest first."""

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Canary"]:
        """Send canaries until the block is left; one that is under way then grows stale."""
        self._task = asyncio.create_task(self._fly_for_ever())
        metrics.CANARY_FAILING.set_function(lambda: self.note().warning)
        try:
            yield self
        finally:
            self.stop()
            with suppress(asyncio.CancelledError):
                await self._task

    def stop(self) -> None:
        """Send no more, and wait for none."""
        self._task.cancel()

    def note(self) -> HealthNote:
        """How the last one did, in words and figures."""
        now = time.monotonic()
        last = "no full round trip yet"
        facts: dict[str, float] = {}
        if self._home_at is not None:
            ago, took = round(now - self._home_at), round(self._home_seconds * 1000)
            last = f"last full round trip {ago} s ago, {took} ms"
            facts = {"secondsAgo": ago, "milliseconds": took}
        if self._trouble is not None:
            detail = f"{self._trouble.detail.rstrip('.')} ({last})."
            return HealthNote(warning=True, detail=detail, facts=facts)
        if now - self._heard_at > SILENT_ROUNDS * self._every:
            return HealthNote(
                warning=True, detail=f"No canary is sent any more ({last}).", facts=facts
            )
        return HealthNote(detail=last, facts=facts)

    async def _fly_for_ever(self) -> None:
        # Not all frontends that start together at the same moment, and not before the rest.
        await asyncio.sleep(self._every * random.uniform(0.1, 0.3))  # noqa: S311 - spreads load
        try:
            while True:
                pause = self._every * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
                self._heard_at = time.monotonic()
                flight = _Trip()
                task = asyncio.create_task(self._send(flight))
                self._under_way[flight] = task
                await asyncio.wait({task}, timeout=max(self._every, NEXT_AFTER_SECONDS))
                if task.done():
                    task.result()
                await asyncio.sleep(max(pause - flight.seconds, 0.1 * self._every))
        finally:
            await self._stop_waiting_for(list(self._under_way))

    async def _stop_waiting_for(self, flights: list[_Trip]) -> None:
        tasks = [self._under_way.pop(flight) for flight in flights]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, flight: _Trip) -> None:
        enter_request({CORRELATION_ID: f"canary-{flight.canary_id.hex[-12:]}"})
        try:
            await self._register(flight.canary_id)
        except UserStreamError as error:
            self._record_failure(
                f"refused.{error.code}", f"A canary was not accepted: {error.detail}"
            )
            del self._under_way[flight]
            return
        flight.status = JourneyStatus.PENDING
        gone = [flight]
        if await self._wait_until_mailed(flight):
            # Those before it are lost, or will be handled some time: that all is well is known.
            before = list(self._under_way)[: list(self._under_way).index(flight)]
            await self._stop_waiting_for(before)
            self._came_home(flight)
            gone += before
        for each in gone:
            await self._remove(each)
        del self._under_way[flight]

    async def _wait_until_mailed(self, flight: _Trip) -> bool:
        """Follow it until its mail is settled; False if it never is."""
        while flight.seconds < GIVE_UP_SECONDS:
            unreadable = ""
            try:
                flight.status = (await self._registrations.select_journey(flight.canary_id)).status
            except UserStreamError as error:
                unreadable = error.code
            if flight.status is JourneyStatus.MAILED:
                return True
            if flight.status is JourneyStatus.MAIL_FAILED:
                self._record_failure("mail_failed", "A canary's mail was recorded as failed.")
                return False
            self._heard_at = time.monotonic()
            is_oldest = flight is next(iter(self._under_way))
            if is_oldest and flight.seconds > min(self._every, LATE_SECONDS):
                self._late(flight, unreadable)
            pause = max(flight.seconds / 2, FIRST_LOOK_SECONDS)
            await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))
        self._record_failure("lost", f"A canary has not come home in {GIVE_UP_SECONDS:g} s.")
        return False

    def _late(self, flight: _Trip, unreadable: str) -> None:
        """Say how far it came in all that time."""
        since = f"A canary was accepted {flight.seconds:.0f} s ago"
        if unreadable:
            self._record_failure(
                f"unreadable.{unreadable}", f"{since}; its journey cannot be read."
            )
        elif flight.status is JourneyStatus.STORED:
            self._record_failure("not_mailed", f"{since} and is stored; its mail is not settled.")
        else:
            self._record_failure("not_stored", f"{since} and is not stored.")

    def _record_failure(self, code: str, detail: str) -> None:
        """Take note, and say it where it is news."""
        if self._trouble is None or self._trouble.code != code:
            log.warning("canary.failed", code=code)
        self._trouble = _Trouble(code, detail)

    def _came_home(self, flight: _Trip) -> None:
        self._home_at, self._home_seconds = time.monotonic(), flight.seconds
        metrics.CANARY_SECONDS.observe(self._home_seconds)
        if self._trouble is not None:
            log.info("canary.recovered", milliseconds=round(self._home_seconds * 1000))
        self._trouble = None

    async def _remove(self, flight: _Trip) -> None:
        """Leave nothing behind; what cannot be removed now is stale in an hour."""
        try:
            await self._registrations.delete_canary(flight.canary_id)
        except UserStreamError as error:
            if self._is_removed:
                log.warning("canary.not_removed", code=error.code)
            self._is_removed = False
        else:
            self._is_removed = True
