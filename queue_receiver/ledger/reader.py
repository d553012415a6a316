"""Reads the stream of registrations from where it was left, and writes what it finds to the book.

The book (``database_service``) keeps the position; AMQP 0-9-1 keeps none. Several receivers may
read at once: only one of them gets each message written.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from common.amqp.message import Delivery
from common.amqp.stream import BATCH_SECONDS, Start
from common.context import span_of
from common.contracts.canary import is_canary
from common.contracts.ledger import LedgerBatch, LedgerEntry, LedgerPosition
from common.contracts.topology import USER_REGISTRATION
from queue_receiver.ledger.mark import Mark

log = structlog.get_logger()

STREAM = USER_REGISTRATION.log

CHUNK = 1000
"""Messages read in one go; one of them is known already."""

WRITTEN_AT_ONCE = 100
"""Of those; a registration that comes meanwhile waits for so many at most, not for a piece."""

OLDEST_CLAIM = timedelta(days=8)
"""A publisher's clock that says more is not believed: the stream keeps nothing so old."""


@dataclass(frozen=True, slots=True)
class Message:
    """What the ledger keeps of a message: nothing of its body."""

    offset: int
    id: UUID
    accepted_at: datetime
    span: str = ""
    """Of its trace context; empty where the publisher gave none."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reading came."""

    next_offset: int
    caught_up: bool
    """Whether that was the end of the stream."""

    has_more: bool = False
    """Whether there is more, and nobody else is reading it."""

    is_empty: bool = False
    """Whether the stream has no message, though some were read before."""


class Log(Protocol):
    """The stream: ``common.amqp.stream`` in production."""

    async def read(
        self,
        stream: str,
        start: Start,
        take: Callable[[int, Delivery], Message | None],
        *,
        limit: int,
        throttled: bool = False,
    ) -> list[Message]:
        """Messages from an offset on."""
        ...


