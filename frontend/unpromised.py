"""Tells the ledger what was published and answered with 503.

The broker may have such a registration in its stream and nowhere else. Nobody was promised it, and
without a word from here the ledger would call it lost. It is kept in memory alone: a process that
is killed before it could tell leaves a false alarm, never a loss that nobody sees.
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
"""Publications that wait to be told, some 5 MB; what comes on top is not told."""

PAUSE_SECONDS = 0.2
"""Between two requests, so that those of a flood travel together."""

LONGEST_PAUSE_SECONDS = 10.0
"""Between attempts where database_service is away: doubling up to this."""

STOP_SECONDS = 2.0
"""For what is left at an orderly stop."""


class Ledger(Protocol):
    """Where it is kept: ``common.database_client.client`` in production."""

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
        """Tell the ledger of it some time; costs whoever is answered nothing.

        Only for a publication that no 202 was given for, and none will be.
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
    async def telling(self) -> AsyncIterator[Self]:
        """Tell in the background until the block is left; then what is left, if that is quick."""
        task = asyncio.create_task(self._tell_for_ever())
        try:
            yield self
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            with suppress(UserStreamError, TimeoutError):
                async with asyncio.timeout(STOP_SECONDS):
                    while self._waiting:
                        await self._tell_some()

    async def _tell_for_ever(self) -> None:
        pause = PAUSE_SECONDS
        while True:
            await self._has_some.wait()
            try:
                await self._tell_some()
                pause = PAUSE_SECONDS
            except UserStreamError:  # as often as it takes; the circuit has said so already
                pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
            await asyncio.sleep(pause)

    async def _tell_some(self) -> None:
        """Tell of the oldest; told twice, they are known once."""
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
        """Leave some to be called lost; said once per reason."""
        if self._dropped != code:
            log.warning("unpromised.dropped", code=code)
        self._dropped = code
