"""Reads the stream of registrations from the last position, and writes the entries to the store.

The store (``database_service``) keeps the position; AMQP 0-9-1 keeps none. Several receivers may
read at the same time: each message is written by one of them only.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

import structlog

from common.amqp.message import Delivery
from common.amqp.stream import BATCH_SECONDS, Start
from common.context import span_of
from common.contracts.canary import is_canary
from common.contracts.ledger import (
    Acknowledged,
    AcknowledgeIncidents,
    LedgerBatch,
    LedgerEntry,
    LedgerPosition,
    Reconciliation,
    ReconciliationRequest,
)
from common.contracts.topology import USER_REGISTRATION
from queue_receiver.ledger.checkpoint import Checkpoint

log = structlog.get_logger()

STREAM = USER_REGISTRATION.log

Item = TypeVar("Item")

CHUNK = 1000
"""Messages read at a time; the first of them is known already."""

BATCH = 100
"""Entries written at a time; a registration that arrives meanwhile waits for one batch at most."""

OLDEST_CLAIM = timedelta(days=8)
"""An older timestamp is not trusted: the stream keeps nothing so old."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the stream was read."""

    next_offset: int
    caught_up: bool
    """Whether that was the end of the stream."""

    has_more: bool = False
    """Whether there is more that no other reader is reading."""

    is_empty: bool = False
    """Whether the stream has no message, though some were read from it before."""


class Stream(Protocol):
    """Reads streams: ``common.amqp.stream`` in production."""

    async def read(
        self,
        stream: str,
        start: Start,
        take: Callable[[int, Delivery], Item | None],
        *,
        limit: int,
        throttled: bool = False,
    ) -> list[Item]:
        """What ``take`` returns of the messages from an offset on, at most ``limit`` of them."""
        ...


