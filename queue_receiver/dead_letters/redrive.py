"""Sends many dead letters back: a few first, more when those were handled."""

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
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
"""Messages of each step; the last size is repeated."""

HOLD_SECONDS = 5.0
"""Longest time to lock a queue for sending; other readers wait for it meanwhile."""

POLL_SECONDS = 0.25
"""Between two checks of what became of a step's messages."""

GRACE_SECONDS = 1.0
"""A step lasts at least this long: a message handled once before counts as handled at once."""

KEPT_REDRIVES = 20
"""Ended redrives whose outcome can still be read."""

Key: TypeAlias = tuple[str, UUID]
"""A message: the name of its route, and its id."""


class Redrives:
    """The redrives of this process, one at a time.

    A crash ends a redrive and harms nothing: what was not sent back is still a dead letter, and
    what was confirmed and not yet removed is sent once more under the same id.
    """

    def __init__(self, *, queues: Sequence[DeadLetterQueue], outcomes: OutcomeTracker) -> None:
        self._queues = queues
        self._outcomes = outcomes
        self._runs: dict[UUID, _Run] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self, request: RedriveRequest) -> Redrive:
        """Begin a redrive.

        Raises:
            ConflictError: Another one is running.
        """
        latest = self.latest
        if latest is not None and latest.state is RedriveState.RUNNING:
            raise ConflictError(
                f"The redrive {latest.redrive_id} is running; wait for its end, or stop it. "
                "Nothing has changed."
            )
        run = _Run(request, queues=self._queues, outcomes=self._outcomes)
        self._runs[run.progress.redrive_id] = run
        for old in list(self._runs)[:-KEPT_REDRIVES]:
            del self._runs[old]
        self._task = asyncio.create_task(run.run(), name="redrive")
        self._task.add_done_callback(_log_failure)
        return run.progress

    def get(self, redrive_id: UUID) -> Redrive:
        """How far a redrive is.

        Raises:
            NotFoundError: This process has none with that id.
        """
        return self._find(redrive_id).progress

    def stop(self, redrive_id: UUID) -> Redrive:
        """Let a redrive end before its next message; one that has ended stays as it is.

        Raises:
            NotFoundError: This process has none with that id.
        """
        run = self._find(redrive_id)
        run.is_cancelled = True
        return run.progress

    @property
    def latest(self) -> Redrive | None:
        """The last one that was begun."""
        return next((run.progress for run in reversed(self._runs.values())), None)

    async def close(self) -> None:
        """End what runs; its remaining messages stay dead letters."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    def _find(self, redrive_id: UUID) -> "_Run":
        if redrive_id not in self._runs:
            raise NotFoundError(
                "This instance has no such redrive. It may belong to another instance, or this one "
                "was restarted. What was not sent back is still a dead letter."
            )
        return self._runs[redrive_id]


class _RedriveEndedError(Exception):
    """The redrive ends before all messages were sent."""

    def __init__(self, state: RedriveState, detail: str) -> None:
        super().__init__(detail)
        self.state = state
        self.detail = detail


class _Run:
    """One redrive."""

    def __init__(
        self,
        request: RedriveRequest,
        *,
        queues: Sequence[DeadLetterQueue],
        outcomes: OutcomeTracker,
    ) -> None:
        self._request = request
        self._queues = [queue for queue in queues if request.route in (None, queue.route.name)]
        self._outcomes = outcomes
        self.progress = Redrive(redrive_id=uuid4(), started_at=datetime.now(UTC))
        self.is_cancelled = False

    async def run(self) -> None:
        """Send everything that was selected; ``progress`` says how it went, whatever happens."""
        progress = self.progress
        log.info("redrive.started", redrive_id=str(progress.redrive_id))
        try:
            await self._run_steps()
            sent = progress.sent
            handled = f"Handled: {_messages(sent)}." if sent else "There was nothing to send."
            self._end(RedriveState.DONE, handled)
        except _RedriveEndedError as ended:
            self._end(ended.state, ended.detail)
        except UserStreamError as error:
            self._end(
                RedriveState.ABORTED,
                f"{error.detail} What was not sent back is still a dead letter; begin again later.",
            )
        finally:
            if progress.state is RedriveState.RUNNING:
                self._end(RedriveState.ABORTED, "The service stopped. The rest was left here.")
            log.info(
                "redrive.ended",
                redrive_id=str(progress.redrive_id),
                state=progress.state,
                sent=progress.sent,
                handled=progress.handled,
                failed=progress.failed,
            )

    def _end(self, state: RedriveState, detail: str) -> None:
        self.progress.state, self.progress.detail = state, detail
        self.progress.ended_at = datetime.now(UTC)

    async def _run_steps(self) -> None:
        selected = await self._select()
        self.progress.total = len(selected)
        for step in _steps(selected):
            self.progress.step = len(step)
            await self._outcomes.snapshot(step)
            sent = await self._send(set(step))
            await self._wait_until_handled(sent)

    async def _select(self) -> list[Key]:
        """The messages that are there now; those that come later are not selected."""
        selected: dict[Key, None] = {}
        for queue in self._queues:
            async with queue.held(lambda _: False) as held:
                for message in held.messages:
                    if self._request.matches(message.id, message.route.name, message.code):
                        selected[_key(message)] = None
        return list(selected)

    async def _send(self, step: set[Key]) -> set[Key]:
        """Send a step's messages back; returns those that were still there."""
        sent: set[Key] = set()
        for queue in self._queues:
            waiting = {key for key in step if key[0] == queue.route.name}
            while waiting and (batch := await self._send_batch(queue, waiting)):
                sent |= batch
                waiting -= batch
        self.progress.total -= len(step - sent)
        return sent

    async def _send_batch(self, queue: DeadLetterQueue, waiting: set[Key]) -> set[Key]:
        """Send as many as ``HOLD_SECONDS`` and the kept bodies allow."""
        loop = asyncio.get_running_loop()
        sent: set[Key] = set()
        async with queue.held(lambda message: _key(message) in waiting) as held:
            until = loop.time() + HOLD_SECONDS
            for message in held.messages:
                key = _key(message)
                if key not in waiting or not message.has_body or loop.time() > until:
                    continue
                if key not in sent:
                    self._check_cancelled()
                    self.progress.detail = f"Sending {_messages(self.progress.step)} back."
                    await asyncio.sleep(1 / self._request.rate)
                await held.send_back(message)
                self.progress.sent += key not in sent
                sent.add(key)
        return sent

    async def _wait_until_handled(self, sent: set[Key]) -> None:
        """Wait until a step's messages are handled.

        Raises:
            _RedriveEndedError: One has failed again, or they are not handled in time.
        """
        loop = asyncio.get_running_loop()
        begun = loop.time()
        open_, before = set(sent), self.progress.handled
        returned = _ReturnedMessages(self._queues, sent)
        while open_ or loop.time() < begun + GRACE_SECONDS:
            self._check_cancelled()
            self.progress.detail = (
                f"Waiting for {len(open_)} of {_messages(len(sent))} to be handled."
                if open_
                else "Checking that none comes back."
            )
            await asyncio.sleep(POLL_SECONDS)
            outcomes = await self._outcomes.poll(open_)
            open_ -= _with(MessageOutcome.HANDLED, outcomes)
            failed = await returned.find() | _with(MessageOutcome.FAILED, outcomes)
            self.progress.handled = before + len(sent - open_ - failed)
            if failed:
                self._fail(failed)
            if open_ and loop.time() > begun + self._request.wait_seconds:
                raise _RedriveEndedError(
                    RedriveState.TIMED_OUT,
                    f"{len(open_)} of {_messages(len(sent))} not handled within "
                    f"{self._request.wait_seconds} s: they wait in the queue or in a retry step, "
                    "and are not lost. The rest was left here; begin again when they are done.",
                )

    def _check_cancelled(self) -> None:
        if self.is_cancelled:
            raise _RedriveEndedError(RedriveState.STOPPED, "Stopped. The rest was left here.")

    def _fail(self, failed: set[Key]) -> None:
        self.progress.failed = len(failed)
        _, self.progress.first_failed = min(failed)
        raise _RedriveEndedError(
            RedriveState.FAILED,
            f"{len(failed)} of {_messages(self.progress.step)} failed again. The rest was left "
            "here; find out why before you begin again.",
        )


