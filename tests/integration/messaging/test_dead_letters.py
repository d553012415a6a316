import asyncio
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest

from common.amqp.dead_letter_queue import DeadLetterQueue, LockedQueue
from common.contracts.topology import EMAIL_NOTIFICATIONS, ROUTES, USER_REGISTRATION
from common.errors import BrokerUnavailableError, ConflictError
from tests.amqp import depth, opened, publish, take
from tests.backends import TestBroker

DEAD = USER_REGISTRATION.dead_letter_queue


def a_queue(broker: TestBroker) -> DeadLetterQueue:
    return DeadLetterQueue(
        broker.url("queue_receiver"), USER_REGISTRATION, service="queue_receiver"
    )


async def fill(broker: TestBroker, count: int, **headers: Any) -> list[UUID]:
    """Dead letters as the dispatcher makes them, oldest first."""
    ids = [uuid4() for _ in range(count)]
    async with opened(broker.admin_url) as channel:
        exchange = await channel.get_exchange(USER_REGISTRATION.dead_letter_exchange, ensure=False)
        marks: Any = {"x-error-code": "malformed", "x-failed-attempts": 4, "x-attempt": 4} | headers
        for number, letter_id in enumerate(ids):
            message = aio_pika.Message(
                b'{"number": %d}' % number,
                delivery_mode=2,
                message_id=str(letter_id),
                headers=marks,
            )
            await exchange.publish(message, "user.registration.submitted.v1")
    return ids


def ids_of(held: LockedQueue) -> list[UUID]:
    return [message.id for message in held.messages]


async def in_queue(broker: TestBroker, count: int) -> list[UUID]:
    """The ids in the queue as the next consumer gets them; empties it."""
    return [UUID((await take(broker.admin_url, DEAD)).message_id or "") for _ in range(count)]


async def test_fifty_looks_lose_and_reorder_nothing(empty_broker: TestBroker) -> None:
    ids = await fill(empty_broker, 300)
    queue = a_queue(empty_broker)

    for _ in range(50):
        async with queue.held() as held:
            assert ids_of(held) == ids
            assert held.is_complete

    assert await depth(empty_broker.admin_url, DEAD) == 300
    assert await in_queue(empty_broker, 300) == ids


async def test_two_readers_wait_for_each_other(empty_broker: TestBroker) -> None:
    ids = await fill(empty_broker, 200)
    one, other = a_queue(empty_broker), a_queue(empty_broker)

    async def look(queue: DeadLetterQueue) -> list[UUID]:
        async with queue.held() as held:
            return ids_of(held)

    async with one.held() as held:
        waiting = asyncio.create_task(look(other))
        assert ids_of(held) == ids
        await asyncio.sleep(0.1)
        assert not waiting.done()

    assert await waiting == ids


