import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from uuid import uuid4

import pytest

from common.amqp import confirms, connection
from common.amqp.publisher import Publisher
from common.contracts.topology import USER_REGISTRATION
from common.errors import BrokerUnavailableError, TopologyMissingError, UnroutableError
from tests.amqp import PATIENCE_SECONDS, a_registration, depth, eventually, take
from tests.backends import TestBroker

QUEUE = USER_REGISTRATION.queue


@pytest.fixture
async def publisher(empty_broker: TestBroker) -> AsyncIterator[Publisher]:
    async with Publisher(
        empty_broker.url("frontend"),
        service="frontend",
        exchanges=[USER_REGISTRATION.name],
        queues=[QUEUE],
    ) as opened:
        yield opened


@contextmanager
def hurried(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Wait less long for a broker that will not answer."""
    with monkeypatch.context() as shorter:
        shorter.setattr(confirms, "CONFIRM_SECONDS", 1.0)
        shorter.setattr("common.amqp.publisher.CHANNEL_SECONDS", 0.5)
        yield


async def test_publish_returns_when_the_broker_has_the_message(
    publisher: Publisher, empty_broker: TestBroker
) -> None:
    registration, message_id = a_registration(), uuid4()

    await publisher.publish(registration, message_id=message_id, correlation_id="c-1")

    message = await take(empty_broker.admin_url, QUEUE)
    assert message.message_id == str(message_id)
    assert message.correlation_id == "c-1"
    assert message.type == message.routing_key == "user.registration.submitted.v1"
    assert message.delivery_mode == 2
    assert message.app_id == "frontend"
    assert message.content_type == "application/json"
    assert type(registration).model_validate_json(message.body) == registration


async def test_publish_raises_when_no_queue_is_bound(
    publisher: Publisher, empty_broker: TestBroker
) -> None:
    # The stream is bound, too: with the binding of the work queue alone nothing comes back.
    exchange = f"/api/bindings/%2F/e/{USER_REGISTRATION.name}/q"
    bound = [f"{exchange}/{queue}" for queue in (QUEUE, USER_REGISTRATION.log)]
    for binding in bound:
        empty_broker.management("DELETE", f"{binding}/%23")
    try:
        with pytest.raises(UnroutableError):
            await publisher.publish(a_registration(), message_id=uuid4(), correlation_id="c")
    finally:
        for binding in bound:
            empty_broker.management("POST", binding, {"routing_key": "#"})

    await publisher.publish(a_registration(), message_id=uuid4(), correlation_id="c")
    assert await depth(empty_broker.admin_url, QUEUE) == 1


async def test_publisher_names_what_is_missing_at_the_broker(empty_broker: TestBroker) -> None:
    # As one who may see every name: nobody else is told what is not there.
    async with Publisher(
        empty_broker.admin_url, service="frontend", exchanges=["no.such.exchange"]
    ) as publisher:

        async def missing() -> bool:
            try:
                await publisher.check()
            except TopologyMissingError as error:
                return "no.such.exchange" in error.detail
            except BrokerUnavailableError:
                return False
            return False

        await eventually(missing, "naming the exchange")


async def test_publish_fails_while_the_broker_is_away_and_works_when_it_is_back(
    publisher: Publisher, empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publisher.publish(a_registration(), message_id=uuid4(), correlation_id="c")
    empty_broker.stop()
    try:
        with hurried(monkeypatch), pytest.raises(BrokerUnavailableError):
            await publisher.publish(a_registration(), message_id=uuid4(), correlation_id="c")
    finally:
        empty_broker.start()

    await eventually(lambda: _published(publisher), "publishing again")
    assert await depth(empty_broker.admin_url, QUEUE) == 2


async def test_publish_does_not_hang_on_a_frozen_broker(
    publisher: Publisher, empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publisher.publish(a_registration(), message_id=uuid4(), correlation_id="c")
    empty_broker.freeze()
    try:
        with hurried(monkeypatch):
            async with asyncio.timeout(PATIENCE_SECONDS):
                with pytest.raises(BrokerUnavailableError):
                    await publisher.publish(
                        a_registration(), message_id=uuid4(), correlation_id="c"
                    )
    finally:
        empty_broker.thaw()

    await eventually(lambda: _published(publisher), "publishing again")


async def test_publish_is_refused_without_a_ghost_while_the_broker_is_blocked(
    publisher: Publisher, empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    if empty_broker.native is None:
        pytest.skip("needs a broker that the tests may stop (USERSTREAM_TEST_BACKEND=native)")
    empty_broker.native.ctl("set_vm_memory_high_watermark", "0")
    refused = 0
    try:
        # The first publish makes the broker block the connection; it is kept and confirmed
        # later, so it may or may not be promised. Once blocked, nothing is written.
        with hurried(monkeypatch):
            for _ in range(3):
                try:
                    await publisher.publish(
                        a_registration(), message_id=uuid4(), correlation_id="c"
                    )
                except BrokerUnavailableError:
                    refused += 1

        with pytest.raises(BrokerUnavailableError, match="alarm"):
            await publisher.check()
    finally:
        empty_broker.native.ctl("set_vm_memory_high_watermark", "absolute", "512MB")

    assert refused >= 2
    await eventually(lambda: _published(publisher), "publishing again")
    await publisher.check()
    assert await depth(empty_broker.admin_url, QUEUE) <= 2


async def test_a_publisher_is_not_ready_from_a_message_that_was_not_confirmed_to_one_that_was(
    publisher: Publisher, empty_broker: TestBroker
) -> None:
    binding = f"/api/bindings/%2F/e/{USER_REGISTRATION.name}/q/"
    route = USER_REGISTRATION
    for queue in (route.queue, route.log):
        empty_broker.management("DELETE", f"{binding}{queue}/%23")
    try:
        with pytest.raises(UnroutableError):
            await publisher.publish(a_registration(), message_id=uuid4(), correlation_id="c")
        with pytest.raises(BrokerUnavailableError, match="latest message"):
            await publisher.check()
        await publisher.ask()  # the broker itself says nothing
    finally:
        for queue in (route.queue, route.log):
            empty_broker.management("POST", f"{binding}{queue}", {"routing_key": "#"})

    await eventually(lambda: _published(publisher), "publishing again")
    await publisher.check()


async def test_where_nobody_publishes_a_failure_does_not_count_for_ever(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    await eventually(lambda: _published(publisher), "publishing")
    monkeypatch.setattr("common.amqp.publisher.FAILURE_COUNTS_SECONDS", 0.0)
    publisher._failed_at = time.monotonic()

    await publisher.check()


async def test_an_id_whose_confirm_never_came_can_be_published_again(
    publisher: Publisher, empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "OVERDUE_SECONDS", 2.0)
    registration, message_id = a_registration(), uuid4()

    async def publish() -> None:
        await publisher.publish(registration, message_id=message_id, correlation_id="c")

    with hurried(monkeypatch), monkeypatch.context() as lossy:
        lossy.setattr(confirms.ConfirmTracker, "resolve", lambda *_, **__: None)
        with pytest.raises(BrokerUnavailableError, match="did not confirm"):
            await publish()
        with pytest.raises(BrokerUnavailableError):  # the first is still unconfirmed
            await publish()

    async def is_published() -> bool:
        try:
            await publish()
        except BrokerUnavailableError:
            return False
        return True

    await eventually(is_published, "publishing the same id again")
    assert await depth(empty_broker.admin_url, QUEUE) >= 2


async def test_a_queue_that_was_full_takes_messages_again_though_its_limit_was_taken_away(
    publisher: Publisher, empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "OVERDUE_SECONDS", 2.0)
    policy = "/api/policies/%2F/full"
    definition = {"max-length": 1, "overflow": "reject-publish"}
    body = {"pattern": f"^{QUEUE}$", "definition": definition, "priority": 9, "apply-to": "queues"}

    async def is_refused() -> bool:
        return not await _published(publisher)

    await eventually(lambda: _published(publisher), "publishing")
    empty_broker.management("PUT", policy, body)
    try:
        await eventually(is_refused, "refusing")
    finally:
        empty_broker.management("DELETE", policy)

    await eventually(lambda: _published(publisher), "publishing again")


async def test_many_publishes_at_once_are_all_confirmed(
    publisher: Publisher, empty_broker: TestBroker
) -> None:
    await asyncio.gather(
        *(
            publisher.publish(a_registration(), message_id=uuid4(), correlation_id="c")
            for _ in range(500)
        )
    )

    assert await depth(empty_broker.admin_url, QUEUE) == 500


async def _published(publisher: Publisher) -> bool:
    try:
        await publisher.publish(a_registration(), message_id=uuid4(), correlation_id="c")
    except BrokerUnavailableError:
        return False
    return True