class _ReturnedMessages:
    """Which of the messages that were sent are dead letters again."""

    def __init__(self, queues: Sequence[DeadLetterQueue], sent: set[Key]) -> None:
        routes = {route for route, _ in sent}
        self._queues = [queue for queue in queues if queue.route.name in routes]
        self._sent = sent
        self._counted: dict[str, int] = {}

    async def find(self) -> set[Key]:
        """Count, and read only where the count has changed: reading locks the queue."""
        found: set[Key] = set()
        for queue in self._queues:
            with suppress(UnavailableError, ConflictError):
                count = await queue.count()
                if count and count != self._counted.get(queue.route.name):
                    async with queue.held(lambda _: False) as held:
                        found |= self._sent & {_key(message) for message in held.messages}
                self._counted[queue.route.name] = count
        return found


def _steps(selected: Sequence[Key]) -> Iterator[Sequence[Key]]:
    start = 0
    for size in (*STEPS, *(STEPS[-1] for _ in range(len(selected) // STEPS[-1]))):
        if step := selected[start : start + size]:
            yield step
        start += size


def _with(wanted: MessageOutcome, outcomes: Mapping[Key, MessageOutcome]) -> set[Key]:
    return {key for key, outcome in outcomes.items() if outcome is wanted}


def _key(message: DeadLetter) -> Key:
    return message.route.name, message.id


def _messages(count: int) -> str:
    return "1 message" if count == 1 else f"{count} messages"


def _log_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("redrive.failed", exc_info=error)