async def test_a_reader_that_stays_is_reported(
    empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.amqp.dead_letter_queue.TURN_SECONDS", 0.2)
    await fill(empty_broker, 3)
    queue = a_queue(empty_broker)

    async with a_queue(empty_broker).held(), queue.held() as held:
        assert (held.messages, held.is_locked_by_another_reader, held.is_complete) == (
            [],
            True,
            False,
        )
        with pytest.raises(ConflictError, match="Nothing has changed"):
            async with queue.held():
                pass


async def test_what_goes_back_keeps_its_id_and_starts_anew(empty_broker: TestBroker) -> None:
    first, second, third = await fill(
        empty_broker,
        3,
        **{
            "x-first-seen": "2026-01-31T09:30:00.000+00:00",
            "x-original-routing-key": "foreign.key",
            "x-death": "not ours",
            "foreign": "value",
        },
    )

    async with a_queue(empty_broker).held() as held:
        await held.send_back(held.messages[1])
    message = await take(empty_broker.admin_url, USER_REGISTRATION.queue)

    assert message.message_id == str(second)
    assert message.body == b'{"number": 1}'
    assert message.routing_key == "foreign.key"
    assert {k: v for k, v in message.headers.items() if k != "x-delivery-count"} == {
        "x-first-seen": "2026-01-31T09:30:00.000+00:00",
        "x-attempt": 1,
    }
    assert await in_queue(empty_broker, 2) == [first, third]


async def test_what_goes_back_passes_by_whatever_else_is_bound(empty_broker: TestBroker) -> None:
    await fill(empty_broker, 1)
    async with opened(empty_broker.admin_url) as channel:
        spy = await channel.declare_queue(exclusive=True)
        await spy.bind(USER_REGISTRATION.name, "#")

        async with a_queue(empty_broker).held() as held:
            await held.send_back(held.messages[0])
        await take(empty_broker.admin_url, USER_REGISTRATION.queue)

        assert await spy.get(fail=False) is None


async def test_a_dead_letter_stays_until_its_way_back_is_confirmed(
    empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = await fill(empty_broker, 2)

    with pytest.raises(ConnectionResetError):  # noqa: PT012 - the block is what is interrupted
        async with a_queue(empty_broker).held() as held:
            # Between the confirm and the ack, as a kill would.
            monkeypatch.setattr(held, "remove", _dies)
            await held.send_back(held.messages[0])

    message = await take(empty_broker.admin_url, USER_REGISTRATION.queue)
    assert message.message_id == str(ids[0])  # in both, with one id: handlers know it again
    assert await in_queue(empty_broker, 2) == ids


def _dies(_: object) -> None:
    raise ConnectionResetError


async def test_bodies_beyond_what_is_kept_are_left_out(
    empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.amqp.dead_letter_queue.MAX_KEPT_BYTES", 30)
    ids = await fill(empty_broker, 5)

    async with a_queue(empty_broker).held() as held:
        assert ids_of(held) == ids
        assert [message.has_body for message in held.messages] == [True, True, False, False, False]
        assert {message.size for message in held.messages} == {13}


async def test_more_than_is_read_at_once_is_said(
    empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.amqp.dead_letter_queue.MAX_MESSAGES", 4)
    ids = await fill(empty_broker, 6)

    async with a_queue(empty_broker).held() as held:
        assert (ids_of(held), held.ready, held.is_complete) == (ids[:4], 6, False)

    assert await in_queue(empty_broker, 6) == ids


async def test_what_is_looked_for_ends_the_reading(empty_broker: TestBroker) -> None:
    ids = await fill(empty_broker, 30)

    async with a_queue(empty_broker).held(
        lambda message: True if message.id == ids[3] else None,
        until=lambda message: message.id == ids[3],
        limit=10,
    ) as held:
        assert (ids_of(held), held.read_count, held.messages[0].has_body) == ([ids[3]], 4, True)
    async with a_queue(empty_broker).held(lambda _: None, limit=10) as held:
        assert (ids_of(held), held.read_count, held.is_complete) == ([], 10, False)

    assert await in_queue(empty_broker, 30) == ids


async def test_a_dead_letter_of_the_brokers_own_says_why(empty_broker: TestBroker) -> None:
    entry = {"reason": "delivery_limit", "queue": "user.registration", "count": 1}
    await publish(
        empty_broker.admin_url,
        USER_REGISTRATION.dead_letter_exchange,
        b"\xff\x00",
        headers={"x-death": [entry]},
    )

    async with a_queue(empty_broker).held() as held:
        [message] = held.messages
        assert (message.code, message.detail, message.failed_service) == ("delivery_limit", "", "")


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
async def test_the_receiver_may_read_and_send_back_on_every_route(
    empty_broker: TestBroker, route: Any
) -> None:
    await publish(empty_broker.admin_url, route.dead_letter_exchange, b"{}", message_id="a")
    queue = DeadLetterQueue(empty_broker.url("queue_receiver"), route, service="queue_receiver")

    async with queue.held() as held:
        await held.send_back(held.messages[0])

    assert (await take(empty_broker.admin_url, route.queue)).body == b"{}"
    assert await queue.count() == 0


async def test_who_may_not_read_changes_nothing(empty_broker: TestBroker) -> None:
    await fill(empty_broker, 1)
    queue = DeadLetterQueue(empty_broker.url("sender"), USER_REGISTRATION, service="sender")

    with pytest.raises(BrokerUnavailableError, match="Nothing has changed"):
        async with queue.held():
            pass

    assert await depth(empty_broker.admin_url, DEAD) == 1
    assert EMAIL_NOTIFICATIONS in ROUTES
