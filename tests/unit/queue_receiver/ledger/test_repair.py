from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID, uuid4

import pytest

from common.amqp.message import Delivery
from common.amqp.stream import Start
from common.contracts.ledger import MailChoice, MissingRegistration
from common.errors import UnroutableError
from queue_receiver.ledger import repair as ledger_repair
from queue_receiver.ledger.reader import Item
from queue_receiver.ledger.repair import Repairs
from tests.fakes.publisher import FakePublisher


class FakeStream:
    """A stream in memory, of which the oldest may be forgotten."""

    def __init__(self, ids: list[UUID], *, first: int = 0) -> None:
        self.ids = ids
        self.first = first
        self.looked_at = 0

    async def read(
        self,
        _stream: str,
        start: Start,
        take: Callable[[int, Delivery], Item | None],
        *,
        limit: int,
        throttled: bool = False,
    ) -> list[Item]:
        assert not throttled
        assert isinstance(start, int)
        begin = max(start, self.first)
        found = []
        for offset, key in list(enumerate(self.ids))[begin : begin + limit]:
            self.looked_at += 1
            delivery = Delivery(
                body=str(offset).encode(),
                routing_key="user.registration.submitted.v1",
                message_id=str(key),
                headers={"x-death": "no", "x-stream-offset": offset},
            )
            found.append(take(offset, delivery))
        return [one for one in found if one is not None]


def lost(ids: list[UUID], *offsets: int) -> list[MissingRegistration]:
    return [
        MissingRegistration(
            registration_id=ids[offset], accepted_at=datetime.now(UTC), stream_offset=offset
        )
        for offset in offsets
    ]


async def test_the_lost_ones_alone_are_sent_back_as_they_were() -> None:
    ids = [uuid4() for _ in range(10)]
    publisher = FakePublisher()

    done = await Repairs(stream=FakeStream(ids), publisher=publisher).repair(lost(ids, 3, 7))

    assert (done.lost, done.republished, done.not_in_stream) == (2, 2, [])
    assert {message.id for message in publisher.sent} == {ids[3], ids[7]}
    message = publisher.sent[0]
    assert (message.exchange, message.body) == ("user.registration.return", b"3")
    assert message.headers["x-attempt"] == 1
    assert not message.headers.keys() & {"x-death", "x-stream-offset"}


@pytest.mark.parametrize(("mail", "unmailed"), [("auto", {2}), ("all", set()), ("none", {1, 2})])
async def test_who_was_known_before_a_restoration_is_brought_back_without_a_mail(
    mail: str, unmailed: set[int]
) -> None:
    ids = [uuid4() for _ in range(3)]
    new, known = lost(ids, 1, 2)
    known = known.model_copy(update={"was_known": True})
    publisher = FakePublisher()

    done = await Repairs(stream=FakeStream(ids), publisher=publisher).repair(
        [new, known], MailChoice(mail)
    )

    assert (done.republished, done.without_mail) == (2, len(unmailed))
    marked = {
        message.id for message in publisher.sent if message.headers.get("x-without-mail") is True
    }
    assert marked == {ids[offset] for offset in unmailed}


async def test_nothing_is_read_where_nothing_is_lost() -> None:
    stream = FakeStream([uuid4()])

    done = await Repairs(stream=stream, publisher=FakePublisher()).repair([])

    assert (done.lost, done.republished, stream.looked_at) == (0, 0, 0)


async def test_far_apart_ones_are_found_without_reading_all_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ledger_repair, "CHUNK", 5)
    ids = [uuid4() for _ in range(1000)]
    stream, publisher = FakeStream(ids), FakePublisher()

    await Repairs(stream=stream, publisher=publisher).repair(lost(ids, 10, 990))

    assert {message.id for message in publisher.sent} == {ids[10], ids[990]}
    assert stream.looked_at == 10


async def test_what_the_stream_has_forgotten_is_named() -> None:
    ids = [uuid4() for _ in range(10)]
    publisher = FakePublisher()

    done = await Repairs(stream=FakeStream(ids, first=5), publisher=publisher).repair(
        lost(ids, 1, 8)
    )

    assert ({message.id for message in publisher.sent}, done.not_in_stream) == ({ids[8]}, [ids[1]])


async def test_an_offset_that_another_message_has_now_brings_back_nobody_else() -> None:
    ids = [uuid4() for _ in range(3)]
    before = [uuid4() for _ in range(3)]
    publisher = FakePublisher()

    done = await Repairs(stream=FakeStream(ids), publisher=publisher).repair(lost(before, 0, 1, 2))

    assert (publisher.sent, done.not_in_stream) == ([], before)


async def test_an_id_that_was_published_twice_is_sent_back_once() -> None:
    key = uuid4()
    publisher = FakePublisher()

    done = await Repairs(stream=FakeStream([key, key]), publisher=publisher).repair(
        lost([key, key], 0)
    )

    assert (len(publisher.sent), done.republished) == (1, 1)


async def test_a_way_back_that_is_missing_is_told_and_not_swallowed() -> None:
    ids = [uuid4()]
    publisher = FakePublisher()
    publisher.error = UnroutableError()

    with pytest.raises(UnroutableError):
        await Repairs(stream=FakeStream(ids), publisher=publisher).repair(lost(ids, 0))
