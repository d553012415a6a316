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

from common.amqp.dead_letter_queue import (
    MAX_MESSAGES,
    DeadLetter,
    DeadLetterQueue,
    LockedQueue,
)
from common.amqp.message import MAX_BODY_BYTES
from common.contracts.base import Contract
from common.contracts.dead_letters import (
    DeadLetterDiscard,
    DeadLetterGroup,
    DeadLetterQuery,
    DeadLetterQueueReading,
    DeadLetters,
    DeadLetterView,
    DiscardedDeadLetter,
    DiscardedDeadLetters,
    DiscardedMany,
    DiscardManyRequest,
    DiscardQuery,
    DiscardRequest,
    DryRun,
    DryRunRequest,
    SentBack,
)
from common.errors import ConflictError, NotFoundError, TooLargeError
from common.http.validation import validate
from queue_receiver.dead_letters.dry_run import Store, dry_run
from queue_receiver.dead_letters.masking import redacted_body, shown_headers, unmasked_body

log = structlog.get_logger()

DISCARDS_AT_ONCE = 20
"""Records that are sent to database_service at the same time."""

FIRST_READ = 100
"""Messages among which one is searched before all are read: a page shows so many at most."""

MAX_PAGE_CHARACTERS = 4 * 1024 * 1024
"""Characters of bodies in one answer."""


class Records(Store, Protocol):
    """What is kept of discarded messages: ``common.database_client.client`` in production."""

    async def record_discard(self, discard: DeadLetterDiscard) -> DiscardedDeadLetter:
        """Keep why a message was discarded; for the same message again, the new reason."""
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
        readings = await self._read_page(page)
        if not page.has_begun:  # the message after which it begins is gone
            page = _Page(query, after=None)
            readings = await self._read_page(page)
        for message in page.messages if query.unmask else ():
            log.info("dead_letter.unmasked", dead_letter_id=str(message.id))
        return DeadLetters(
            queues=readings,
            groups=[
                DeadLetterGroup(route=route, code=code, count=count)
                for (route, code), count in page.kinds.most_common()
            ],
            messages=page.messages,
            next_after=page.messages[-1].id if page.has_more else None,
        )

    async def _read_page(self, page: "_Page") -> list[DeadLetterQueueReading]:
        """Read one queue after the other, since a page goes from one into the next."""
        return [
            await page.read(queue)
            for queue in self._queues
            if page.query.route in (None, queue.route.name)
        ]

    async def select_message(self, message_id: UUID, *, unmask: bool) -> DeadLetterView:
        """One message; moves nothing.

        Raises:
            NotFoundError: There is none with that id.
        """
        async with self._locked(message_id) as (_, message):
            if unmask:
                log.info("dead_letter.unmasked", dead_letter_id=str(message_id))
            return _view(message, unmask=unmask)

    async def resend(self, message_id: UUID, body: Mapping[str, object]) -> SentBack:
        """Send a message back with another body; it keeps its id, if that is its own.

        Raises:
            NotFoundError: There is none with that id.
            InvalidError: The body does not match the contract; nothing has changed.
            TooLargeError: Over 64 KiB; nothing has changed.
        """
        data = json.dumps(body, ensure_ascii=False).encode()
        if len(data) > MAX_BODY_BYTES:
            raise TooLargeError(f"{len(data)} bytes; at most {MAX_BODY_BYTES} are read.")
        async with self._locked(message_id) as (held, message):
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
            return SentBack(id=message_id, route=message.route.name)

    @asynccontextmanager
    async def _locked(self, message_id: UUID) -> AsyncIterator[tuple[LockedQueue, DeadLetter]]:
        """Lock the queue that has a message, as far as that message, whose body alone is kept.

        First among the oldest, which are those that a page shows; only then among all.

        Raises:
            NotFoundError: No queue has it.
        """

        def is_it(message: DeadLetter) -> bool:
            return message.id == message_id

        for queue in self._queues:
            for limit in (FIRST_READ, MAX_MESSAGES):
                async with queue.held(
                    lambda message: is_it(message) or None, until=is_it, limit=limit
                ) as held:
                    for message in held.messages:
                        yield held, message
                        return
                if held.read_count >= held.ready:
                    break
        raise _not_found(message_id)

    async def discard(self, message_id: UUID, request: DiscardRequest) -> DiscardedDeadLetter:
        """Record the reason, and only then remove the message; after a crash, do it again.

        Raises:
            NotFoundError: There is none with that id.
            DatabaseServiceUnavailableError: The reason cannot be recorded; the message stays.
        """
        for queue in self._queues:
            async with queue.held(lambda one: False if one.id == message_id else None) as held:
                copies = [await self._discard(held, copy, request) for copy in held.messages]
            if copies:
                return copies[0]
        raise _not_found(message_id)

    async def discard_many(self, request: DiscardManyRequest) -> DiscardedMany:
        """Discard all that are selected, each as ``discard`` does.

        Raises:
            ConflictError: There are more than were seen; nothing was discarded.
            DatabaseServiceUnavailableError: A reason cannot be recorded. What was discarded by
                then stays so; the rest are still dead letters.
        """

        def is_selected(message: DeadLetter) -> bool | None:
            is_so = request.matches(message.id, message.route.name, message.code)
            return False if is_so else None  # headers are enough

        async with AsyncExitStack() as stack:
            locked = [
                await stack.enter_async_context(queue.held(is_selected))
                for queue in self._queues
                if request.route in (None, queue.route.name)
            ]
            found = sum(len(held.messages) for held in locked)
            if request.expected is not None and found > request.expected:
                raise ConflictError(
                    f"There are {found} by now, not {request.expected}. Nothing was discarded; "
                    "look at them again."
                )
            for held in locked:
                for start in range(0, len(held.messages), DISCARDS_AT_ONCE):
                    batch = held.messages[start : start + DISCARDS_AT_ONCE]
                    results = await asyncio.gather(
                        *(self._discard(held, message, request) for message in batch),
                        return_exceptions=True,
                    )
                    for result in results:
                        if isinstance(result, BaseException):
                            raise result
        return DiscardedMany(discarded=found)

    async def _discard(
        self, held: LockedQueue, message: DeadLetter, request: DiscardRequest
    ) -> DiscardedDeadLetter:
        discarded = await self._records.record_discard(
            DeadLetterDiscard(
                message_id=message.id,
                route=message.route.name,
                error_code=message.code,
                reason=request.reason,
                discarded_by=request.discarded_by,
            )
        )
        held.remove(message)
        log.info(
            "dead_letter.discarded",
            dead_letter_id=str(message.id),
            queue=message.route.dead_letter_queue,
            code=message.code,
        )
        return discarded

    async def list_discards(self, query: DiscardQuery) -> DiscardedDeadLetters:
        """Messages that were discarded, and why."""
        return await self._records.select_discards(query)

    async def dry_run(self, request: DryRunRequest) -> DryRun:
        """What would become of messages that are sent back; stores, sends and moves nothing.

        Raises:
            DatabaseServiceUnavailableError: It cannot be tried now.
        """
        return await dry_run(request, queues=self._queues, records=self._records)


