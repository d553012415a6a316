"""Sends many dead letters back: a few first, more when those were handled."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeAlias
from uuid import UUID, uuid4

import structlog

from common.amqp.dead_letter_queue import DeadLetter, DeadLetterQueue
from common.contracts.dead_letters import Redrive, RedriveRequest, RedriveState
from common.errors import ConflictError, NotFoundError, UnavailableError, UserStreamError
from queue_receiver.dead_letters.outcomes import MessageOutcome, OutcomeTracker

log = structlog.get_logger()

STEPS = (1, 10, 100, 1000)
"""Messages of each step; the last one goes on."""

HOLD_SECONDS = 5.0
"""Longest time that a queue is held for sending; others want to look at it, too."""

POLL_SECONDS = 0.25
"""Between two looks at what became of the messages of a step."""

GRACE_SECONDS = 1.0
"""A step lasts at least so long: one that was handled before would count as settled at once."""

KEPT_REDRIVES = 20
"""Ended redrives whose outcome can still be asked for."""

Key: TypeAlias = tuple[str, UUID]
"""A message: its route's name and its id."""


@dataclass(slots=True, kw_only=True)
class _Job:
    """A redrive while it runs."""

    request: RedriveRequest
    redrive_id: UUID = field(default_factory=uuid4)
    state: RedriveState = RedriveState.RUNNING
    total: int = 0
    sent: int = 0
    settled: int = 0
    failed: int = 0
    step: int = 0
    detail: str = "Reading what there is."
    first_failed: UUID | None = None
    started_at: datetime = field(default_factory=lambda: datetime.now(UTC))
    ended_at: datetime | None = None
    is_to_stop: bool = False

    def end(self, state: RedriveState, detail: str) -> None:
        self.state, self.detail, self.ended_at = state, detail, datetime.now(UTC)

    @property
    def progress(self) -> Redrive:
        return Redrive(
            redrive_id=self.redrive_id,
            state=self.state,
            total=self.total,
            sent=self.sent,
            settled=self.settled,
            failed=self.failed,
            step=self.step,
            detail=self.detail,
            first_failed=self.first_failed,
            started_at=self.started_at,
            ended_at=self.ended_at,
        )


class _RedriveEndedError(Exception):
    """The redrive ends before all messages were sent."""

    def __init__(self, state: RedriveState, detail: str) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail


class Redrives:
    """The redrives of this process, one at a time.

    A crash ends a redrive and harms nothing: what was not sent back is still a dead letter, and
    what was confirmed and not yet taken out is sent once more under the same id.
    """

    def __init__(self, *, queues: Sequence[DeadLetterQueue], outcomes: OutcomeTracker) -> None:
        self._queues = queues
        self._outcomes = outcomes
        self._jobs: dict[UUID, _Job] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, request: RedriveRequest) -> Redrive:
        """Begin a redrive.

        Raises:
            ConflictError: One is running.
        """
        for job in self._jobs.values():
            if job.state is RedriveState.RUNNING:
                raise ConflictError(
                    f"The redrive {job.redrive_id} is running; wait for its end, or stop it. "
                    "Nothing has changed."
                )
        job = _Job(request=request)
        self._jobs[job.redrive_id] = job
        for old in list(self._jobs)[:-KEPT_REDRIVES]:
            del self._jobs[old]
        self._task = asyncio.create_task(self._run(job), name="redrive")
        self._task.add_done_callback(_log_fault)
        return job.progress

    def get(self, redrive_id: UUID) -> Redrive:
        """How a redrive stands.

        Raises:
            NotFoundError: This process knows none with that id.
        """
        return self._job(redrive_id).progress

    def stop(self, redrive_id: UUID) -> Redrive:
        """Let a redrive end before its next message; one that has ended stays as it is."""
        job = self._job(redrive_id)
        job.is_to_stop = True
        return job.progress

    @property
    def latest(self) -> Redrive | None:
        """The last one that was begun."""
        return next((job.progress for job in reversed(self._jobs.values())), None)

    async def close(self) -> None:
        """End what runs; the rest of its messages stays where it is."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _job(self, redrive_id: UUID) -> _Job:
        if redrive_id not in self._jobs:
            raise NotFoundError(
                "This instance has no such redrive. It may belong to another instance, or this one "
                "was restarted. What was not sent back is still a dead letter."
            )
        return self._jobs[redrive_id]

    async def _run(self, job: _Job) -> None:
        log.info("redrive.started", redrive_id=str(job.redrive_id))
        try:
            await self._run_steps(job)
            job.end(RedriveState.DONE, _all_settled(job))
        except _RedriveEndedError as ended:
            job.end(ended.state, ended.detail)
        except UserStreamError as error:
            job.end(
                RedriveState.ABORTED,
                f"{error.detail} What was not sent back is still here; begin again later.",
            )
        finally:
            if job.state is RedriveState.RUNNING:
                job.end(RedriveState.ABORTED, "The service stopped. The rest is still here.")
            log.info(
                "redrive.ended",
                redrive_id=str(job.redrive_id),
                state=job.state,
                sent=job.sent,
                settled=job.settled,
                failed=job.failed,
            )

    async def _run_steps(self, job: _Job) -> None:
        meant = await self._select(job.request)
        job.total = len(meant)
        for step in _steps(meant):
            job.step = len(step)
            await self._outcomes.remember(step)
            sent = await self._send(job, set(step))
            await self._settle(job, sent)

    async def _select(self, request: RedriveRequest) -> list[Key]:
        """The messages that are there now; those that come later are not meant."""
        meant: dict[Key, None] = {}
        for queue in self._queues:
            if request.route in (None, queue.route.name):
                async with queue.held(lambda _: False) as held:
                    for message in held.messages:
                        if request.matches(message.id, message.route.name, message.code):
                            meant[_key(message)] = None
        return list(meant)

    async def _send(self, job: _Job, step: set[Key]) -> set[Key]:
        """Send a step's messages back; those that somebody else took meanwhile are left out."""
        sent: set[Key] = set()
        for queue in self._queues:
            waiting = {key for key in step if key[0] == queue.route.name}
            while waiting:
                moved = await self._send_batch(job, queue, waiting)
                if not moved:
                    break
                sent |= moved
                waiting -= moved
        job.total -= len(step - sent)
        return sent

    async def _send_batch(self, job: _Job, queue: DeadLetterQueue, waiting: set[Key]) -> set[Key]:
        loop = asyncio.get_running_loop()
        sent: set[Key] = set()
        async with queue.held(lambda message: _key(message) in waiting) as held:
            until = loop.time() + HOLD_SECONDS
            for message in held.messages:
                if _key(message) not in waiting or not message.has_body or loop.time() > until:
                    continue
                if _key(message) not in sent:
                    _check_cancelled(job)
                    job.detail = f"Sending {_messages(job.step)} back."
                    await asyncio.sleep(1 / job.request.rate)
                await held.send_back(message)
                job.sent += _key(message) not in sent
                sent.add(_key(message))
        return sent

    async def _settle(self, job: _Job, sent: set[Key]) -> None:
        """Wait until a step's messages are handled.

        Raises:
            _RedriveEndedError: One has failed again, or they are not handled in time.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        open_, before = set(sent), job.settled
        returned = _Returned(self._queues, sent)
        while open_ or loop.time() < begun + GRACE_SECONDS:
            _check_cancelled(job)
            job.detail = (
                f"Waiting for {len(open_)} of {_messages(len(sent))} to be handled."
                if open_
                else "Making sure that none comes back."
            )
            await asyncio.sleep(POLL_SECONDS)
            outcomes = await self._outcomes.ask(open_)
            open_ -= {key for key, fate in outcomes.items() if fate is MessageOutcome.SETTLED}
            failed = await returned.look() | {
                k for k, fate in outcomes.items() if fate is MessageOutcome.FAILED
            }
            job.settled = before + len(sent - open_ - failed)
            if failed:
                _end_with_failure(job, failed)
            if open_ and loop.time() > begun + job.request.wait_seconds:
                raise _RedriveEndedError(
                    RedriveState.TIMED_OUT,
                    f"{len(open_)} of {_messages(len(sent))} not handled within "
                    f"{job.request.wait_seconds} s: they wait in the queue or in a retry step, "
                    "and are not lost. The rest was left here; begin again when they are done.",
                )


class _Returned:
    """Which of some messages are dead letters once more."""

    def __init__(self, queues: Sequence[DeadLetterQueue], sent: set[Key]) -> None:
        routes = {route for route, _ in sent}
        self._queues = [queue for queue in queues if queue.route.name in routes]
        self._sent = sent
        self._counted: dict[str, int] = {}

    async def look(self) -> set[Key]:
        """Count, and read only where the count has changed: reading holds the queue."""
        found: set[Key] = set()
        for queue in self._queues:
            with suppress(UnavailableError, ConflictError):
                count = await queue.count()
                if count and count != self._counted.get(queue.route.name):
                    async with queue.held(lambda _: False) as held:
                        found |= self._sent & {_key(message) for message in held.messages}
                self._counted[queue.route.name] = count
        return found


def _steps(meant: Sequence[Key]) -> Iterator[Sequence[Key]]:
    start = 0
    for size in (*STEPS, *(STEPS[-1] for _ in range(len(meant) // STEPS[-1]))):
        if step := meant[start : start + size]:
            yield step
        start += size


def _key(message: DeadLetter) -> Key:
    return message.route.name, message.id


def _check_cancelled(job: _Job) -> None:
    if job.is_to_stop:
        raise _RedriveEndedError(RedriveState.STOPPED, "Stopped. The rest was left here.")


def _end_with_failure(job: _Job, failed: set[Key]) -> None:
    job.failed = len(failed)
    _, job.first_failed = min(failed)
    raise _RedriveEndedError(
        RedriveState.FAILED,
        f"{len(failed)} of {_messages(job.step)} failed again. The rest was left here; look at why "
        "before you begin again.",
    )


def _all_settled(job: _Job) -> str:
    return f"Handled: {_messages(job.sent)}." if job.sent else "There was nothing to send."


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def _log_fault(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("redrive.failed", exc_info=error)
