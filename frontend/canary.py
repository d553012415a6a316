"""The canary: a synthetic registration sent end to end, and the outcome of the last one.

One is in progress at a time. A late one may be lost, so another one is sent each minute to find
out whether the pipeline works again; in an outage those wait in the queues, one for each minute.
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

FIRST_POLL_SECONDS = 0.025
LONGEST_PAUSE_SECONDS = 5.0
"""Between polls of the journey: half of the elapsed time, within these bounds. So the time that is
reported is at most half too long."""

LATE_SECONDS = 60.0
"""A canary that is not mailed by then is reported; or when the next one is due, if sooner."""

NEXT_AFTER_SECONDS = 60.0
"""The next one is sent after so long without an outcome, though not before it is due."""

GIVE_UP_SECONDS = 600.0
"""Then it is no longer followed; the ledger calls a registration lost after as long."""

SILENT_ROUNDS = 3
"""After so many intervals without any activity the canary itself is reported as stopped."""


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
    """A canary on its way."""

    canary_id: UUID = field(default_factory=new_canary_id)
    started_at: float = field(default_factory=time.monotonic)
    status: JourneyStatus | None = None
    """As its journey says; None until it is accepted."""

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.started_at


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why the last canary was not mailed (yet)."""

    code: str
    detail: str


class Canary:
    """Sends canaries, one after the other, and reports the outcome of the last one."""

    def __init__(
        self, *, every_seconds: float, register: Register, registrations: Registrations
    ) -> None:
        self._every = every_seconds
        self._register = register
        self._registrations = registrations
        self._failure: _Failure | None = None
        self._active_at = time.monotonic()
        self._mailed_at: float | None = None
        self._trip_seconds = 0.0
        self._is_removed = True
        self._trips: dict[_Trip, asyncio.Task[None]] = {}
        """Oldest first."""

    @asynccontextmanager
    async def run(self) -> AsyncIterator["Canary"]:
        """Send canaries until the block is left; one in progress then grows stale."""
        self._task = asyncio.create_task(self._send_periodically())
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
        """The outcome of the last one, in words and figures."""
        now = time.monotonic()
        last = "no full round trip yet"
        facts: dict[str, float] = {}
        if self._mailed_at is not None:
            ago, took = round(now - self._mailed_at), round(self._trip_seconds * 1000)
            last = f"last full round trip {ago} s ago, {took} ms"
            facts = {"secondsAgo": ago, "milliseconds": took}
        if self._failure is not None:
            detail = f"{self._failure.detail.rstrip('.')} ({last})."
            return HealthNote(warning=True, detail=detail, facts=facts)
        if now - self._active_at > SILENT_ROUNDS * self._every:
            return HealthNote(
                warning=True, detail=f"No canary is sent any more ({last}).", facts=facts
            )
        return HealthNote(detail=last, facts=facts)

    async def _send_periodically(self) -> None:
        # Not all frontends that start together at the same moment, and not before the rest.
        await asyncio.sleep(self._every * random.uniform(0.1, 0.3))  # noqa: S311 - spreads load
        try:
            while True:
                pause = self._every * random.uniform(0.9, 1.1)  # noqa: S311 - spreads load
                self._active_at = time.monotonic()
                trip = _Trip()
                task = asyncio.create_task(self._send(trip))
                self._trips[trip] = task
                await asyncio.wait({task}, timeout=max(self._every, NEXT_AFTER_SECONDS))
                if task.done():
                    task.result()
                await asyncio.sleep(max(pause - trip.seconds, 0.1 * self._every))
        finally:
            await self._cancel(list(self._trips))

    async def _cancel(self, trips: list[_Trip]) -> None:
        tasks = [self._trips.pop(trip) for trip in trips]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _send(self, trip: _Trip) -> None:
        enter_request({CORRELATION_ID: f"canary-{trip.canary_id.hex[-12:]}"})
        try:
            await self._register(trip.canary_id)
        except UserStreamError as error:
            self._record_failure(
                f"refused.{error.code}", f"A canary was not accepted: {error.detail}"
            )
            del self._trips[trip]
            return
        trip.status = JourneyStatus.PENDING
        ended = [trip]
        if await self._wait_until_mailed(trip):
            # Those before it are lost or late, and no longer of interest: the pipeline works.
            before = list(self._trips)[: list(self._trips).index(trip)]
            await self._cancel(before)
            self._record_success(trip)
            ended += before
        for each in ended:
            await self._remove(each)
        del self._trips[trip]

    async def _wait_until_mailed(self, trip: _Trip) -> bool:
        """Poll its journey until it is mailed; False if it never is."""
        while trip.seconds < GIVE_UP_SECONDS:
            unreadable = ""
            try:
                trip.status = (await self._registrations.select_journey(trip.canary_id)).status
            except UserStreamError as error:
                unreadable = error.code
            if trip.status is JourneyStatus.MAILED:
                return True
            if trip.status is JourneyStatus.MAIL_FAILED:
                self._record_failure("mail_failed", "A canary's mail was recorded as failed.")
                return False
            self._active_at = time.monotonic()
            is_oldest = trip is next(iter(self._trips))
            if is_oldest and trip.seconds > min(self._every, LATE_SECONDS):
                self._record_delay(trip, unreadable)
            pause = max(trip.seconds / 2, FIRST_POLL_SECONDS)
            await asyncio.sleep(min(pause, LONGEST_PAUSE_SECONDS))
        self._record_failure(
            "lost", f"The canary registration was not mailed within {GIVE_UP_SECONDS:g} s."
        )
        return False

    def _record_delay(self, trip: _Trip, unreadable: str) -> None:
        """Record how far it has come in that time."""
        since = f"A canary was accepted {trip.seconds:.0f} s ago"
        if unreadable:
            self._record_failure(
                f"unreadable.{unreadable}", f"{since}; its journey cannot be read."
            )
        elif trip.status is JourneyStatus.STORED:
            self._record_failure("not_mailed", f"{since} and is stored, but not mailed.")
        else:
            self._record_failure("not_stored", f"{since} and is not stored.")

    def _record_failure(self, code: str, detail: str) -> None:
        """Keep the reason, and log it where it is a new one."""
        if self._failure is None or self._failure.code != code:
            log.warning("canary.failed", code=code)
        self._failure = _Failure(code, detail)

    def _record_success(self, trip: _Trip) -> None:
        self._mailed_at, self._trip_seconds = time.monotonic(), trip.seconds
        metrics.CANARY_SECONDS.observe(self._trip_seconds)
        if self._failure is not None:
            log.info("canary.recovered", milliseconds=round(self._trip_seconds * 1000))
        self._failure = None

    async def _remove(self, trip: _Trip) -> None:
        """Remove its rows; what cannot be removed now is stale in an hour."""
        try:
            await self._registrations.delete_canary(trip.canary_id)
        except UserStreamError as error:
            if self._is_removed:
                log.warning("canary.not_removed", code=error.code)
            self._is_removed = False
        else:
            self._is_removed = True
