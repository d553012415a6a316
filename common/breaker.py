"""Pauses work while a neighbour is away, and lets one piece of work probe for its return."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from common.errors import UnavailableError

FIRST_PROBE_SECONDS = 1.0
LONGEST_PROBE_SECONDS = 30.0
"""Between probes: doubling from the first to the longest."""


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
        self._probe = asyncio.Lock()
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
        if self.paused:
            async with self._probe:
                if self.paused:
                    await asyncio.sleep(self._pause)
                    async with self._judged(probing=True):
                        yield
                    return
        async with self._judged(probing=False):
            yield

    @asynccontextmanager
    async def _judged(self, *, probing: bool) -> AsyncIterator[None]:
        try:
            yield
        except UnavailableError as error:
            self._trip(error, longer=probing)
            raise
        except Exception:
            self._resume(if_probing=probing)
            raise
        else:
            self._resume(if_probing=probing)

    def _trip(self, error: UnavailableError, *, longer: bool) -> None:
        first = not self.paused
        self.failure = error
        if longer:
            self._pause = min(self._pause * 2, LONGEST_PROBE_SECONDS)
        if first:
            self._pause = self._first_pause
            self._on_pause(error)

    def _resume(self, *, if_probing: bool) -> None:
        if if_probing and self.paused:
            self.failure = None
            self._on_resume()
