"""Reconciles, by id, what was accepted with what became of it."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from common import metrics
from common.amqp.dead_letter_queue import DeadLetterQueue
from common.amqp.queue_depths import QueueDepth
from common.contracts.ledger import (
    MAX_NAMED,
    MAX_VERIFIED,
    Acknowledged,
    AcknowledgeIncidents,
    AcknowledgeRequest,
    InFlight,
    Ledger,
    ListedRegistration,
    MissingRegistration,
    Reconciliation,
    ReconciliationRequest,
    WorkBinding,
)
from common.errors import ConflictError, TopologyMissingError, UserStreamError
from common.readiness import HealthNote
from queue_receiver.ledger.checkpoint import Checkpoint
from queue_receiver.ledger.reader import STREAM, LedgerStore, Progress, Stream, read_new_entries

log = structlog.get_logger()

MOST_IN_BACKGROUND = 3_000
"""Messages read in one turn of the background: some seconds, for which a request has to wait."""

MOST_ON_REQUEST = 50_000
"""Messages read on request: some seconds; the answer says if that was not all."""

RECHECK_AFTER = 1.0
"""Seconds between the two comparisons after which a registration counts as lost."""

VERIFIED_IN_BACKGROUND = 2_000
"""Rows of stored registrations checked in one turn: some thousandths of a second."""

VERIFIED_BESIDE_WORK = 200
"""So many if registrations came in since the last turn: those would wait for it."""

EMPTY_FOR = 30.0
"""Seconds after which a stream that was read before, and has nothing, counts as created anew. In
the first seconds after the start of the broker it looks the same."""

LISTED_FOR = timedelta(minutes=1)
"""How long a list of the dead letters is reused while their number stays the same."""

BINDING_CHECK_AFTER = 30.0
"""Seconds after which a registration that is in no queue and not stored shows that the work queue
may not be bound, where no management API can say so."""


class Queues(Protocol):
    """The route's queues: ``common.amqp.queue_depths`` in production."""

    async def read(self) -> QueueDepth:
        """Their depths now."""
        ...


@dataclass(slots=True)
class KnownDeadLetters:
    """The dead letters as they were last listed."""

    codes: Mapping[UUID, str] = field(default_factory=dict)
    """Id to error code."""

    unlisted: int = 0
    """How many more there were."""

    listed_at: float = 0.0
    """By the monotonic clock."""

    @property
    def total(self) -> int:
        """How many there were."""
        return len(self.codes) + self.unlisted