class LedgerStore(Protocol):
    """Where the ledger is kept: ``common.database_client.client`` in production."""

    async def select_ledger_position(self, stream: str) -> LedgerPosition:
        """How far the stream was read."""
        ...

    async def insert_ledger_entries(self, batch: LedgerBatch) -> LedgerPosition:
        """Write what was read, unless another reader was first."""
        ...

    async def reconcile_ledger(self, request: ReconciliationRequest) -> Reconciliation:
        """The totals, and what is missing."""
        ...

    async def acknowledge_incidents(self, request: AcknowledgeIncidents) -> Acknowledged:
        """Record who acknowledged what cannot be accounted for."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class _Chunk:
    """What was read at a time."""

    entries: list[LedgerEntry]
    truncated: int = 0
    restarted: bool = False
    known_up_to: int = 0


async def read_new_entries(
    stream: Stream,
    store: LedgerStore,
    checkpoint: Checkpoint,
    *,
    most: int,
    throttled: bool = False,
    is_empty: bool = False,
) -> Progress:
    """Read from the position to the end of the stream, or until ``most`` messages were read.

    A crash between reading and writing repeats what was not written: nothing counts twice.

    Args:
        stream: Reads it.
        store: Has the position, and takes the entries.
        checkpoint: How far it had been read, in case the store was restored from a backup.
        most: Messages.
        throttled: Pause in between, so that work goes on, and stop if there is another reader.
        is_empty: Conclude that a stream in which nothing is found was created anew. One that was
            read before has at least its last message, but not in the first seconds after the
            start of the broker.

    Raises:
        UnavailableError: The broker or database_service is away; what was written stays.
    """
    position = await store.select_ledger_position(STREAM)
    known_up_to = await _known_up_to(stream, position, checkpoint)
    if not known_up_to:
        checkpoint.save(position)
    left = most
    while left > 0:
        chunk = await _read_chunk(stream, position, throttled=throttled)
        if not chunk.entries:
            if chunk.restarted and is_empty:
                log.error("ledger.restarted", was_at=position.next_offset, begins_at=0)
                position = await store.insert_ledger_entries(_empty(position))
            is_up = not chunk.restarted or (is_empty and position.advanced)
            return Progress(position.next_offset, caught_up=is_up, is_empty=not is_up)
        chunk = replace(chunk, known_up_to=known_up_to)
        position = await _write(store, chunk, position, throttled=throttled)
        checkpoint.save(position)
        left -= len(chunk.entries)
        if position.advanced and len(chunk.entries) < CHUNK - 1:
            return Progress(position.next_offset, caught_up=True)
        if throttled and not position.advanced:
            return Progress(position.next_offset, caught_up=False)
    return Progress(position.next_offset, caught_up=False, has_more=True)


async def _known_up_to(stream: Stream, position: LedgerPosition, checkpoint: Checkpoint) -> int:
    """How far this very stream was read before, if further than the store knows; else 0."""
    before = checkpoint.beyond(position)
    if before is None:
        return 0
    last = before.next_offset - 1
    entries = await stream.read(STREAM, last, _entry, limit=1)
    if [(one.stream_offset, one.registration_id) for one in entries] != [(last, before.last_id)]:
        return 0  # another stream: that was noticed already, or will be now
    log.error("ledger.restored", was_at=before.next_offset, is_at=position.next_offset)
    return before.next_offset


async def _read_chunk(stream: Stream, position: LedgerPosition, *, throttled: bool) -> _Chunk:
    """The next messages, after the one before them shows that it is still the same stream."""
    if position.last_id is None:
        entries = await stream.read(STREAM, "first", _entry, limit=CHUNK, throttled=throttled)
        return _Chunk(entries=entries, truncated=entries[0].stream_offset if entries else 0)
    known = position.next_offset - 1
    for _ in range(2):  # the second time for a stream that was not up yet
        entries = await stream.read(STREAM, known, _entry, limit=CHUNK, throttled=throttled)
        if entries:
            break
    if entries and (entries[0].stream_offset, entries[0].registration_id) == (
        known,
        position.last_id,
    ):
        return _Chunk(entries=entries[1:])
    if entries and entries[0].stream_offset > known:
        truncated = entries[0].stream_offset - position.next_offset
        if truncated:
            log.error("ledger.truncated", messages=truncated)
        return _Chunk(entries=entries, truncated=truncated)
    entries = await stream.read(STREAM, "first", _entry, limit=CHUNK, throttled=throttled)
    if entries:
        begins_at = entries[0].stream_offset
        log.error("ledger.restarted", was_at=position.next_offset, begins_at=begins_at)
    return _Chunk(entries=entries, restarted=True)


def _entry(offset: int, delivery: Delivery) -> LedgerEntry:
    return LedgerEntry.model_construct(
        registration_id=delivery.id,
        accepted_at=accepted_at(delivery, now=datetime.now(UTC)),
        stream_offset=offset,
        span=span_of(delivery.traceparent) or None,
    )


def accepted_at(delivery: Delivery, *, now: datetime) -> datetime:
    """When it was published, by the publisher's clock if that is plausible, else now."""
    claimed = delivery.timestamp
    if isinstance(claimed, datetime) and claimed.tzinfo and now - OLDEST_CLAIM <= claimed <= now:
        return claimed
    return now


async def _write(
    store: LedgerStore, chunk: _Chunk, position: LedgerPosition, *, throttled: bool
) -> LedgerPosition:
    """Write a chunk in batches; stop where another reader was first."""
    for start in range(0, len(chunk.entries), BATCH):
        if start and throttled:
            await asyncio.sleep(BATCH_SECONDS)
        position = await store.insert_ledger_entries(_batch(chunk, start, position))
        if not position.advanced:
            break
    return position


def _batch(chunk: _Chunk, start: int, position: LedgerPosition) -> LedgerBatch:
    entries = chunk.entries[start : start + BATCH]
    last = entries[-1]
    return LedgerBatch(
        stream=STREAM,
        from_offset=position.next_offset,
        next_offset=last.stream_offset + 1,
        last_id=last.registration_id,
        truncated=0 if start else chunk.truncated,
        restarted=chunk.restarted and not start,
        known_up_to=0 if start else chunk.known_up_to,
        entries=[entry for entry in entries if not is_canary(entry.registration_id)],
    )


def _empty(position: LedgerPosition) -> LedgerBatch:
    """The stream is at its beginning, and has nothing."""
    return LedgerBatch(
        stream=STREAM, from_offset=position.next_offset, next_offset=0, entries=[], restarted=True
    )
