"""Pauses work while a neighbour is away, and lets one piece of work probe for its return."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from common.errors import UnavailableError

FIRST_PROBE_SECONDS = 1.0
LONGEST_PROBE_SECONDS = 30.0
"""Between probes: doubling from the first to the longest."""

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
        self._turn = asyncio.Event()
        self._turn.set()
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
            await self._turn.wait()
            if not self.paused or not self._turn.is_set():
                continue
            self._turn.clear()
            try:
                await asyncio.sleep(self._pause)
                async with self._judged(probing=True):
                    yield
            finally:
                self._turn.set()
            return
        async with self._judged(probing=False):
            yield

    @asynccontextmanager
    async def _judged(self, *, probing: bool) -> AsyncIterator[None]:
        # A probe may take long for reasons of its own, such as a slow mail server; the others
        # need not wait for its end once it is plain that the neighbours are there.
        patience = (
            asyncio.get_running_loop().call_later(PATIENCE_SECONDS, self._resume)
            if probing
            else None
        )
        try:
            yield
        except UnavailableError as error:
            self.trip(error, longer=probing)
            raise
        except Exception:
            if probing:
                self._resume()
            raise
        else:
            if probing:
                self._resume()
        finally:
            if patience is not None:
                patience.cancel()

    def trip(self, error: UnavailableError, *, longer: bool = False) -> None:
        """Pause everybody; ``longer`` doubles the wait for the next probe."""
        first = not self.paused
        self.failure = error
        if longer:
            self._pause = min(self._pause * 2, LONGEST_PROBE_SECONDS)
        if first:
            self._pause = self._first_pause
            self._on_pause(error)

    def _resume(self) -> None:
        if self.paused:
            self.failure = None
            self._turn.set()
            self._on_resume()
