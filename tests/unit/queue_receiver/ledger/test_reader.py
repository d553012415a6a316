from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.amqp.message import Delivery
from common.amqp.stream import Start
from common.contracts.canary import new_canary_id
from common.contracts.ledger import LedgerBatch, LedgerPosition
from queue_receiver.ledger import reader as ledger_reading
from queue_receiver.ledger.mark import Mark
from queue_receiver.ledger.reader import Message, Progress, accepted_at
from queue_receiver.ledger.reader import read_new_entries as read_on_with

NOW = datetime(2026, 1, 31, 9, 30, tzinfo=UTC)


@dataclass
class FakeLog:
    """A stream in memory, of which the oldest may be forgotten."""

    ids: list[UUID] = field(default_factory=list)
    first: int = 0
    was_gently_read: bool = False
    traceparents: dict[UUID, object] = field(default_factory=dict)

    async def read(
        self,
        _stream: str,
        start: Start,
        take: Callable[[int, Delivery], Message | None],
        *,
        limit: int,
        throttled: bool = False,
    ) -> list[Message]:
        self.was_gently_read = throttled
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
class FakeBook:
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
        self.position = LedgerPosition(
            next_offset=batch.next_offset,
            last_id=batch.last_id,
            takes_spans=self.position.takes_spans,
        )
        return self.position

    @property
    def ids(self) -> list[UUID]:
        return [entry.registration_id for batch in self.batches for entry in batch.entries]


async def read_new_entries(
    log: FakeLog,
    book: FakeBook,
    *,
    most: int,
    throttled: bool = False,
    mark: Mark | None = None,
    is_empty: bool = False,
) -> Progress:
    mark = mark or Mark(None, "stream")
    return await read_on_with(log, book, mark, most=most, throttled=throttled, is_empty=is_empty)


def some_ids(count: int) -> list[UUID]:
    return [uuid4() for _ in range(count)]


async def test_all_there_is_is_read_once() -> None:
    log, book = FakeLog(some_ids(5)), FakeBook()

    first = await read_new_entries(log, book, most=100)
    again = await read_new_entries(log, book, most=100)

    assert book.ids == log.ids
    assert (first.next_offset, first.caught_up) == (5, True)
    assert again == first


async def test_reading_goes_on_where_it_was_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reading, "CHUNK", 4)
    log, book = FakeLog(some_ids(10)), FakeBook()

    part = await read_new_entries(log, book, most=5)
    rest = await read_new_entries(log, book, most=100)

    assert (part.caught_up, part.has_more) == (False, True)
    assert (rest.next_offset, rest.caught_up) == (10, True)
    assert book.ids == log.ids


async def test_a_piece_is_written_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reading, "WRITTEN_AT_ONCE", 3)
    log, book = FakeLog(some_ids(10)), FakeBook()
    book.position = LedgerPosition(next_offset=1, last_id=log.ids[0])
    log.first = 2

    progress = await read_new_entries(log, book, most=100)

    assert book.ids == log.ids[2:]
    assert [len(batch.entries) for batch in book.batches] == [3, 3, 2]
    assert [batch.truncated for batch in book.batches] == [1, 0, 0]
    assert (progress.next_offset, progress.caught_up) == (10, True)


async def test_read_gently_the_same_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reading, "WRITTEN_AT_ONCE", 3)
    log, book = FakeLog(some_ids(10)), FakeBook()

    progress = await read_new_entries(log, book, most=100, throttled=True)

    assert book.ids == log.ids
    assert (progress.next_offset, progress.caught_up) == (10, True)
    assert log.was_gently_read


async def test_a_stream_begun_anew_is_said_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_reading, "WRITTEN_AT_ONCE", 3)
    log, book = FakeLog(some_ids(7)), FakeBook()
    book.position = LedgerPosition(next_offset=3, last_id=uuid4())

    await read_new_entries(log, book, most=100)

    assert book.ids == log.ids
    assert [batch.restarted for batch in book.batches] == [True, False, False]


async def test_two_readers_of_one_piece_write_each_message_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_reading, "WRITTEN_AT_ONCE", 3)
    log, book = FakeLog(some_ids(10)), FakeBook()
    insert = book.insert_ledger_entries

    async def insert_after_the_first_a_rival(batch: LedgerBatch) -> LedgerPosition:
        written = await insert(batch)
        if len(book.batches) == 1 and book.rival is None:
            book.rival = LedgerPosition(next_offset=5, last_id=log.ids[4])
        return written

    monkeypatch.setattr(book, "insert_ledger_entries", insert_after_the_first_a_rival)
    progress = await read_new_entries(log, book, most=100)

    assert book.ids == [*log.ids[:3], *log.ids[5:]]
    assert (progress.next_offset, progress.caught_up) == (10, True)


async def test_what_another_reader_wrote_is_not_written_again() -> None:
    log, book = FakeLog(some_ids(6)), FakeBook()
    book.rival = LedgerPosition(next_offset=4, last_id=log.ids[3])

    progress = await read_new_entries(log, book, most=100)

    assert book.ids == log.ids[4:]
    assert progress.next_offset == 6


async def test_read_gently_one_reader_leaves_the_stream_to_the_other() -> None:
    log, book = FakeLog(some_ids(6)), FakeBook()
    book.rival = LedgerPosition(next_offset=4, last_id=log.ids[3])

    progress = await read_new_entries(log, book, most=100, throttled=True)

    assert book.ids == []
    assert progress == Progress(4, caught_up=False, has_more=False)


