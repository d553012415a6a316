"""Reads the stream of registrations from where it was left, and writes what it finds to the book.

The book (``database_service``) keeps the position; AMQP 0-9-1 keeps none. Several receivers may
read at once: only one of them gets each message written.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from uuid import UUID

import structlog

from common.canary import is_canary
from common.contracts.ledger import LedgerBatch, LedgerEntry, LedgerPosition
from common.envelope import Delivery
from common.stream import PORTION_SECONDS, Start
from common.topology import USER_REGISTRATION

log = structlog.get_logger()

STREAM = USER_REGISTRATION.log

PIECE = 1000
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


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a reading came."""

    next_offset: int
    caught_up: bool
    """Whether that was the end of the stream."""

    is_behind: bool = False
    """Whether there is more, and nobody else is reading it."""


class Log(Protocol):
    """The stream: ``common.stream`` in production."""

    async def read(
        self,
        stream: str,
        start: Start,
        take: Callable[[int, Delivery], Message | None],
        *,
        limit: int,
        gently: bool = False,
    ) -> list[Message]:
        """Messages from an offset on."""
        ...


class Book(Protocol):
    """Where the ledger is kept: ``common.database_client`` in production."""

    async def select_ledger_position(self, stream: str) -> LedgerPosition:
        """How far the stream was read."""
        ...

    async def insert_ledger_entries(self, batch: LedgerBatch) -> LedgerPosition:
        """Write what was read, unless another reader was first."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """What was read in one go."""

    messages: list[Message]
    unread: int = 0
    restarted: bool = False


async def read_on(log_: Log, book: Book, *, most: int, gently: bool = False) -> Progress:
    """Read from the position to the end of the stream, or until ``most`` messages were read.

    Gently: with pauses, so that work goes on beside it, and not if another reader is at it.

    A crash between reading and writing repeats what was not written: nothing counts twice.

    Raises:
        UnavailableError: The broker or database_service is away; what was written stays.
    """
    position = await book.select_ledger_position(STREAM)
    left = most
    while left > 0:
        piece = await _read_piece(log_, position, gently=gently)
        if not piece.messages:
            # Of a stream that was read before, at least the last message is there; some seconds
            # after the broker's start it is not yet.
            is_up = not piece.restarted
            return Progress(position.next_offset, caught_up=is_up)
        position = await _write(book, piece, position, gently=gently)
        left -= len(piece.messages)
        if position.advanced and len(piece.messages) < PIECE - 1:
            return Progress(position.next_offset, caught_up=True)
        if gently and not position.advanced:
            return Progress(position.next_offset, caught_up=False)
    return Progress(position.next_offset, caught_up=False, is_behind=True)


async def _read_piece(log_: Log, position: LedgerPosition, *, gently: bool) -> _Piece:
    """The next messages, after a look at the one before them: is it still the same stream?"""
    if position.last_id is None:
        messages = await log_.read(STREAM, "first", _message, limit=PIECE, gently=gently)
        return _Piece(messages=messages, unread=messages[0].offset if messages else 0)
    known = position.next_offset - 1
    messages = await log_.read(STREAM, known, _message, limit=PIECE, gently=gently)
    if messages and messages[0].offset == known and messages[0].id == position.last_id:
        return _Piece(messages=messages[1:])
    if messages and messages[0].offset > known:
        unread = messages[0].offset - position.next_offset
        if unread:
            log.error("ledger.forgotten", unread=unread)
        return _Piece(messages=messages, unread=unread)
    messages = await log_.read(STREAM, "first", _message, limit=PIECE, gently=gently)
    if messages:
        log.warning("ledger.restarted", was_at=position.next_offset, begins_at=messages[0].offset)
    return _Piece(messages=messages, restarted=True)


def _message(offset: int, delivery: Delivery) -> Message:
    return Message(offset, delivery.id, accepted_at(delivery, now=datetime.now(UTC)))


def accepted_at(delivery: Delivery, *, now: datetime) -> datetime:
    """When the publisher says that it published; now, where it says nothing believable."""
    claimed = delivery.timestamp
    if isinstance(claimed, datetime) and claimed.tzinfo and now - OLDEST_CLAIM <= claimed <= now:
        return claimed
    return now


async def _write(
    book: Book, piece: _Piece, position: LedgerPosition, *, gently: bool
) -> LedgerPosition:
    """Write a piece, some messages at a time; where another reader was first, it ends there."""
    for start in range(0, len(piece.messages), WRITTEN_AT_ONCE):
        if start and gently:
            await asyncio.sleep(PORTION_SECONDS)
        position = await book.insert_ledger_entries(_batch(piece, start, position))
        if not position.advanced:
            break
    return position


def _batch(piece: _Piece, start: int, position: LedgerPosition) -> LedgerBatch:
    messages = piece.messages[start : start + WRITTEN_AT_ONCE]
    last = messages[-1]
    return LedgerBatch(
        stream=STREAM,
        from_offset=position.next_offset,
        next_offset=last.offset + 1,
        last_id=last.id,
        unread=0 if start else piece.unread,
        restarted=piece.restarted and not start,
        entries=[
            LedgerEntry.model_construct(
                registration_id=message.id,
                accepted_at=message.accepted_at,
                stream_offset=message.offset,
            )
            for message in messages
            if not is_canary(message.id)
        ],
    )
