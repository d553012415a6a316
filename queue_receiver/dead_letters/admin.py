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
"""Letters among which one is looked for before all are read."""

MAX_PAGE_CHARACTERS = 4 * 1024 * 1024
"""Characters of bodies in one answer."""


class Records(Store, Protocol):
    """What is asked and kept: ``common.database_client.client`` in production."""

    async def record_discard(self, discard: DeadLetterDiscard) -> DiscardedDeadLetter:
        """Keep why a letter was discarded."""
        ...

    async def select_discards(self, query: DiscardQuery) -> DiscardedDeadLetters:
        """Letters that were discarded."""
        ...


class DeadLetterAdmin:
    """All dead letters, whatever their route."""

    def __init__(self, *, queues: Sequence[DeadLetterQueue], records: Records) -> None:
        self._queues = queues
        self._records = records

    async def list_letters(self, query: DeadLetterQuery) -> DeadLetters:
        """A page of letters, and how many there are of which kind; moves nothing.

        Raises:
            BrokerUnavailableError: Nothing could be read.
        """
        page = _Page(query, after=query.after)
        looks = await self._read_page(page)
        if page.is_still_to_begin:  # the letter behind which it begins is gone
            page = _Page(query, after=None)
            looks = await self._read_page(page)
        for letter in page.letters if query.reveal else ():
            log.info("dead_letter.revealed", dead_letter_id=str(letter.id))
        return DeadLetters(
            queues=looks,
            groups=[
                DeadLetterGroup(route=route, code=code, count=count)
                for (route, code), count in page.kinds.most_common()
            ],
            letters=page.letters,
            next_after=page.letters[-1].id if page.has_more else None,
        )

    async def _read_page(self, page: "_Page") -> list[DeadLetterQueueLook]:
        """Read one queue after the other, since a page goes from one into the next."""
        return [
            await _look(queue, page)
            for queue in self._queues
            if page.query.route in (None, queue.route.name)
        ]

    async def select_letter(self, letter_id: UUID, *, reveal: bool) -> DeadLetterView:
        """One letter; moves nothing.

        Raises:
            NotFoundError: There is none with that id.
        """
        for queue in self._queues:
            async with _up_to(queue, letter_id) as held:
                for letter in held.messages:
                    if reveal:
                        log.info("dead_letter.revealed", dead_letter_id=str(letter_id))
                    return view(letter, reveal=reveal)
        raise _no_letter(letter_id)

    async def resend(self, letter_id: UUID, body: Mapping[str, object]) -> SentBack:
        """Send a letter back with another body; it keeps its id, if that is its own.

        Raises:
            NotFoundError: There is none with that id.
            InvalidError: The body is not what its service reads; nothing has changed.
            TooLargeError: Over 64 KiB; nothing has changed.
        """
        data = json.dumps(body, ensure_ascii=False).encode()
        if len(data) > MAX_BODY_BYTES:
            raise TooLargeError(f"{len(data)} bytes; at most {MAX_BODY_BYTES} are read.")
        for queue in self._queues:
            async with _up_to(queue, letter_id) as held:
                for letter in held.messages:
                    contract = _contract_of(letter)
                    validate(contract, body, prefix="/body/")
                    await held.send_back(
                        letter,
                        body=data,
                        type=contract.type_name,
                        content_type="application/json",
                        content_encoding=None,
                    )
                    log.info("dead_letter.resent", dead_letter_id=str(letter_id))
                    return SentBack(id=letter_id, route=queue.route.name)
        raise _no_letter(letter_id)

    async def discard(
        self, letter_id: UUID, *, reason: str, discarded_by: str
    ) -> DiscardedDeadLetter:
        """Keep the reason, and only then remove the letter. A crash in between: do it again.

        Raises:
            NotFoundError: There is none with that id.
            DatabaseServiceUnavailableError: The reason cannot be kept; the letter stays.
        """
        for queue in self._queues:
            async with queue.held(lambda one: False if one.id == letter_id else None) as held:
                if letters := held.messages:
                    discarded = await self._records.record_discard(
                        DeadLetterDiscard(
                            message_id=letter_id,
                            route=queue.route.name,
                            error_code=letters[0].code,
                            reason=reason,
                            discarded_by=discarded_by,
                        )
                    )
                    for letter in letters:
                        held.remove(letter)
                    log.info(
                        "dead_letter.discarded",
                        dead_letter_id=str(letter_id),
                        queue=queue.route.dead_letter_queue,
                        code=letters[0].code,
                    )
                    return discarded
        raise _no_letter(letter_id)

    async def discard_many(self, request: DiscardManyRequest) -> DiscardedMany:
        """Discard all that are meant, each as ``discard`` does: first the reason, then the letter.

        Raises:
            ConflictError: There are more than were seen; nothing was discarded.
            DatabaseServiceUnavailableError: A reason cannot be kept. What was discarded by then
                stays so; the rest is still there.
        """

        def is_meant(letter: DeadLetter) -> bool | None:
            is_so = request.matches(letter.id, letter.route.name, letter.code)
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
        self, held: LockedQueue, letters: Sequence[DeadLetter], request: DiscardManyRequest
    ) -> None:
        recorded = await asyncio.gather(
            *(
                self._records.record_discard(
                    DeadLetterDiscard(
                        message_id=letter.id,
                        route=letter.route.name,
                        error_code=letter.code,
                        reason=request.reason,
                        discarded_by=request.discarded_by,
                    )
                )
                for letter in letters
            ),
            return_exceptions=True,
        )
        failures = [result for result in recorded if isinstance(result, BaseException)]
        for letter, result in zip(letters, recorded, strict=True):
            if not isinstance(result, BaseException):
                held.remove(letter)
                log.info(
                    "dead_letter.discarded",
                    dead_letter_id=str(letter.id),
                    queue=letter.route.dead_letter_queue,
                    code=letter.code,
                )
        if failures:
            raise failures[0]

    async def list_discards(self, query: DiscardQuery) -> DiscardedDeadLetters:
        """Letters that were discarded, and why."""
        return await self._records.select_discards(query)

    async def dry_run(self, request: DryRunRequest) -> DryRun:
        """What would become of letters that are sent back; stores, sends and moves nothing.

        Raises:
            DatabaseServiceUnavailableError: It cannot be tried now.
        """
        return await dry_run(request, queues=self._queues, records=self._records)


