"""The dead-letter admin: shows dead letters, tries out, sends back and discards single ones.

Sending back many is in ``queue_receiver.dead_letters.redrive``.
"""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Protocol
from uuid import UUID

import structlog

from common.amqp.dead_letter_queue import DeadLetter, DeadLetterQueue, LockedQueue
from common.amqp.message import MAX_BODY_BYTES
from common.contracts.base import Contract
from common.contracts.dead_letters import (
    DeadLetterDiscard,
    DeadLetterGroup,
    DeadLetterQuery,
    DeadLetterQueueLook,
    DeadLetters,
    DeadLetterView,
    DiscardedDeadLetter,
    DiscardedDeadLetters,
    DiscardedMany,
    DiscardManyRequest,
    DiscardQuery,
    DryRun,
    DryRunRequest,
    SentBack,
)
from common.errors import (
    ConflictError,
    NotFoundError,
    TooLargeError,
)
from common.http.validation import validate
from queue_receiver.dead_letters.dry_run import Store, dry_run
from queue_receiver.dead_letters.masking import redacted_body, shown_headers, unmasked_body

log = structlog.get_logger()

DISCARDS_AT_ONCE = 20
"""Reasons that are on their way to database_service at the same time."""

LOOKED_AT_FIRST = 100
"""Messages among which one is looked for before all are read."""

MAX_PAGE_CHARACTERS = 4 * 1024 * 1024
"""Characters of bodies in one answer."""


class Records(Store, Protocol):
    """What is asked and kept: ``common.database_client.client`` in production."""

    async def record_discard(self, discard: DeadLetterDiscard) -> DiscardedDeadLetter:
        """Keep why a message was discarded."""
        ...

    async def select_discards(self, query: DiscardQuery) -> DiscardedDeadLetters:
        """Messages that were discarded."""
        ...


