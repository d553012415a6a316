"""The dead-letter office: shows dead letters, tries out, sends back and discards single ones.

Sending back many is in ``queue_receiver.redrives``.
"""

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Protocol
from uuid import UUID

import structlog

from common.contracts.dead_letters import (
    DeadLetterDiscard,
    DeadLetterGroup,
    DeadLetterQuery,
    DeadLetterQueueLook,
    DeadLetters,
    DeadLetterView,
    DiscardedDeadLetter,
    DiscardedDeadLetters,
    DiscardQuery,
    Rehearsal,
    RehearseRequest,
    SentBack,
)
from common.dead_letters import DeadLetter, DeadLetterQueue, Held
from common.envelope import MAX_BODY_BYTES
from common.errors import (
    ConflictError,
    NotFoundError,
    TooLargeError,
)
from common.http.validation import validate
from queue_receiver.masking import masked_body, revealed_body, shown_headers
from queue_receiver.rehearsals import CONTRACTS, Store, rehearse

log = structlog.get_logger()


class Records(Store, Protocol):
    """What is asked and kept: ``common.database_client`` in production."""

    async def record_discard(self, discard: DeadLetterDiscard) -> DiscardedDeadLetter:
        """Keep why a letter was discarded."""
        ...

    async def select_discards(self, query: DiscardQuery) -> DiscardedDeadLetters:
        """Letters that were discarded."""
        ...


class DeadLetterOffice:
    """All dead letters, whatever their route."""

    def __init__(self, *, queues: Sequence[DeadLetterQueue], records: Records) -> None:
        self._queues = queues
        self._records = records

    async def list_letters(self, query: DeadLetterQuery) -> DeadLetters:
        """A page of letters, and how many there are of which kind; moves nothing.

        Raises:
            BrokerUnavailableError: Nothing could be read.
        """
        wanted = [queue for queue in self._queues if query.route in (None, queue.route.name)]
        looks = await asyncio.gather(*(_look(queue) for queue in wanted))
        letters = [letter for _, found in looks for letter in found]
        kinds = Counter((letter.route.name, letter.code) for letter in letters)
        chosen = [letter for letter in letters if query.code in (None, letter.code)]
        page, next_after = _page(chosen, query.after, query.limit)
        for letter in page if query.reveal else ():
            log.info("dead_letter.revealed", dead_letter_id=str(letter.id))
        return DeadLetters(
            queues=[look for look, _ in looks],
            groups=[
                DeadLetterGroup(route=route, code=code, count=count)
                for (route, code), count in kinds.most_common()
            ],
            letters=[view(letter, reveal=query.reveal) for letter in page],
            next_after=next_after,
        )

    async def select_letter(self, letter_id: UUID, *, reveal: bool) -> DeadLetterView:
        """One letter; moves nothing.

        Raises:
            NotFoundError: There is none with that id.
        """
        for queue in self._queues:
            async with queue.held(lambda letter: letter.id == letter_id) as held:
                for letter in _of(held, letter_id):
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
            async with queue.held(lambda letter: letter.id == letter_id) as held:
                for letter in _of(held, letter_id):
                    contract = CONTRACTS[queue.route.name][0]
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
            DatabaseServiceUnavailableError: The reason can not be kept; the letter stays.
        """
        for queue in self._queues:
            async with queue.held(lambda _: False) as held:
                if letters := list(_of(held, letter_id)):
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

    async def list_discards(self, query: DiscardQuery) -> DiscardedDeadLetters:
        """Letters that were discarded, and why."""
        return await self._records.select_discards(query)

    async def rehearse(self, request: RehearseRequest) -> Rehearsal:
        """What would become of letters that are sent back; stores, sends and moves nothing.

        Raises:
            DatabaseServiceUnavailableError: It can not be tried now.
        """
        return await rehearse(request, queues=self._queues, records=self._records)


def view(letter: DeadLetter, *, reveal: bool) -> DeadLetterView:
    """A letter as a person sees it."""
    body = None
    if letter.has_body:
        show = revealed_body if reveal else masked_body
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


async def _look(queue: DeadLetterQueue) -> tuple[DeadLetterQueueLook, list[DeadLetter]]:
    name = queue.route.name
    try:
        async with queue.held() as held:
            look = DeadLetterQueueLook(
                route=name,
                letters=max(held.ready, len(held.letters)),
                read=len(held.letters),
                complete=held.is_complete,
                looked_at_elsewhere=held.is_looked_at_elsewhere,
            )
            return look, held.letters
    except ConflictError:  # a redrive of our own is at it
        look = DeadLetterQueueLook(
            route=name, letters=0, read=0, complete=False, looked_at_elsewhere=True
        )
        return look, []


def _page(
    letters: list[DeadLetter], after: UUID | None, limit: int
) -> tuple[list[DeadLetter], UUID | None]:
    """The letters behind one; from the beginning if that is gone."""
    start = next((i + 1 for i, letter in enumerate(letters) if letter.id == after), 0)
    page = letters[start : start + limit]
    return page, page[-1].id if len(letters) > start + limit else None


def _of(held: Held, letter_id: UUID) -> Iterator[DeadLetter]:
    return (letter for letter in held.letters if letter.id == letter_id)


def _no_letter(letter_id: UUID) -> NotFoundError:
    return NotFoundError(
        f"There is no dead letter {letter_id}: it was sent back or discarded, or somebody holds "
        "it just now. Look at the list again."
    )
