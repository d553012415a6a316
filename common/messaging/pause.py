"""Tells an outage from a message that fails for a reason of its own, and pauses for outages only.

What one message meets proves nothing about another service. An outage is what that service itself
admits when it is asked, or what a second message meets before any other succeeds.
"""

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto
from uuid import UUID

from common.errors import UnavailableError

FIRST_PROBE_SECONDS = 0.5
LONGEST_PROBE_SECONDS = 30.0
"""Between probes: doubling from the first to the longest, as long as the other service is away.

The first is short: where one of two instances was killed, the other one answers at once, and work
is to go on within a second. It stays short while the service answers that it is well: then only
messages show the outage, and the next one may succeed.
"""

PROBE_TIMEOUT_SECONDS = 20.0
"""A probe that has met no outage for so long ends the pause: longer than every deadline of another
service (10 s for an answer, 2 s for its readiness)."""

ASK_SECONDS = 5.0
"""A service that needs longer to answer that it is well is not."""

WITNESSES = 2
"""So many messages that fail, with none that succeeds in between, are an outage."""

MAX_CASES = 1000
"""So many messages that failed are remembered, should they come again."""

Ask = Callable[[], Awaitable[None]]
"""Returns if all services that are needed are well; raises UnavailableError if one is not."""


class Decision(Enum):
    """What is to become of a delivery that met an unavailable service."""

    HOLD = auto()
    """Keep it in flight and try again: an outage, or not known yet."""

    RETRY = auto()
    """Its own failure: others succeed, or the service is well and no other message fails."""

    DEFER = auto()
    """An outage that only messages show. This one has probed: let another one take its place."""


@dataclass(slots=True, eq=False)
class Case:
    """A message that may have met an unavailable service, in this delivery or in one before."""

    message_id: UUID
    failures: int = 0
    failed_at: int = 0
    """Number of its latest failure, see ``Evidence.failures``."""
    refuted: bool = False
    """Whether another message ever succeeded between two of its failures."""
    last_tries: int = 0
    """How often it failed by itself where its next step would be the dead letters."""


class Evidence:
    """Which messages failed, and whether one that began afterwards succeeded. Without I/O."""

    def __init__(self) -> None:
        self.failures = 0
        """Counts all; also the clock that orders what began after what."""
        self._proven = 0
        self._cases: OrderedDict[UUID, Case] = OrderedDict()
        self._witnesses: dict[UUID, int] = {}

    def case(self, message_id: UUID) -> Case:
        """What is known about a message; one that was deferred is known when it comes again."""
        case = self._cases.pop(message_id, None) or Case(message_id)
        self._cases[message_id] = case
        if len(self._cases) > MAX_CASES:
            self._cases.popitem(last=False)
        return case

    def succeeded(self, begun_at: int) -> None:
        """Note a success.

        Args:
            begun_at: ``failures`` when that work began. What failed until then is refuted: the
                service has worked since.
        """
        self._proven = max(self._proven, begun_at)
        for message_id in [key for key, at in self._witnesses.items() if at <= self._proven]:
            del self._witnesses[message_id]

    @property
    def is_doubtful(self) -> bool:
        """Whether a success would prove anything."""
        return self._proven < self.failures

    @property
    def is_enough(self) -> bool:
        """Whether several messages failed and none has succeeded since."""
        return len(self._witnesses) >= WITNESSES

    def withdraw(self, case: Case) -> None:
        """Take back the latest failure of a message: the service has explained it."""
        case.failures -= 1
        case.failed_at = 0
        self._witnesses.pop(case.message_id, None)

    def failed(self, case: Case) -> bool:
        """Note a failure; True if another message succeeded since this one's last.

        Then it is no witness either: whatever it meets may be a matter of its own.
        """
        refuted = 0 < case.failed_at <= self._proven
        self.failures += 1
        case.failures += 1
        case.failed_at = self.failures
        self._witnesses.pop(case.message_id, None)
        if refuted:
            case.refuted = True
            return True
        if len(self._witnesses) >= WITNESSES:  # more would prove no more
            del self._witnesses[next(iter(self._witnesses))]
        self._witnesses[case.message_id] = self.failures
        return False


@dataclass(slots=True, eq=False)
class _Turn:
    case: Case
    may_probe: asyncio.Future[bool] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    """False if the pause is over."""