class LedgerStore(Protocol):
    """Where the ledger is kept: ``common.database_client.client`` in production."""

    async def select_ledger_position(self, stream: str) -> LedgerPosition:
        """How far the stream was read."""
        ...

    async def insert_ledger_entries(self, batch: LedgerBatch) -> LedgerPosition:
        """Write what was read, unless another reader was first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """What was read in one go."""

    messages: list[Message]
    truncated: int = 0
    restarted: bool = False
    known_up_to: int = 0


async def read_new_entries(
    log_: Log,
    book: LedgerStore,
    mark: Mark,
    *,
    most: int,
    throttled: bool = False,
    is_empty: bool = False,
) -> Progress:
    """Read from the position to the end of the stream, or until ``most`` messages were read.

    A crash between reading and writing repeats what was not written: nothing counts twice.

    Args:
        log_: The stream.
        book: Where what is read is written.
        mark: How far it had been read, should the book have forgotten it.
        most: Messages.
        throttled: With pauses, so that work goes on beside it, and not if another reader is at it.
        is_empty: Believe that a stream in which nothing is found was made anew. Of one that was
            read before, at least the last message is there; but some seconds after the broker's
            start it is not yet.

    Raises:
        UnavailableError: The broker or database_service is away; what was written stays.
    """
    position = await book.select_ledger_position(STREAM)
    known_up_to = await _known_up_to(log_, position, mark)
    if not known_up_to:
        mark.keep(position)
    left = most
    while left > 0:
        piece = await _read_chunk(log_, position, throttled=throttled)
        if not piece.messages:
            if piece.restarted and is_empty:
                log.error("ledger.restarted", was_at=position.next_offset, begins_at=0)
                position = await book.insert_ledger_entries(_empty(position))
            is_up = not piece.restarted or (is_empty and position.advanced)
            return Progress(position.next_offset, caught_up=is_up, is_empty=not is_up)
        piece = replace(piece, known_up_to=known_up_to)
        position = await _write(book, piece, position, throttled=throttled)
        mark.keep(position)
        left -= len(piece.messages)
        if position.advanced and len(piece.messages) < CHUNK - 1:
            return Progress(position.next_offset, caught_up=True)
        if throttled and not position.advanced:
            return Progress(position.next_offset, caught_up=False)
    return Progress(position.next_offset, caught_up=False, has_more=True)


async def _known_up_to(log_: Log, position: LedgerPosition, mark: Mark) -> int:
    """How far this very stream was read before, if further than the book says; else 0."""
    before = mark.beyond(position)
    if before is None:
        return 0
    last = before.next_offset - 1
    messages = await log_.read(STREAM, last, _message, limit=1)
    if [(one.offset, one.id) for one in messages] != [(last, before.last_id)]:
        return 0  # another stream: somebody has noticed that already, or will now
    log.error("ledger.restored", was_at=before.next_offset, is_at=position.next_offset)
    return before.next_offset


async def _read_chunk(log_: Log, position: LedgerPosition, *, throttled: bool) -> _Chunk:
    """The next messages, after a look at the one before them: is it still the same stream?"""
    if position.last_id is None:
        messages = await log_.read(STREAM, "first", _message, limit=CHUNK, throttled=throttled)
        return _Chunk(messages=messages, truncated=messages[0].offset if messages else 0)
    known = position.next_offset - 1
    for _ in range(2):  # the second look is for a stream that was just not up yet
        messages = await log_.read(STREAM, known, _message, limit=CHUNK, throttled=throttled)
        if messages:
            break
    if messages and messages[0].offset == known and messages[0].id == position.last_id:
        return _Chunk(messages=messages[1:])
    if messages and messages[0].offset > known:
        truncated = messages[0].offset - position.next_offset
        if truncated:
            log.error("ledger.truncated", messages=truncated)
        return _Chunk(messages=messages, truncated=truncated)
    messages = await log_.read(STREAM, "first", _message, limit=CHUNK, throttled=throttled)
    if messages:
        log.error("ledger.restarted", was_at=position.next_offset, begins_at=messages[0].offset)
    return _Chunk(messages=messages, restarted=True)


def _message(offset: int, delivery: Delivery) -> Message:
    return Message(
        offset,
        delivery.id,
        accepted_at(delivery, now=datetime.now(UTC)),
        span_of(delivery.traceparent),
    )


def accepted_at(delivery: Delivery, *, now: datetime) -> datetime:
    """When the publisher says that it published; now, where it says nothing believable."""
    claimed = delivery.timestamp
    if isinstance(claimed, datetime) and claimed.tzinfo and now - OLDEST_CLAIM <= claimed <= now:
        return claimed
    return now


async def _write(
    book: LedgerStore, piece: _Chunk, position: LedgerPosition, *, throttled: bool
) -> LedgerPosition:
    """Write a piece, some messages at a time; where another reader was first, it ends there."""
    for start in range(0, len(piece.messages), WRITTEN_AT_ONCE):
        if start and throttled:
            await asyncio.sleep(BATCH_SECONDS)
        position = await book.insert_ledger_entries(_batch(piece, start, position))
        if not position.advanced:
            break
    return position


def _batch(piece: _Chunk, start: int, position: LedgerPosition) -> LedgerBatch:
    messages = piece.messages[start : start + WRITTEN_AT_ONCE]
    last = messages[-1]
    return LedgerBatch(
        stream=STREAM,
        from_offset=position.next_offset,
        next_offset=last.offset + 1,
        last_id=last.id,
        truncated=0 if start else piece.truncated,
        restarted=piece.restarted and not start,
        known_up_to=0 if start else piece.known_up_to,
        entries=[
            LedgerEntry.model_construct(
                registration_id=message.id,
                accepted_at=message.accepted_at,
                stream_offset=message.offset,
                span=(position.takes_spans and message.span) or None,
            )
            for message in messages
            if not is_canary(message.id)
        ],
    )


def _empty(position: LedgerPosition) -> LedgerBatch:
    """The stream stands at its beginning, and has nothing."""
    return LedgerBatch(
        stream=STREAM, from_offset=position.next_offset, next_offset=0, entries=[], restarted=True
    )
