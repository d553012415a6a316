"""Reports to the ledger what was published and answered with 503.

The broker may have such a registration in its stream and nowhere else. It was not promised, and
without a report the ledger would call it lost. Reports are kept in memory alone: a process that is
killed before it sent one leaves a false alarm, never a hidden loss.
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from itertools import islice
from typing import Protocol, Self
from uuid import UUID

import structlog

from common.context import span_of
from common.contracts.canary import is_canary
from common.contracts.ledger import MAX_ENTRIES, UnpromisedPublication, UnpromisedPublications
from common.contracts.topology import USER_REGISTRATION
from common.errors import PermanentError, UserStreamError

log = structlog.get_logger()

MAX_WAITING = 10_000
"""Publications that wait to be reported, some 5 MB; more are not reported."""

PAUSE_SECONDS = 0.2
"""Between two requests, so that those of a flood are sent in one."""

LONGEST_PAUSE_SECONDS = 10.0
"""Between attempts where database_service is away: doubling up to this."""

STOP_SECONDS = 2.0
"""For what is left at an orderly stop."""


class Ledger(Protocol):
    """Where reports are kept: ``common.database_client.client`` in production."""

    async def record_unpromised(self, unpromised: UnpromisedPublications) -> int:
        """Keep what was published and answered with 503."""
        ...


class Unpromised:
    """Publications that were answered with 503, until the ledger knows of them."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._waiting: deque[UnpromisedPublication] = deque()
        self._has_some = asyncio.Event()
        self._dropped = ""

    def note(self, registration_id: UUID, traceparent: str) -> None:
        """Queue the publication for a report; the answer to its request does not wait.

        Only for a publication without a 202, now and later.
        """
        span = span_of(traceparent)
        if not span or is_canary(registration_id):  # of canaries the ledger keeps nothing
            return
        if len(self._waiting) >= MAX_WAITING:
            self._drop("full")
            return
        self._waiting.append(UnpromisedPublication(registration_id=registration_id, span=span))
        self._has_some.set()

    @asynccontextmanager
    async def reporting(self) -> AsyncIterator[Self]:
        """Report in the background until the block is left; then the rest, if that is quick."""
        task = asyncio.create_task(self._report_periodically())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with suppress(UserStreamError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    while self._waiting:
                        await self._report_some()

    async def _report_periodically(self) -> None:
        pause = PAUSE_SECONDS
        while True:
            await self._has_some.wait()
            try:
                await self._report_some()
                pause = PAUSE_SECONDS
            except UserStreamError:  # as often as it takes; the circuit has logged it already
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def _report_some(self) -> None:
        """Report the oldest; a repeated report changes nothing."""
        some = list(islice(self._waiting, MAX_ENTRIES))
        try:
            await self._ledger.record_unpromised(
                UnpromisedPublications(stream=USER_REGISTRATION.log, publications=some)
            )
            self._dropped = ""
        except PermanentError as error:  # not_found: an older release, which never asks
            self._drop(error.code)
        for _ in some:
            self._waiting.popleft()
        if not self._waiting:
            self._has_some.clear()

    def _drop(self, code: str) -> None:
        """Leave some unreported; logged once per reason."""
        if self._dropped != code:
            log.warning("unpromised.dropped", code=code)
        self._dropped = code