class OutageGate:
    """Lets all pass while other services answer; otherwise one at a time, after a pause.

    Args:
        on_pause: Called once when an outage is found.
        on_resume: Called once when it is over.
        ask: Asks the other services; without it their errors count as their own answer.
    """

    def __init__(
        self,
        *,
        on_pause: Callable[[UnavailableError], None],
        on_resume: Callable[[], None],
        ask: Ask | None = None,
    ) -> None:
        self._on_pause = on_pause
        self._on_resume = on_resume
        self._ask = ask
        self._asking: asyncio.Task[UnavailableError | None] | None = None
        self._pause = FIRST_PROBE_SECONDS
        self._next_probe_at = 0.0
        self._paused_at = 0
        self._timer: asyncio.Handle | None = None
        self._turns: list[_Turn] = []
        self._probe: _Turn | None = None
        self.evidence = Evidence()
        self.failure: UnavailableError | None = None

    @property
    def paused(self) -> bool:
        """Whether another service is away."""
        return self.failure is not None

    # -- turns ------------------------------------------------------------------------------

    @asynccontextmanager
    async def pass_through(self, case: Case) -> AsyncIterator[None]:
        """Do one unit of work inside; waits while paused, until its turn to probe.

        Of those that wait, one that has not failed probes first: the others have shown already
        what they can. Inside, report ``succeeded``, ``failed`` or ``inconclusive``.
        """
        turn = await self._its_turn(case)
        if turn is None:
            yield
            return
        # A probe may take long for reasons of its own, such as a slow mail server; the others
        # need not wait for its end once it is plain that the services are there. From then on
        # it is work like any other: if a new outage has begun when it ends, it is not its probe.
        timer = asyncio.get_running_loop().call_later(PROBE_TIMEOUT_SECONDS, self._outlasted, turn)
        try:
            yield
        finally:
            timer.cancel()
            self._end(turn)

    async def _its_turn(self, case: Case) -> _Turn | None:
        """Wait until the pause is over (None), or until this one may probe."""
        while self.paused:
            turn = _Turn(case)
            self._turns.append(turn)
            self._schedule()
            try:
                if await turn.may_probe:
                    return turn
            except BaseException:
                self._end(turn)
                raise
            finally:
                if turn in self._turns:
                    self._turns.remove(turn)
        return None

    def _schedule(self) -> None:
        """Let one probe when the time has come."""
        if self.paused and self._probe is None and self._timer is None and self._turns:
            self._timer = _call_at(max(_now(), self._next_probe_at), self._admit)

    def _admit(self) -> None:
        self._timer = None
        waiting = [turn for turn in self._turns if not turn.may_probe.done()]
        if waiting and self.paused and self._probe is None:
            self._probe = min(waiting, key=lambda turn: turn.case.failures)
            self._probe.may_probe.set_result(True)

    def _end(self, turn: _Turn) -> None:
        """Let the next one probe, unless that is so already."""
        if self._probe is turn:
            self._probe = None
            self._schedule()

    def _outlasted(self, turn: _Turn) -> None:
        if self._probe is turn:
            self._resume()

    # -- what was met -----------------------------------------------------------------------

    def succeeded(self, begun_at: int) -> None:
        """Note that work which began at ``evidence.failures`` has met no outage.

        What began before the pause does not end it: its answer may have been on the way.
        """
        self.evidence.succeeded(begun_at)
        if self.paused and begun_at >= self._paused_at:
            self._resume()

    async def inconclusive(self, case: Case) -> None:
        """Note that work ended without needing other services; after a probe, ask them."""
        if self._is_probe(case) and (self._ask is None or await self._answer() is None):
            self._resume()

    async def failed(self, case: Case, error: UnavailableError) -> Decision:
        """Note that a delivery met an unavailable service; return what to do with it."""
        probed = self._is_probe(case)
        refuted = self.evidence.failed(case)
        admitted = await self._admitted(case, error, refuted=refuted)
        if admitted is not None:
            self._keep_paused(admitted, probed=probed, admitted=True)
            return Decision.HOLD
        if refuted:
            return Decision.RETRY
        if self.evidence.is_enough:
            self._keep_paused(error, probed=probed, admitted=False)
            return Decision.DEFER if probed else Decision.HOLD
        return Decision.RETRY if case.failures > 1 else Decision.HOLD

    async def _admitted(
        self, case: Case, error: UnavailableError, *, refuted: bool
    ) -> UnavailableError | None:
        """What the services admit is wrong with them, if anything; then it is not the message."""
        if self._ask is None and not error.concerns_all:
            return None if refuted else error
        admitted = error if error.concerns_all else await self._answer()
        if admitted is not None:
            self.evidence.withdraw(case)
        return admitted

    async def _answer(self) -> UnavailableError | None:
        """Ask the services; callers at the same time share one question."""
        if self._asking is None or self._asking.done():
            assert self._ask is not None  # noqa: S101 - both callers have looked
            self._asking = asyncio.create_task(_outcome(self._ask))
        return await asyncio.shield(self._asking)

    def _is_probe(self, case: Case) -> bool:
        return self._probe is not None and self._probe.case is case

    def _keep_paused(self, error: UnavailableError, *, probed: bool, admitted: bool) -> None:
        """Pause all; a probe that failed decides when the next one is due."""
        first = not self.paused
        self.failure = error
        if first or probed:
            longer = min(self._pause * 2, LONGEST_PROBE_SECONDS)
            self._pause = longer if probed and admitted else FIRST_PROBE_SECONDS
            self._next_probe_at = _now() + self._pause
        if first:
            self._paused_at = self.evidence.failures
            self._on_pause(error)

    def _resume(self) -> None:
        self.failure = self._probe = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for turn in self._turns:
            if not turn.may_probe.done():
                turn.may_probe.set_result(False)
        self._on_resume()


async def _outcome(ask: Ask) -> UnavailableError | None:
    try:
        async with asyncio.timeout(ASK_SECONDS):
            await ask()
    except UnavailableError as error:
        return error
    except TimeoutError:
        return UnavailableError(f"No answer within {ASK_SECONDS:g} s.")
    return None


def _now() -> float:
    return asyncio.get_running_loop().time()


def _call_at(when: float, callback: Callable[[], object]) -> asyncio.Handle:
    return asyncio.get_running_loop().call_at(when, callback)