def view(letter: DeadLetter, *, reveal: bool) -> DeadLetterView:
    """A letter as a person sees it."""
    body = None
    if letter.has_body:
        show = unmasked_body if reveal else redacted_body
        body = show(letter.delivery.body)
    kind = letter.delivery.type
    return DeadLetterView(
        id=letter.id,
        route=letter.route.name,
        code=letter.code,
        detail=letter.detail,
        attempts=letter.attempts,
        first_seen=letter.first_seen,
        failed_service=letter.failed_service,
        routing_key=letter.routing_key,
        type=kind[:255] if isinstance(kind, str) else "",
        size_bytes=letter.size,
        headers=shown_headers(letter.delivery, reveal=reveal),
        body=body,
        revealed=reveal and letter.has_body,
    )


class _Page:
    """Letters of one page, made while the queues are read; of all others only how many there are.

    What is read may be hundreds of megabytes, what is shown of it is little.
    """

    def __init__(self, query: DeadLetterQuery, *, after: UUID | None) -> None:
        self.query = query
        self.letters: list[DeadLetterView] = []
        self.kinds: Counter[tuple[str, str]] = Counter()
        self.has_more = False
        self._after = after
        self._bytes = 0

    @property
    def is_still_to_begin(self) -> bool:
        """Whether the letter behind which it begins has not come."""
        return self._after is not None

    def take(self, letter: DeadLetter) -> None:
        """Count a letter, and show it if it is one of the page."""
        self.kinds[letter.route.name, letter.code] += 1
        if self.query.code not in (None, letter.code):
            return
        if self._after is not None:
            if letter.id == self._after:
                self._after = None
        elif len(self.letters) == self.query.limit:
            self.has_more = True
        else:
            self.letters.append(self._view(letter))

    def _view(self, letter: DeadLetter) -> DeadLetterView:
        seen = view(letter, reveal=self.query.reveal)
        self._bytes += len(seen.body or "")
        # Of what would make the answer too large, the body is shown on the letter's own page.
        return seen if self._bytes <= MAX_PAGE_CHARACTERS else view_without_body(seen)


async def _look(queue: DeadLetterQueue, page: _Page) -> DeadLetterQueueLook:
    name = queue.route.name
    try:
        async with queue.held(page.take) as held:
            return DeadLetterQueueLook(
                route=name,
                letters=max(held.ready, held.read_count),
                read=held.read_count,
                complete=held.is_complete,
                locked_by_another_reader=held.is_locked_by_another_reader,
            )
    except ConflictError:  # a redrive of our own is at it
        return DeadLetterQueueLook(
            route=name, letters=0, read=0, complete=False, locked_by_another_reader=True
        )


def view_without_body(letter: DeadLetterView) -> DeadLetterView:
    """The letter as it is shown where there is no room for its body."""
    return letter.model_copy(update={"body": None, "revealed": False})


@asynccontextmanager
async def _up_to(queue: DeadLetterQueue, letter_id: UUID) -> AsyncIterator[LockedQueue]:
    """Hold a queue as far as a letter, and keep that one alone.

    First among the oldest, which are those that a page shows; only then among all.
    """

    def is_it(letter: DeadLetter) -> bool:
        return letter.id == letter_id

    def wanted(letter: DeadLetter) -> bool | None:
        return True if is_it(letter) else None

    async with queue.held(wanted, until=is_it, limit=LOOKED_AT_FIRST) as held:
        if held.messages or held.read_count >= held.ready:
            yield held
            return
    async with queue.held(wanted, until=is_it) as held:
        yield held


def _contract_of(letter: DeadLetter) -> type[Contract]:
    """What a letter is sent back as: what it names, if that travels on its route."""
    contracts = Contract.by_route(letter.route)
    named = Contract.by_type(letter.delivery.type)
    return named if named in contracts else contracts[0]


def _no_letter(letter_id: UUID) -> NotFoundError:
    return NotFoundError(
        f"There is no dead letter {letter_id}: it was sent back or discarded, or somebody holds "
        "it just now. Look at the list again."
    )