async def test_what_the_stream_forgot_is_counted() -> None:
    log, book = FakeLog(some_ids(10)), FakeBook()
    book.position = LedgerPosition(next_offset=3, last_id=log.ids[2])
    log.first = 7

    await read_new_entries(log, book, most=100)

    assert book.ids == log.ids[7:]
    assert [batch.truncated for batch in book.batches] == [4]


async def test_a_stream_of_which_only_the_known_message_was_forgotten_has_no_gap() -> None:
    log, book = FakeLog(some_ids(5)), FakeBook()
    book.position = LedgerPosition(next_offset=3, last_id=log.ids[2])
    log.first = 3

    await read_new_entries(log, book, most=100)

    assert (book.ids, [batch.truncated for batch in book.batches]) == (log.ids[3:], [0])


@pytest.mark.parametrize("length", [2, 3, 9])
async def test_another_stream_of_the_same_name_is_read_from_its_beginning(length: int) -> None:
    log, book = FakeLog(some_ids(length)), FakeBook()
    book.position = LedgerPosition(next_offset=3, last_id=uuid4())

    progress = await read_new_entries(log, book, most=100)

    assert book.ids == log.ids
    assert [batch.restarted for batch in book.batches] == [True]
    assert progress.next_offset == length


async def test_a_stream_that_is_not_up_yet_changes_nothing() -> None:
    book = FakeBook(LedgerPosition(next_offset=3, last_id=uuid4()))

    progress = await read_new_entries(FakeLog(), book, most=100)

    assert (book.batches, progress.next_offset, progress.caught_up) == ([], 3, False)
    assert progress.is_empty


async def test_a_stream_that_comes_up_between_two_looks_is_the_same() -> None:
    ids = some_ids(3)
    log, book = FakeLog([]), FakeBook(LedgerPosition(next_offset=3, last_id=ids[2]))
    read = log.read

    async def read_when_up(*arguments: Any, **options: Any) -> list[Message]:
        found = await read(*arguments, **options)
        log.ids = ids
        return found

    log.read = read_when_up  # type: ignore[method-assign]
    progress = await read_new_entries(log, book, most=100)

    assert (book.batches, progress) == ([], Progress(3, caught_up=True))


async def test_a_stream_that_stays_empty_is_believed_to_be_another_one() -> None:
    log, book = FakeLog(), FakeBook(LedgerPosition(next_offset=3, last_id=uuid4()))

    progress = await read_new_entries(log, book, most=100, is_empty=True)
    log.ids = some_ids(2)
    on = await read_new_entries(log, book, most=100)

    assert progress == Progress(0, caught_up=True)
    assert [batch.restarted for batch in book.batches] == [True, False]
    assert (on, book.ids) == (Progress(2, caught_up=True), log.ids)


async def test_a_database_that_forgot_what_was_read_is_told_so_once(tmp_path: Path) -> None:
    """By a process that was started since; and the next reading is none after a restoration."""
    log, book = FakeLog(some_ids(9)), FakeBook()
    await read_new_entries(log, book, most=100, mark=Mark(tmp_path, "stream"))
    book.position, book.batches = LedgerPosition(next_offset=4, last_id=log.ids[3]), []
    mark = Mark(tmp_path, "stream")

    await read_new_entries(log, book, most=100, mark=mark)
    log.ids += some_ids(1)
    await read_new_entries(log, book, most=100, mark=mark)

    assert [batch.known_up_to for batch in book.batches] == [9, 0]


async def test_another_stream_that_is_shorter_is_no_restoration(tmp_path: Path) -> None:
    log, book, mark = FakeLog(some_ids(9)), FakeBook(), Mark(tmp_path, "stream")
    await read_new_entries(log, book, most=100, mark=mark)
    log.ids = some_ids(12)
    book.position, book.batches = LedgerPosition(next_offset=1, last_id=log.ids[0]), []

    await read_new_entries(log, book, most=100, mark=mark)

    assert [batch.known_up_to for batch in book.batches] == [0]


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"nextOffset": "x", "lastId": 1}'])
def test_a_mark_that_can_not_be_read_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "stream.position.json").write_text(content)

    assert Mark(tmp_path, "stream").beyond(LedgerPosition(next_offset=0)) is None


def test_a_mark_that_can_not_be_written_is_kept_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    mark, position = Mark(tmp_path / "file", "s"), LedgerPosition(next_offset=3, last_id=uuid4())

    mark.keep(position)

    assert mark.beyond(LedgerPosition(next_offset=0)) == position


async def test_canaries_are_passed_and_not_written() -> None:
    canary = new_canary_id()
    log, book = FakeLog([*some_ids(1), canary, *some_ids(1), canary]), FakeBook()

    progress = await read_new_entries(log, book, most=100)

    assert book.ids == [log.ids[0], log.ids[2]]
    assert (progress.next_offset, book.position.last_id) == (4, canary)


@pytest.mark.parametrize("takes_spans", [True, False])
async def test_spans_are_written_where_the_book_takes_them(*, takes_spans: bool) -> None:
    """An older release refuses a batch with something that it does not know."""
    log = FakeLog(some_ids(3))
    log.traceparents = {
        log.ids[0]: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        log.ids[1]: "nonsense",
    }
    book = FakeBook(LedgerPosition(next_offset=0, takes_spans=takes_spans))

    await read_new_entries(log, book, most=100)

    (batch,) = book.batches
    expected = "b7ad6b7169203331" if takes_spans else None
    assert [entry.span for entry in batch.entries] == [expected, None, None]
    assert ("span" in batch.model_dump_json(exclude_none=True)) is takes_spans


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