class Auditor:
    """Keeps the ledger current; every receiver may have one.

    Args:
        stream: Reads the stream of what was accepted.
        store: Has what is stored, and what was read.
        queues: The depths of the route's queues.
        dead_letters: The route's dead letters.
        lost_after: Registrations younger than this are never called lost.
        checkpoint: How far the stream had been read, in case the store was restored.
    """

    def __init__(
        self,
        *,
        stream: Stream,
        store: LedgerStore,
        queues: Queues,
        dead_letters: DeadLetterQueue,
        lost_after: timedelta,
        checkpoint: Checkpoint | None = None,
    ) -> None:
        self._stream = stream
        self._store = store
        self._queues = queues
        self._dead_letter_queue = dead_letters
        self._lost_after = lost_after.total_seconds()
        self._checkpoint = checkpoint or Checkpoint(None, STREAM)
        self._known = KnownDeadLetters()
        self._one_at_a_time = asyncio.Lock()
        self._last: Ledger | None = None
        self._last_at = time.monotonic()
        self._lost: list[MissingRegistration] = []
        self._failure = ""
        self._has_more = False
        self._unbound = False
        self._empty_since: float | None = None
        metrics.LEDGER_AGE.set_function(lambda: time.monotonic() - self._last_at)

    # -- answers ----------------------------------------------------------------------------

    async def reconcile(self, *, most: int = MOST_ON_REQUEST, throttled: bool = False) -> Ledger:
        """Read new entries and compare; throttled where no request waits for it.

        Raises:
            UnavailableError: The broker or database_service is away; nothing is known anew.
        """
        async with self._one_at_a_time:
            progress = await self._read_new(most=most, throttled=throttled)
            verify = self._verified_at_once(progress) if throttled else MAX_VERIFIED
            ledger, self._lost = await self._compare(progress, verify=verify)
            self._has_more = progress.has_more
            self._last, self._last_at = ledger, time.monotonic()
        _measure(ledger)
        return ledger

    async def _read_new(self, *, most: int, throttled: bool) -> Progress:
        now = time.monotonic()
        since = self._empty_since
        progress = await read_new_entries(
            self._stream,
            self._store,
            self._checkpoint,
            most=most,
            throttled=throttled,
            is_empty=since is not None and now - since > EMPTY_FOR,
        )
        self._empty_since = (now if since is None else since) if progress.is_empty else None
        return progress

    def _verified_at_once(self, progress: Progress) -> int:
        is_idle = self._last is not None and self._last.read_up_to == progress.next_offset
        return VERIFIED_IN_BACKGROUND if is_idle else VERIFIED_BESIDE_WORK

    async def acknowledge_incidents(self, request: AcknowledgeRequest) -> Acknowledged:
        """Acknowledge what cannot be accounted for; it no longer counts as a warning then.

        Raises:
            DatabaseServiceUnavailableError: Nothing has changed, or that is not known; repeat it.
        """
        done = await self._store.acknowledge_incidents(
            AcknowledgeIncidents(
                stream=STREAM, reason=request.reason, acknowledged_by=request.acknowledged_by
            )
        )
        log.info("ledger.acknowledged", incidents=len(done.acknowledged))
        if self._last is not None:
            self._last = self._last.model_copy(update={"incidents": []})
            _measure(self._last)
        return done

    @property
    def lost(self) -> list[MissingRegistration]:
        """Every registration that was lost at the last comparison, oldest first."""
        return self._lost

    def note(self) -> HealthNote:
        """For ``/health``."""
        if self._last is None:
            return HealthNote(detail=self._failure or "Not read yet.", warning=bool(self._failure))
        seconds = round(time.monotonic() - self._last_at)
        ledger = self._last
        facts = {
            "lost": ledger.lost,
            "unpromised": ledger.totals.unpromised,
            "incidents": len(ledger.incidents),
            "ageSeconds": seconds,
        }
        texts = [incident.detail for incident in ledger.incidents]
        if ledger.lost:
            text = (
                f"{seconds} s ago {ledger.lost} accepted registrations were in no queue and not "
                "stored. The stream has them: ./userstream ledger --repair"
            )
            texts.insert(0, text)
        if ledger.incidents:
            texts.append("When it is clear what happened: ./userstream ledger --acknowledge REASON")
        if self._failure:
            texts.insert(0, self._failure)
        if texts:
            return HealthNote(detail=" ".join(texts), warning=True, facts=facts)
        return HealthNote(detail=f"Nothing was lost, {seconds} s ago.", facts=facts)

    async def check_binding(self) -> None:
        """Raise TopologyMissingError if what is accepted does not reach the work queue.

        For brokers without a management API, which would say so at once.
        """
        if self._unbound:
            raise TopologyMissingError(
                "Registrations are accepted, but do not reach the queue user.registration: its "
                "binding seems to be missing. The stream has them. Import "
                "rabbitmq/definitions.json, then: ./userstream ledger --repair"
            )

    # -- comparing --------------------------------------------------------------------------

    async def _compare(
        self, progress: Progress, *, verify: int
    ) -> tuple[Ledger, list[MissingRegistration]]:
        """Find out what is lost, after everything that could hold it was read.

        The queues come first, then the database, then the dead letters: a message that leaves a
        queue is stored or a dead letter before, so one of the later readings sees it.
        """
        queues, stored, dead_letters, lost = await self._compare_once(verify=verify)
        known = {one.registration_id for one in self._lost}
        if any(one.registration_id not in known for one in lost):
            # The management API's figures are some seconds old: an old message that was just
            # sent back may be in delivery. It is not in two comparisons in a row.
            await asyncio.sleep(RECHECK_AFTER)
            before = {one.registration_id for one in lost}
            queues, stored, dead_letters, lost = await self._compare_once()
            lost = [one for one in lost if one.registration_id in before]
        self._unbound = await self._is_unbound(queues, dead_letters)
        return self._ledger(progress, stored, queues, dead_letters, lost), lost

    async def _compare_once(
        self, *, verify: int = 0
    ) -> tuple[QueueDepth, Reconciliation, KnownDeadLetters, list[MissingRegistration]]:
        """Read the queues, then the database, and if something seems lost the dead letters."""
        queues = await self._queues.read()
        stored = await self._reconcile(self._lost_after, verify=verify)
        candidates = _candidates(stored, queues, self._lost_after)
        dead_letters = await self._listed(queues.dead, candidates)
        lost = [one for one in candidates if one.registration_id not in dead_letters.codes]
        # As many as could not be listed may be among those.
        return queues, stored, dead_letters, lost[: max(0, len(lost) - dead_letters.unlisted)]

    async def _reconcile(self, missing_for_seconds: float, *, verify: int = 0) -> Reconciliation:
        return await self._store.reconcile_ledger(
            ReconciliationRequest(
                stream=STREAM, missing_for_seconds=missing_for_seconds, verify=verify
            )
        )

    async def _is_unbound(self, queues: QueueDepth, dead_letters: KnownDeadLetters) -> bool:
        if queues.bound is not None or queues.pending or dead_letters.unlisted:
            return queues.bound is False
        stored = await self._reconcile(min(BINDING_CHECK_AFTER, self._lost_after))
        return any(
            one.registration_id not in dead_letters.codes and not one.was_known
            for one in stored.missing
        )

    async def _listed(self, dead: int, candidates: list[MissingRegistration]) -> KnownDeadLetters:
        """The dead letters, listed anew if they may have changed."""
        known = self._known
        is_fresh = time.monotonic() - known.listed_at < LISTED_FOR.total_seconds()
        is_same = dead == known.total and (is_fresh or not dead)
        if not is_same or any(one.registration_id not in known.codes for one in candidates):
            self._known = await self._list_dead_letters()
        return self._known

    async def _list_dead_letters(self) -> KnownDeadLetters:
        """Read the ids and codes of the dead letters; moves nothing."""
        known = self._known
        try:
            async with self._dead_letter_queue.held(lambda _: False) as held:
                codes = {message.id: message.code for message in held.messages}
                unlisted = max(0, held.ready - len(held.messages))
                if held.is_locked_by_another_reader:
                    codes = {**known.codes, **codes}
        except ConflictError:  # a redrive of this process has locked them
            codes, unlisted = dict(known.codes), known.unlisted
        return KnownDeadLetters(codes, unlisted, time.monotonic())

    def _ledger(
        self,
        progress: Progress,
        stored: Reconciliation,
        queues: QueueDepth,
        dead_letters: KnownDeadLetters,
        lost: list[MissingRegistration],
    ) -> Ledger:
        now = datetime.now(UTC)
        codes = Counter(dead_letters.codes.values())
        if dead_letters.unlisted:
            codes["not_listed"] = dead_letters.unlisted
        return Ledger(
            as_of=now,
            read_up_to=progress.next_offset,
            caught_up=progress.caught_up,
            totals=stored.totals,
            in_flight=queues.pending,
            in_flight_by_place=InFlight(
                ready=queues.ready,
                unacknowledged=queues.unacknowledged,
                retrying=queues.retrying,
            ),
            dead_lettered=codes.total(),
            dead_lettered_by_code=dict(codes),
            rejected=sum(stored.rejected.values()),
            rejected_by_code=stored.rejected,
            lost=len(lost),
            lost_after_seconds=self._lost_after,
            lost_registrations=_listed(lost, now),
            unpromised_registrations=_listed(stored.unpromised, now),
            work_binding=_binding(queues, unbound=self._unbound),
            incidents=stored.incidents,
        )

    # -- background -------------------------------------------------------------------------

    @asynccontextmanager
    async def running(self, interval: timedelta) -> AsyncIterator[None]:
        """Reconcile at an interval until the block is left; never, if it is 0."""
        task = asyncio.create_task(self._run(interval)) if interval else None
        try:
            yield
        finally:
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)

    async def _run(self, interval: timedelta) -> None:
        was_lost, logged = 0, set[int]()
        while True:
            if not self._has_more:  # else at once: reading is throttled itself
                await asyncio.sleep(interval.total_seconds())
            self._has_more = False
            try:
                ledger = await self.reconcile(most=MOST_IN_BACKGROUND, throttled=True)
            except UserStreamError as error:
                failure = f"The ledger cannot be read: {error.detail.rstrip('.')}."
                if failure != self._failure:
                    log.warning("ledger.unreadable", code=error.code, reason=error.detail)
                self._failure = failure
                continue
            self._failure = ""
            if ledger.lost > was_lost:
                log.error("ledger.lost", lost=ledger.lost, work_binding=ledger.work_binding)
            was_lost = ledger.lost
            for incident in ledger.incidents:
                if incident.incident_id not in logged:
                    logged.add(incident.incident_id)
                    log.error(
                        "ledger.incident",
                        kind=incident.kind,
                        not_provable=incident.not_provable,
                    )