class DeadLetterAdmin:
    """All dead letters, whatever their route."""

    def __init__(self, *, queues: Sequence[DeadLetterQueue], records: Records) -> None:
        self._queues = queues
        self._records = records

    async def list_messages(self, query: DeadLetterQuery) -> DeadLetters:
        """A page of messages, and how many there are of which kind; moves nothing.

        Raises:
            BrokerUnavailableError: Nothing could be read.
        """
        page = _Page(query, after=query.after)
        looks = await self._read_page(page)
        if page.is_still_to_begin:  # the message behind which it begins is gone
            page = _Page(query, after=None)
            looks = await self._read_page(page)
        for message in page.messages if query.unmask else ():
            log.info("dead_letter.unmasked", dead_letter_id=str(message.id))
        return DeadLetters(
            queues=looks,
            groups=[
                DeadLetterGroup(route=route, code=code, count=count)
                for (route, code), count in page.kinds.most_common()
            ],
            messages=page.messages,
            next_after=page.messages[-1].id if page.has_more else None,
        )

    async def _read_page(self, page: "_Page") -> list[DeadLetterQueueLook]:
        """Read one queue after the other, since a page goes from one into the next."""
        return [
            await _look(queue, page)
            for queue in self._queues
            if page.query.route in (None, queue.route.name)
        ]

    async def select_message(self, message_id: UUID, *, unmask: bool) -> DeadLetterView:
        """One message; moves nothing.

        Raises:
            NotFoundError: There is none with that id.
        """
        for queue in self._queues:
            async with _up_to(queue, message_id) as held:
                for message in held.messages:
                    if unmask:
                        log.info("dead_letter.unmasked", dead_letter_id=str(message_id))
                    return view(message, unmask=unmask)
        raise _no_message(message_id)

    async def resend(self, message_id: UUID, body: Mapping[str, object]) -> SentBack:
        """Send a message back with another body; it keeps its id, if that is its own.

        Raises:
            NotFoundError: There is none with that id.
            InvalidError: The body is not what its service reads; nothing has changed.
            TooLargeError: Over 64 KiB; nothing has changed.
        """
        data = json.dumps(body, ensure_ascii=False).encode()
        if len(data) > MAX_BODY_BYTES:
            raise TooLargeError(f"{len(data)} bytes; at most {MAX_BODY_BYTES} are read.")
        for queue in self._queues:
            async with _up_to(queue, message_id) as held:
                for message in held.messages:
                    contract = _contract_of(message)
                    validate(contract, body, prefix="/body/")
                    await held.send_back(
                        message,
                        body=data,
                        type=contract.type_name,
                        content_type="application/json",
                        content_encoding=None,
                    )
                    log.info("dead_letter.resent", dead_letter_id=str(message_id))
                    return SentBack(id=message_id, route=queue.route.name)
        raise _no_message(message_id)

    async def discard(
        self, message_id: UUID, *, reason: str, discarded_by: str
    ) -> DiscardedDeadLetter:
        """Keep the reason, and only then remove the message. A crash in between: do it again.

        Raises:
            NotFoundError: There is none with that id.
            DatabaseServiceUnavailableError: The reason cannot be kept; the message stays.
        """
        for queue in self._queues:
            async with queue.held(lambda one: False if one.id == message_id else None) as held:
                if messages := held.messages:
                    discarded = await self._records.record_discard(
                        DeadLetterDiscard(
                            message_id=message_id,
                            route=queue.route.name,
                            error_code=messages[0].code,
                            reason=reason,
                            discarded_by=discarded_by,
                        )
                    )
                    for message in messages:
                        held.remove(message)
                    log.info(
                        "dead_letter.discarded",
                        dead_letter_id=str(message_id),
                        queue=queue.route.dead_letter_queue,
                        code=messages[0].code,
                    )
                    return discarded
        raise _no_message(message_id)

    async def discard_many(self, request: DiscardManyRequest) -> DiscardedMany:
        """Discard all that are meant, each as ``discard`` does: first the reason, then the message.

        Raises:
            ConflictError: There are more than were seen; nothing was discarded.
            DatabaseServiceUnavailableError: A reason cannot be kept. What was discarded by then
                stays so; the rest is still there.
        """

        def is_meant(message: DeadLetter) -> bool | None:
            is_so = request.matches(message.id, message.route.name, message.code)
            return False if is_so else None  # headers are enough

        async with AsyncExitStack() as stack:
            held = [
                await stack.enter_async_context(queue.held(is_meant))
                for queue in self._queues
                if request.route in (None, queue.route.name)
            ]
            found = sum(len(one.messages) for one in held)
            if request.expected is not None and found > request.expected:
                raise ConflictError(
                    f"There are {found} by now, not {request.expected}. Nothing was discarded; "
                    "look at them again."
                )
            for one in held:
                for start in range(0, len(one.messages), DISCARDS_AT_ONCE):
                    await self._discard_some(
                        one, one.messages[start : start + DISCARDS_AT_ONCE], request
                    )
        return DiscardedMany(discarded=found)

    async def _discard_some(
        self, held: LockedQueue, messages: Sequence[DeadLetter], request: DiscardManyRequest
    ) -> None:
        recorded = await asyncio.gather(
            *(
                self._records.record_discard(
                    DeadLetterDiscard(
                        message_id=message.id,
                        route=message.route.name,
                        error_code=message.code,
                        reason=request.reason,
                        discarded_by=request.discarded_by,
                    )
                )
                for message in messages
            ),
            return_exceptions=True,
        )
        failures = [result for result in recorded if isinstance(result, BaseException)]
        for message, result in zip(messages, recorded, strict=True):
            if not isinstance(result, BaseException):
                held.remove(message)
                log.info(
                    "dead_letter.discarded",
                    dead_letter_id=str(message.id),
                    queue=message.route.dead_letter_queue,
                    code=message.code,
                )
        if failures:
            raise failures[0]

    async def list_discards(self, query: DiscardQuery) -> DiscardedDeadLetters:
        """Messages that were discarded, and why."""
        return await self._records.select_discards(query)

    async def dry_run(self, request: DryRunRequest) -> DryRun:
        """What would become of messages that are sent back; stores, sends and moves nothing.

        Raises:
            DatabaseServiceUnavailableError: It cannot be tried now.
        """
        return await dry_run(request, queues=self._queues, records=self._records)


