from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from common.amqp.message import Delivery
from common.amqp.stream import Start
from common.contracts.canary import new_canary_id
from common.contracts.ledger import LedgerBatch, LedgerPosition
from queue_receiver.ledger import reader as ledger_reader
from queue_receiver.ledger.checkpoint import Checkpoint
from queue_receiver.ledger.reader import Item, LedgerStore, Progress, accepted_at
from queue_receiver.ledger.reader import read_new_entries as read_from

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


@dataclass
class FakeStream:
    """A stream in memory, of which the oldest may be forgotten."""

    ids: list[UUID] = field(default_factory=list)
    first: int = 0
    was_throttled: bool = False
    traceparents: dict[UUID, object] = field(default_factory=dict)

    async def read(
        self,
        _stream: str,
        start: Start,
        take: Callable[[int, Delivery], Item | None],
        *,
        limit: int,
        throttled: bool = False,
    ) -> list[Item]:
        self.was_throttled = throttled
        begin = self.first if start == "first" else max(start, self.first)
        found = [
            take(offset, self._delivery(key))
            for offset, key in enumerate(self.ids)
            if offset >= begin
        ]
        return [message for message in found if message is not None][:limit]

    def _delivery(self, key: UUID) -> Delivery:
        headers = {"traceparent": self.traceparents[key]} if key in self.traceparents else {}
        return Delivery(body=b"", routing_key="", message_id=str(key), headers=headers)


@dataclass
class FakeStore:
    """Keeps the position as the database does."""

    position: LedgerPosition = field(default_factory=lambda: LedgerPosition(next_offset=0))
    batches: list[LedgerBatch] = field(default_factory=list)
    rival: LedgerPosition | None = None
    """What another reader has written just before."""

    async def select_ledger_position(self, _stream: str) -> LedgerPosition:
        return self.position

    async def insert_ledger_entries(self, batch: LedgerBatch) -> LedgerPosition:
        if self.rival is not None:
            self.position, self.rival = self.rival, None
        if batch.from_offset != self.position.next_offset:
            return self.position.model_copy(update={"advanced": False})
        self.batches.append(batch)
        self.position = LedgerPosition(next_offset=batch.next_offset, last_id=batch.last_id)
        return self.position

    @property
    def ids(self) -> list[UUID]:
        return [entry.registration_id for batch in self.batches for entry in batch.entries]


async def read_new_entries(
    stream: FakeStream,
    store: FakeStore,
    *,
    most: int,
    throttled: bool = False,
    checkpoint: Checkpoint | None = None,
    is_empty: bool = False,
) -> Progress:
    return await read_from(
        stream,
        cast("LedgerStore", store),
        checkpoint or Checkpoint(None, "stream"),
        most=most,
        throttled=throttled,
        is_empty=is_empty,
    )


def some_ids(count: int) -> list[UUID]:
    return [uuid4() for _ in range(count)]


async def test_all_there_is_is_read_once() -> None:
    stream, store = FakeStream(some_ids(5)), FakeStore()

    first = await read_new_entries(stream, store, most=100)
    again = await read_new_entries(stream, store, most=100)

    assert store.ids == stream.ids
    assert (first.next_offset, first.caught_up) == (5, True)
    assert again == first


async def test_reading_goes_on_where_it_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reader, "CHUNK", 4)
    stream, store = FakeStream(some_ids(10)), FakeStore()

    part = await read_new_entries(stream, store, most=5)
    rest = await read_new_entries(stream, store, most=100)

    assert (part.caught_up, part.has_more) == (False, True)
    assert (rest.next_offset, rest.caught_up) == (10, True)
    assert store.ids == stream.ids


async def test_a_piece_is_written_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reader, "BATCH", 3)
    stream, store = FakeStream(some_ids(10)), FakeStore()
    store.position = LedgerPosition(next_offset=1, last_id=stream.ids[0])
    stream.first = 2

    progress = await read_new_entries(stream, store, most=100)

    assert store.ids == stream.ids[2:]
    assert [len(batch.entries) for batch in store.batches] == [3, 3, 2]
    assert [batch.truncated for batch in store.batches] == [1, 0, 0]
    assert (progress.next_offset, progress.caught_up) == (10, True)


