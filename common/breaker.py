"""Pauses work while a neighbour is away, and lets one piece of work probe for its return."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from common.errors import UnavailableError

FIRST_PROBE_SECONDS = 0.5
LONGEST_PROBE_SECONDS = 30.0
"""Between probes: doubling from the first to the longest.

The first is short: where one of two instances was killed, the other one answers at once, and work
is to go on within a second.
"""

PATIENCE_SECONDS = 20.0
"""A probe that has met no outage for so long has got through: longer than every deadline of a
neighbour (10 s for an answer, 2 s for its readiness)."""


class Breaker:
    """Everyone passes while the neighbours answer; otherwise one at a time, after a pause.

    Args:
        on_pause: Called once when the first piece of work finds a neighbour away.
        on_resume: Called once when a probe has got through.
    """

    def __init__(
        self,
        *,
        on_pause: Callable[[UnavailableError], None],
        on_resume: Callable[[], None],
        first_pause: float = FIRST_PROBE_SECONDS,
    ) -> None:
        self._on_pause = on_pause
        self._on_resume = on_resume
        self._first_pause = first_pause
        self._pause = first_pause
        self._probe: object | None = None
        self._moved_on = asyncio.Event()
        self.failure: UnavailableError | None = None

    @property
    def paused(self) -> bool:
        """Whether a neighbour is away."""
        return self.failure is not None

    @asynccontextmanager
    async def passage(self) -> AsyncIterator[None]:
        """Do one piece of work inside; waits while paused, until its turn to probe.

        An ``UnavailableError`` from inside pauses everybody. Anything else, failure or not,
        shows that the neighbours answer.
        """
        while self.paused:
            if self._probe is not None:
                await self._moved_on.wait()
                continue
            probe = self._probe = object()
            try:
                await asyncio.sleep(self._pause)
                async with self._probing(probe):
                    yield
            finally:
                self._end(probe)
            return
        try:
            yield
        except UnavailableError as error:
            self.trip(error)
            raise

    @asynccontextmanager
    async def _probing(self, probe: object) -> AsyncIterator[None]:
        """Let the end of the block decide whether the pause is over.

        A probe may take long for reasons of its own, such as a slow mail server; the others
        need not wait for its end once it is plain that the neighbours are there. From then on
        it is work like any other: if a new outage has begun when it ends, it is not its probe.
        """
        loop = asyncio.get_running_loop()
        patience = loop.call_later(PATIENCE_SECONDS, self._got_through, probe)
        try:
            yield
        except UnavailableError as error:
            self.trip(error, longer=self._probe is probe)
            raise
        except Exception:
            self._got_through(probe)
            raise
        else:
            self._got_through(probe)
        finally:
            patience.cancel()

    def _got_through(self, probe: object) -> None:
        if self._probe is probe:
            self.failure = None
            self._end(probe)
            self._on_resume()

    def _end(self, probe: object) -> None:
        """Let the next one probe, unless that is so already."""
        if self._probe is probe:
            self._probe = None
            self._moved_on.set()
            self._moved_on = asyncio.Event()

    def trip(self, error: UnavailableError, *, longer: bool = False) -> None:
        """Pause everybody; ``longer`` doubles the wait for the next probe."""
        first = not self.paused
        self.failure = error
        if longer:
            self._pause = min(self._pause * 2, LONGEST_PROBE_SECONDS)
        if first:
            self._pause = self._first_pause
            self._on_pause(error)
