"""A circuit breaker: while a service is known to be down, calls to it fail at once.

The first call to a frozen service costs one time-out. From then on no call waits: the circuit is
open, and only its own readiness check goes to the service, until that succeeds.
"""

import asyncio
from collections.abc import Awaitable, Callable
from enum import Enum

import structlog

from common import metrics

log = structlog.get_logger()

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0
"""Between checks, doubling: a service that was killed is back within a second, and one that stays
down is checked by each of its clients every few seconds."""


class State(Enum):
    """Whether requests are made."""

    CLOSED = "closed"
    HALF_OPEN = "half_open"
    """The service is being checked."""
    OPEN = "open"


_FIGURES = {State.CLOSED: 0, State.HALF_OPEN: 1, State.OPEN: 2}


class Circuit:
    """Around all requests to one service.

    Args:
        upstream: Its name, for logs and metrics.
        is_ready: Checks it; has to return within a deadline of its own.
    """

    def __init__(self, upstream: str, *, is_ready: Callable[[], Awaitable[bool]]) -> None:
        self._upstream = upstream
        self._is_ready = is_ready
        self._checking: asyncio.Task[None] | None = None
        self._figure = metrics.CIRCUIT_STATE.labels(upstream)
        self._set(State.CLOSED)

    @property
    def is_closed(self) -> bool:
        """Whether requests may be made."""
        return self.state is State.CLOSED

    def open(self) -> None:
        """Let no request through until the service is ready again."""
        if self.state is State.CLOSED:
            self._set(State.OPEN)
            log.warning("circuit.opened", upstream=self._upstream)
            self._checking = asyncio.create_task(self._check_until_ready())

    async def aclose(self) -> None:
        """Stop checking."""
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait([self._checking])

    async def _check_until_ready(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            await asyncio.sleep(pause)
            self._set(State.HALF_OPEN)
            if await self._is_ready():
                break
            self._set(State.OPEN)
            pause = min(pause * 2, LONGEST_PAUSE_SECONDS)
        self._set(State.CLOSED)
        log.info("circuit.closed", upstream=self._upstream)

    def _set(self, state: State) -> None:
        self.state = state
        self._figure.set(_FIGURES[state])