async def test_read_gently_the_same_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reader, "BATCH", 3)
    stream, store = FakeStream(some_ids(10)), FakeStore()

    progress = await read_new_entries(stream, store, most=100, throttled=True)

    assert store.ids == stream.ids
    assert (progress.next_offset, progress.caught_up) == (10, True)
    assert stream.was_throttled


async def test_a_stream_begun_anew_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reader, "BATCH", 3)
    stream, store = FakeStream(some_ids(7)), FakeStore()
    store.position = LedgerPosition(next_offset=3, last_id=uuid4())

    await read_new_entries(stream, store, most=100)

    assert store.ids == stream.ids
    assert [batch.restarted for batch in store.batches] == [True, False, False]


async def test_two_readers_of_one_piece_write_each_message_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_reader, "BATCH", 3)
    stream, store = FakeStream(some_ids(10)), FakeStore()
    insert = store.insert_ledger_entries

    async def insert_after_the_first_a_rival(batch: LedgerBatch) -> LedgerPosition:
        written = await insert(batch)
        if len(store.batches) == 1 and store.rival is None:
            store.rival = LedgerPosition(next_offset=5, last_id=stream.ids[4])
        return written

    monkeypatch.setattr(store, "insert_ledger_entries", insert_after_the_first_a_rival)
    progress = await read_new_entries(stream, store, most=100)

    assert store.ids == [*stream.ids[:3], *stream.ids[5:]]
    assert (progress.next_offset, progress.caught_up) == (10, True)


async def test_what_another_reader_wrote_is_not_written_again() -> None:
    stream, store = FakeStream(some_ids(6)), FakeStore()
    store.rival = LedgerPosition(next_offset=4, last_id=stream.ids[3])

    progress = await read_new_entries(stream, store, most=100)

    assert store.ids == stream.ids[4:]
    assert progress.next_offset == 6


async def test_read_gently_one_reader_leaves_the_stream_to_the_other() -> None:
    stream, store = FakeStream(some_ids(6)), FakeStore()
    store.rival = LedgerPosition(next_offset=4, last_id=stream.ids[3])

    progress = await read_new_entries(stream, store, most=100, throttled=True)

    assert store.ids == []
    assert progress == Progress(4, caught_up=False, has_more=False)


async def test_what_the_stream_forgot_is_counted() -> None:
    stream, store = FakeStream(some_ids(10)), FakeStore()
    store.position = LedgerPosition(next_offset=3, last_id=stream.ids[2])
    stream.first = 7

    await read_new_entries(stream, store, most=100)

    assert store.ids == stream.ids[7:]
    assert [batch.truncated for batch in store.batches] == [4]


async def test_a_stream_of_which_only_the_known_message_was_forgotten_has_no_gap() -> None:
    stream, store = FakeStream(some_ids(5)), FakeStore()
    store.position = LedgerPosition(next_offset=3, last_id=stream.ids[2])
    stream.first = 3

    await read_new_entries(stream, store, most=100)

    assert (store.ids, [batch.truncated for batch in store.batches]) == (stream.ids[3:], [0])


@pytest.mark.parametrize("length", [2, 3, 9])
async def test_another_stream_of_the_same_name_is_read_from_its_beginning(length: int) -> None:
    stream, store = FakeStream(some_ids(length)), FakeStore()
    store.position = LedgerPosition(next_offset=3, last_id=uuid4())

    progress = await read_new_entries(stream, store, most=100)

    assert store.ids == stream.ids
    assert [batch.restarted for batch in store.batches] == [True]
    assert progress.next_offset == length


async def test_a_stream_that_is_not_up_yet_changes_nothing() -> None:
    store = FakeStore(LedgerPosition(next_offset=3, last_id=uuid4()))

    progress = await read_new_entries(FakeStream(), store, most=100)

    assert (store.batches, progress.next_offset, progress.caught_up) == ([], 3, False)
    assert progress.is_empty


async def test_a_stream_that_comes_up_between_two_looks_is_the_same() -> None:
    ids = some_ids(3)
    stream, store = FakeStream([]), FakeStore(LedgerPosition(next_offset=3, last_id=ids[2]))
    read = stream.read

    async def read_when_up(*arguments: Any, **options: Any) -> list[Any]:
        found = await read(*arguments, **options)
        stream.ids = ids
        return found

    stream.read = read_when_up  # type: ignore[method-assign]
    progress = await read_new_entries(stream, store, most=100)

    assert (store.batches, progress) == ([], Progress(3, caught_up=True))