def view(message: DeadLetter, *, unmask: bool) -> DeadLetterView:
    """A message as a person sees it."""
    body = None
    if message.has_body:
        show = unmasked_body if unmask else redacted_body
        body = show(message.delivery.body)
    kind = message.delivery.type
    return DeadLetterView(
        id=message.id,
        route=message.route.name,
        code=message.code,
        detail=message.detail,
        attempts=message.attempts,
        first_seen=message.first_seen,
        failed_service=message.failed_service,
        routing_key=message.routing_key,
        type=kind[:255] if isinstance(kind, str) else "",
        size_bytes=message.size,
        headers=shown_headers(message.delivery, unmask=unmask),
        body=body,
        unmasked=unmask and message.has_body,
    )


class _Page:
    """Messages of one page, made while the queues are read; of all others only how many there are.

    What is read may be hundreds of megabytes, what is shown of it is little.
    """

    def __init__(self, query: DeadLetterQuery, *, after: UUID | None) -> None:
        self.query = query
        self.messages: list[DeadLetterView] = []
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.has_more = False
        self._after = after
        self._bytes = 0

    @property
    def is_still_to_begin(self) -> bool:
        """Whether the message behind which it begins has not come."""
        return self._after is not None

    def take(self, message: DeadLetter) -> None:
        """Count a message, and show it if it is one of the page."""
        self.kinds[message.route.name, message.code] += 1
        if self.query.code not in (None, message.code):
            return
        if self._after is not None:
            if message.id == self._after:
                self._after = None
        elif len(self.messages) == self.query.limit:
            self.has_more = True
        else:
            self.messages.append(self._view(message))

    def _view(self, message: DeadLetter) -> DeadLetterView:
        seen = view(message, unmask=self.query.unmask)
        self._bytes += len(seen.body or "")
        # Of what would make the answer too large, the body is shown on the message's own page.
        return seen if self._bytes <= MAX_PAGE_CHARACTERS else view_without_body(seen)


async def _look(queue: DeadLetterQueue, page: _Page) -> DeadLetterQueueLook:
    name = queue.route.name
    try:
        async with queue.held(page.take) as held:
            return DeadLetterQueueLook(
                route=name,
                messages=max(held.ready, held.read_count),
                read=held.read_count,
                complete=held.is_complete,
                locked_by_another_reader=held.is_locked_by_another_reader,
            )
    except ConflictError:  # a redrive of our own is at it
        return DeadLetterQueueLook(
            route=name, messages=0, read=0, complete=False, locked_by_another_reader=True
        )


def view_without_body(message: DeadLetterView) -> DeadLetterView:
    """The message as it is shown where there is no room for its body."""
    return message.model_copy(update={"body": None, "unmasked": False})


@asynccontextmanager
async def _up_to(queue: DeadLetterQueue, message_id: UUID) -> AsyncIterator[LockedQueue]:
    """Hold a queue as far as a message, and keep that one alone.

    First among the oldest, which are those that a page shows; only then among all.
    """

    def is_it(message: DeadLetter) -> bool:
        return message.id == message_id

    def wanted(message: DeadLetter) -> bool | None:
        return True if is_it(message) else None

    async with queue.held(wanted, until=is_it, limit=LOOKED_AT_FIRST) as held:
        if held.messages or held.read_count >= held.ready:
            yield held
            return
    async with queue.held(wanted, until=is_it) as held:
        yield held


def _contract_of(message: DeadLetter) -> type[Contract]:
    """What a message is sent back as: what it names, if that travels on its route."""
    contracts = Contract.by_route(message.route)
    named = Contract.by_type(message.delivery.type)
    return named if named in contracts else contracts[0]


def _no_message(message_id: UUID) -> NotFoundError:
    return NotFoundError(
        f"There is no dead letter {message_id}: it was sent back or discarded, or somebody holds "
        "it just now. Look at the list again."
    )