def _candidates(
    stored: Reconciliation, queues: QueueDepth, lost_after: float
) -> list[MissingRegistration]:
    """What is missing for long and can be in no queue.

    Either the queues are empty; or nothing is being retried, and the work queue, which keeps
    its order, was processed beyond it by ``lost_after`` seconds.
    """
    if not queues.pending:
        return stored.missing
    if queues.retrying or stored.stored_up_to is None:
        return []
    # By when they were read, which follows the stream's order; a publisher's clock may be wrong.
    passed = stored.stored_up_to - timedelta(seconds=lost_after)
    return [one for one in stored.missing if (one.read_at or one.accepted_at) < passed]


def _listed(missing: list[MissingRegistration], now: datetime) -> list[ListedRegistration]:
    return [
        ListedRegistration(
            registration_id=one.registration_id,
            accepted_at=one.accepted_at,
            age_seconds=round((now - one.accepted_at).total_seconds()),
            stream_offset=one.stream_offset,
        )
        for one in missing[:MAX_NAMED]
    ]


def _binding(queues: QueueDepth, *, unbound: bool) -> WorkBinding:
    if queues.bound is None:
        return WorkBinding.MISSING if unbound else WorkBinding.UNKNOWN
    return WorkBinding.PRESENT if queues.bound else WorkBinding.MISSING


def _measure(ledger: Ledger) -> None:
    metrics.LEDGER_LOST.set(ledger.lost)
    metrics.LEDGER_TRUNCATED.set(ledger.totals.truncated)
    metrics.LEDGER_INCIDENTS.set(len(ledger.incidents))
    states = {
        "accepted": ledger.totals.accepted,
        "stored": ledger.totals.stored,
        "duplicate": ledger.totals.duplicates,
        "vanished": ledger.totals.vanished,
        "missing": ledger.totals.missing,
        "rejected": ledger.rejected,
        "unpromised": ledger.totals.unpromised,
        "in_flight": ledger.in_flight,
        "dead_lettered": ledger.dead_lettered,
        "mailed": ledger.totals.mails.mailed,
        "mail_failed": ledger.totals.mails.failed,
    }
    for state, number in states.items():
        metrics.LEDGER_REGISTRATIONS.labels(state).set(number)