async def test_a_stream_that_stays_empty_is_believed_to_be_another_one() -> None:
    stream, store = FakeStream(), FakeStore(LedgerPosition(next_offset=3, last_id=uuid4()))

    progress = await read_new_entries(stream, store, most=100, is_empty=True)
    stream.ids = some_ids(2)
    on = await read_new_entries(stream, store, most=100)

    assert progress == Progress(0, caught_up=True)
    assert [batch.restarted for batch in store.batches] == [True, False]
    assert (on, store.ids) == (Progress(2, caught_up=True), stream.ids)


async def test_a_database_that_forgot_what_was_read_is_told_so_once(tmp_path: Path) -> None:
    """By a process that was started since; and the next reading is none after a restoration."""
    stream, store = FakeStream(some_ids(9)), FakeStore()
    await read_new_entries(stream, store, most=100, checkpoint=Checkpoint(tmp_path, "stream"))
    store.position, store.batches = LedgerPosition(next_offset=4, last_id=stream.ids[3]), []
    checkpoint = Checkpoint(tmp_path, "stream")

    await read_new_entries(stream, store, most=100, checkpoint=checkpoint)
    stream.ids += some_ids(1)
    await read_new_entries(stream, store, most=100, checkpoint=checkpoint)

    assert [batch.known_up_to for batch in store.batches] == [9, 0]


async def test_another_stream_that_is_shorter_is_no_restoration(tmp_path: Path) -> None:
    stream, store, checkpoint = FakeStream(some_ids(9)), FakeStore(), Checkpoint(tmp_path, "stream")
    await read_new_entries(stream, store, most=100, checkpoint=checkpoint)
    stream.ids = some_ids(12)
    store.position, store.batches = LedgerPosition(next_offset=1, last_id=stream.ids[0]), []

    await read_new_entries(stream, store, most=100, checkpoint=checkpoint)

    assert [batch.known_up_to for batch in store.batches] == [0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"nextOffset": "x", "lastId": 1}'])
def test_a_mark_that_can_not_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "stream.position.json").write_text(content)

    assert Checkpoint(tmp_path, "stream").beyond(LedgerPosition(next_offset=0)) is None


def test_a_checkpoint_that_cannot_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    checkpoint, position = (
        Checkpoint(tmp_path / "file", "s"),
        LedgerPosition(next_offset=3, last_id=uuid4()),
    )

    checkpoint.save(position)

    assert checkpoint.beyond(LedgerPosition(next_offset=0)) == position


async def test_canaries_are_passed_and_not_written() -> None:
    canary = new_canary_id()
    stream, store = FakeStream([*some_ids(1), canary, *some_ids(1), canary]), FakeStore()

    progress = await read_new_entries(stream, store, most=100)

    assert store.ids == [stream.ids[0], stream.ids[2]]
    assert (progress.next_offset, store.position.last_id) == (4, canary)


async def test_the_span_of_a_message_is_written_where_it_has_one() -> None:
    stream = FakeStream(some_ids(3))
    stream.traceparents = {
        stream.ids[0]: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        stream.ids[1]: "nonsense",
    }
    store = FakeStore()

    await read_new_entries(stream, store, most=100)

    (batch,) = store.batches
    assert [entry.span for entry in batch.entries] == ["b7ad6b7169203331", None, None]


@pytest.mark.parametrize(
    ("claimed", "believed"),
    [
        (NOW - timedelta(minutes=5), NOW - timedelta(minutes=5)),
        (NOW + timedelta(hours=1), NOW),
        (NOW - timedelta(days=400), NOW),
        (datetime(2026, 1, 31, 9, 0), NOW),  # noqa: DTZ001 - what the codec must never give
        (None, NOW),
        ("yesterday", NOW),
    ],
)
def test_a_publishers_time_is_believed_while_it_can_be(claimed: object, believed: datetime) -> None:
    delivery = Delivery(body=b"", routing_key="", timestamp=claimed, headers={})

    assert accepted_at(delivery, now=NOW) == believed