class _Page:
    """Collects the messages of one page while queues are read, and counts all others.

    What is read may be hundreds of megabytes, what is shown of it is little.
    """

    def __init__(self, query: DeadLetterQuery, *, after: UUID | None) -> None:
        self.query = query
        self.messages: list[DeadLetterView] = []
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.has_more = False
        self._after = after
        self._characters = 0

    @property
    def has_begun(self) -> bool:
        """Whether the message after which it begins was found."""
        return self._after is None

    async def read(self, queue: DeadLetterQueue) -> DeadLetterQueueReading:
        """Read one queue; one that a redrive of this process has locked counts as empty."""
        name = queue.route.name
        try:
            async with queue.held(self._take) as held:
                return DeadLetterQueueReading(
                    route=name,
                    messages=max(held.ready, held.read_count),
                    read=held.read_count,
                    complete=held.is_complete,
                    locked_by_another_reader=held.is_locked_by_another_reader,
                )
        except ConflictError:
            return DeadLetterQueueReading(
                route=name, messages=0, read=0, complete=False, locked_by_another_reader=True
            )

    def _take(self, message: DeadLetter) -> None:
        self.kinds[message.route.name, message.code] += 1
        if self.query.code not in (None, message.code):
            return
        if self._after is not None:
            if message.id == self._after:
                self._after = None
        elif len(self.messages) == self.query.limit:
            self.has_more = True
        else:
            self.messages.append(self._shown(message))

    def _shown(self, message: DeadLetter) -> DeadLetterView:
        view = _view(message, unmask=self.query.unmask)
        self._characters += len(view.body or "")
        if self._characters > MAX_PAGE_CHARACTERS:  # the message's own page shows its body
            return view.model_copy(update={"body": None, "unmasked": False})
        return view


def _view(message: DeadLetter, *, unmask: bool) -> DeadLetterView:
    """A message as it is shown; without a body where that was not kept."""
    body = None
    if message.has_body:
        body = (unmasked_body if unmask else redacted_body)(message.delivery.body)
    named_type = message.delivery.type
    return DeadLetterView(
        id=message.id,
        route=message.route.name,
        code=message.code,
        detail=message.detail,
        attempts=message.attempts,
        first_seen=message.first_seen,
        failed_service=message.failed_service,
        routing_key=message.routing_key,
        type=named_type[:255] if isinstance(named_type, str) else "",
        size_bytes=message.size,
        headers=shown_headers(message.delivery, unmask=unmask),
        body=body,
        unmasked=unmask and message.has_body,
    )


def _contract_of(message: DeadLetter) -> type[Contract]:
    """What a message is sent back as: the contract it names, if its route has that one."""
    contracts = Contract.by_route(message.route)
    named = Contract.by_type(message.delivery.type)
    return named if named in contracts else contracts[0]


def _not_found(message_id: UUID) -> NotFoundError:
    return NotFoundError(
        f"There is no dead letter {message_id}: it was sent back or discarded, or another reader "
        "has locked it. Look at the list again."
    )
