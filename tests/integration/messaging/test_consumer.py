import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest
import structlog
from aiormq.channel import Channel
from pamqp.commands import Basic
from prometheus_client import REGISTRY

from common.amqp.message import DEFERRALS, PREVIOUS_DELIVERIES, Delivery, Envelope
from common.amqp.publisher import Publisher
from common.contracts.registrations import RegistrationSubmitted
from common.contracts.topology import BROKER_USERS, USER_REGISTRATION, WORK_DELIVERY_LIMIT
from common.errors import (
    DatabaseServiceUnavailableError,
    InProgressError,
    PermanentError,
    SettingError,
    TopologyMissingError,
    UnavailableError,
)
from common.messaging import quarantine
from common.messaging.consumer import LAST_TRIES, Consumer
from common.messaging.dispatcher import Dispatcher, Outcome
from common.messaging.pause import Ask
from common.messaging.quarantine import QUARANTINE_AFTER
from tests.amqp import a_registration, depth, eventually, publish, publish_altered, take
from tests.backends import TestBroker

QUEUE = USER_REGISTRATION.queue
DEAD = USER_REGISTRATION.dead_letter_queue

Registration = Envelope[RegistrationSubmitted]
Properties = Basic.Properties


class Recorder:
    """A handler that remembers what it was given and does as it is told."""

    def __init__(self) -> None:
        self.seen: list[Registration] = []
        self.error: Exception | None = None
        self.gate: asyncio.Event | None = None
        self.unlucky: set[UUID] = set()
        """Whose messages meet ``error``; everybody's if there is none."""
        self.done: list[Registration] = []

    async def __call__(self, envelope: Registration) -> None:
        self.seen.append(envelope)
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None and (not self.unlucky or envelope.id in self.unlucky):
            raise self.error
        self.done.append(envelope)

    @property
    def ids(self) -> list[UUID]:
        return [envelope.id for envelope in self.seen]


@asynccontextmanager
async def a_consumer(
    broker: TestBroker,
    handler: Callable[[Any], Awaitable[None]],
    *,
    prefetch: int = 10,
    markers: Path | None = None,
    ask: Ask | None = None,
) -> AsyncIterator[Consumer]:
    url = broker.url("queue_receiver")
    async with (
        Publisher(
            url, service="queue_receiver", exchanges=BROKER_USERS["queue_receiver"].exchanges
        ) as publisher,
        Consumer(
            url,
            {RegistrationSubmitted: handler},
            service="queue_receiver",
            publisher=publisher,
            prefetch=prefetch,
            retry_delays=[timedelta(milliseconds=50), timedelta(milliseconds=100)],
            markers=markers,
            ask=ask,
        ) as consumer,
    ):
        yield consumer


async def submit(broker: TestBroker, **properties: Any) -> UUID:
    message_id = uuid4()
    body = a_registration().model_dump_json(by_alias=True).encode()
    properties = {"message_id": str(message_id)} | properties
    await publish(broker.admin_url, USER_REGISTRATION.name, body, **properties)
    return message_id


async def test_a_handled_message_is_gone(empty_broker: TestBroker) -> None:
    handler = Recorder()

    async with a_consumer(empty_broker, handler):
        message_id = await submit(empty_broker, correlation_id="c-7")
        await eventually(lambda: handler.seen, "handling")

    assert handler.ids == [message_id]
    assert handler.seen[0].correlation_id == "c-7"
    assert await depth(empty_broker.admin_url, QUEUE) == 0
    assert await depth(empty_broker.admin_url, DEAD) == 0


MALFORMED: dict[str, tuple[bytes, dict[str, Any], str]] = {
    "nothing": (b"", {}, "malformed"),
    "truncated": (b'{"name": "Ada', {}, "malformed"),
    "not an object": (b"[1, 2]", {}, "malformed"),
    "binary": (bytes(range(256)), {}, "malformed"),
    "nested": (b"[" * 60_000, {}, "malformed"),
    "a name twice": (
        b'{"name":"A","name":"B","surname":"C","email":"a@example.org"}',
        {},
        "malformed",
    ),
    "NUL": (b'{"name":"A\\u0000","surname":"C","email":"a@example.org"}', {}, "malformed"),
    "half a surrogate": (
        b'{"name":"\\ud800","surname":"C","email":"a@example.org"}',
        {},
        "malformed",
    ),
    "wrong types": (b'{"name":1,"surname":null,"email":[]}', {}, "malformed"),
    "a field is missing": (b'{"name":"Ada"}', {}, "malformed"),
    "not an address": (b'{"name":"A","surname":"B","email":"nobody"}', {}, "malformed"),
    "compressed": (b"\x1f\x8b", {"content_encoding": "gzip"}, "malformed"),
    "too large": (b'"' + b"x" * 65_536 + b'"', {}, "too_large"),
    "larger than a frame": (b'"' + b"x" * 200_000 + b'"', {}, "too_large"),
    "a later version": (b"{}", {"type": "user.registration.submitted.v9"}, "unknown_version"),
    "another contract": (b"{}", {"type": "report.requested.v1"}, "unknown_version"),
    "headers of odd types": (
        b"{",
        {"headers": {"x-attempt": "seven", "x-death": "gone", "traceparent": 5, "x-first-seen": 1}},
        "malformed",
    ),
    "a header that fills a frame": (
        b"{",
        {"headers": {"x-first-seen": "x" * 130_000}},
        "malformed",
    ),
    "ids of odd form": (b"{", {"message_id": "\n", "correlation_id": "\x00" * 200}, "malformed"),
}


@pytest.mark.parametrize("kind", MALFORMED)
async def test_what_is_no_registration_is_dead_lettered_with_its_reason(
    kind: str, empty_broker: TestBroker
) -> None:
    body, properties, code = MALFORMED[kind]
    handler = Recorder()

    async with a_consumer(empty_broker, handler):
        await publish(empty_broker.admin_url, USER_REGISTRATION.name, body, **properties)
        dead = await take(empty_broker.admin_url, DEAD)
        good = await submit(empty_broker)
        await eventually(lambda: handler.ids == [good], "handling the next message")

    assert dead.body == body
    assert dead.headers["x-error-code"] == code
    assert dead.headers["x-failed-service"] == "queue_receiver"
    assert dead.headers["x-failed-attempts"] == 1
    assert dead.headers["x-original-routing-key"] == "anything"
    assert dead.headers["x-first-seen"]
    assert "x-death" not in dead.headers
    assert "nobody" not in str(dead.headers["x-error-detail"])


UNREADABLE_PROPERTIES = {
    "an id that is not UTF-8": (Properties(message_id="AAAA"), b"\xff\xfe\xff\xfe"),
    "a correlation id that is not UTF-8": (Properties(correlation_id="AAAA"), b"\xff\x00\n\xc3"),
    "an encoding that is not UTF-8": (Properties(content_encoding="AAAA"), b"\xff\xfe\xff\xfe"),
    "a type that is not UTF-8": (Properties(message_type="AAAA"), b"\xff\xfe\xff\xfe"),
    "a header name that is not UTF-8": (Properties(headers={"AAAA": 1}), b"\xff\xfe\xff\xfe"),
    "a routing key that is not UTF-8": (Properties(), b"\xff\xfe\xff\xfe"),
    "a date beyond all calendars": (
        Properties(timestamp=datetime.fromtimestamp(0x41414141, UTC)),
        b"\xff\xff\xff\xff",
    ),
}


@pytest.mark.parametrize("kind", UNREADABLE_PROPERTIES)
async def test_properties_that_no_client_can_read_stop_no_other_message(
    kind: str, empty_broker: TestBroker
) -> None:
    properties, replacement = UNREADABLE_PROPERTIES[kind]
    handler = Recorder()

    async with a_consumer(empty_broker, handler):
        await publish_altered(
            empty_broker.admin_url, USER_REGISTRATION.name, properties, b"AAAA", replacement
        )
        dead = await take(empty_broker.admin_url, DEAD)
        good = await submit(empty_broker)
        await eventually(lambda: handler.ids == [good], "handling the next message")

    assert dead.body == b"{}"
    assert dead.headers["x-error-code"] in ("malformed", "unknown_version")


async def test_a_foreign_id_gives_the_same_work_the_same_identity(
    empty_broker: TestBroker,
) -> None:
    handler = Recorder()
    body = a_registration().model_dump_json().encode()

    async with a_consumer(empty_broker, handler):
        for _ in range(2):
            await publish(
                empty_broker.admin_url, USER_REGISTRATION.name, body, message_id="order-7"
            )
        await eventually(lambda: len(handler.seen) == 2, "handling the named ones")
        for _ in range(2):  # as the management UI does; aiormq would add an id
            empty_broker.management(
                "POST",
                f"/api/exchanges/%2F/{USER_REGISTRATION.name}/publish",
                {
                    "properties": {},
                    "routing_key": "anything",
                    "payload": body.decode(),
                    "payload_encoding": "string",
                },
            )
        await eventually(lambda: len(handler.seen) == 4, "handling all")

    named, unnamed = set(handler.ids[:2]), set(handler.ids[2:])
    assert len(named) == len(unnamed) == 1
    assert named != unnamed


async def test_a_failing_message_waits_at_each_step_and_is_then_dead_lettered(
    empty_broker: TestBroker,
) -> None:
    handler = Recorder()
    handler.error = RuntimeError("no luck")

    async with a_consumer(empty_broker, handler):
        message_id = await submit(
            empty_broker, headers={"x-death": [{"queue": "a"}]}, correlation_id="c-9"
        )
        dead = await take(empty_broker.admin_url, DEAD)

    assert handler.ids == [message_id] * 3
    assert [envelope.attempt for envelope in handler.seen] == [1, 2, 3]
    assert [envelope.last_attempt for envelope in handler.seen] == [False, False, True]
    assert dead.message_id == str(message_id)
    assert dead.correlation_id == "c-9"
    assert dead.headers["x-error-code"] == "unexpected_error"
    assert dead.headers["x-failed-attempts"] == 3


async def test_a_message_that_can_never_work_is_dead_lettered_at_once(
    empty_broker: TestBroker,
) -> None:
    handler = Recorder()
    handler.error = PermanentError("no")

    async with a_consumer(empty_broker, handler):
        await submit(empty_broker)
        dead = await take(empty_broker.admin_url, DEAD)

    assert len(handler.seen) == 1
    assert dead.headers["x-error-code"] == "rejected"
    assert dead.headers["x-error-detail"] == "no"


async def test_an_outage_pauses_the_consumer_and_burns_no_attempt(
    empty_broker: TestBroker,
) -> None:
    handler = Recorder()
    handler.error = DatabaseServiceUnavailableError("gone")

    async with a_consumer(empty_broker, handler, prefetch=3) as consumer:
        ids = {await submit(empty_broker) for _ in range(8)}
        await eventually(lambda: handler.seen, "the first failure")
        with pytest.raises(UnavailableError):
            await eventually(consumer.check, "pausing")
        held = set(handler.ids)

        handler.error = None
        handler.seen.clear()
        await eventually(lambda: set(handler.ids) >= ids, "working off everything")
        await consumer.check()

    assert held
    assert {envelope.attempt for envelope in handler.seen} == {1}
    assert await depth(empty_broker.admin_url, DEAD) == 0
    assert await depth(empty_broker.admin_url, QUEUE) == 0


async def test_a_pause_is_said_in_readiness_metrics_and_log(empty_broker: TestBroker) -> None:
    handler = Recorder()
    handler.error = DatabaseServiceUnavailableError("It is gone.")

    with structlog.testing.capture_logs() as logged:
        async with a_consumer(empty_broker, handler) as consumer:
            await submit(empty_broker)
            await eventually(lambda: _paused() == 1, "pausing")
            with pytest.raises(DatabaseServiceUnavailableError, match=r"Paused.* It is gone"):
                await consumer.check()
            handler.error = None
            await eventually(lambda: _paused() == 0, "going on")
            await eventually(lambda: _healthy(consumer), "being ready again")

    events = [line["event"] for line in logged if line["event"].startswith("consumer.")]
    assert events.count("consumer.paused") == 1
    assert events.count("consumer.resumed") == 1


def _paused() -> float | None:
    return REGISTRY.get_sample_value("userstream_consumer_paused", {"queue": QUEUE})


async def test_only_one_delivery_probes_during_an_outage(empty_broker: TestBroker) -> None:
    handler = Recorder()
    handler.error = DatabaseServiceUnavailableError("gone")
    handler.gate = asyncio.Event()

    async with a_consumer(empty_broker, handler, prefetch=5):
        for _ in range(5):
            await submit(empty_broker)
        await eventually(lambda: len(handler.seen) == 5, "taking all five")
        handler.gate.set()
        await eventually(lambda: len(handler.seen) == 6, "the first probe")
        handler.gate.clear()
        await eventually(lambda: len(handler.seen) == 7, "the second probe")
        await asyncio.sleep(1.5)  # longer than the first pause: nobody else may come along
        probes = len(handler.seen)
        handler.error = None
        handler.gate.set()
        await eventually(lambda: _empty(empty_broker), "working off everything")

    assert probes == 7


async def is_well() -> None:
    """A service that says so, whatever it does."""


async def test_a_message_that_fails_by_itself_stops_no_other(empty_broker: TestBroker) -> None:
    handler = Recorder()
    bad = uuid4()
    handler.unlucky, handler.error = {bad}, DatabaseServiceUnavailableError("not this one")

    with structlog.testing.capture_logs() as logged:
        async with a_consumer(empty_broker, handler, ask=is_well):
            await submit(empty_broker, message_id=str(bad))
            await eventually(lambda: bad in handler.ids, "meeting the bad one")
            good = {await submit(empty_broker) for _ in range(20)}
            await eventually(lambda: {one.id for one in handler.done} == good, "the good ones")
            dead = await take(empty_broker.admin_url, DEAD)

    assert dead.message_id == str(bad)
    assert dead.headers["x-error-code"] == "database_service_unavailable"
    assert dead.headers["x-failed-attempts"] == 3
    events = [line["event"] for line in logged]
    assert "consumer.paused" not in events
    # Its last try is not the last word: a link that breaks now and then looks alike.
    assert events.count("delivery.deferred") == LAST_TRIES - 1


@pytest.mark.parametrize("prefetch", [1, 10])
async def test_many_that_fail_by_themselves_do_not_stop_the_others_for_long(
    empty_broker: TestBroker, prefetch: int
) -> None:
    handler = Recorder()
    bad = [uuid4() for _ in range(15)]
    handler.unlucky, handler.error = set(bad), DatabaseServiceUnavailableError("not these")
    for message_id in bad:  # all of them before the first good one
        await submit(empty_broker, message_id=str(message_id))
    good = {await submit(empty_broker) for _ in range(15)}

    async with a_consumer(empty_broker, handler, prefetch=prefetch, ask=is_well) as consumer:
        await eventually(lambda: {one.id for one in handler.done} == good, "the good ones")
        for number in range(40):  # and a good one now and then, so that the bad ones are found out
            if await depth(empty_broker.admin_url, DEAD) == len(bad):
                break
            known = await submit(empty_broker)
            await eventually(lambda: known in {one.id for one in handler.done}, f"good {number}")  # noqa: B023
            await asyncio.sleep(0.2)
        dead = {(await take(empty_broker.admin_url, DEAD)).message_id for _ in bad}
        await submit(empty_broker)
        await eventually(lambda: _healthy(consumer), "being ready")

    assert dead == {str(message_id) for message_id in bad}


async def test_an_outage_that_only_messages_show_burns_no_attempt(
    empty_broker: TestBroker,
) -> None:
    handler = Recorder()
    handler.error = DatabaseServiceUnavailableError("gone")

    async with a_consumer(empty_broker, handler, prefetch=3, ask=is_well) as consumer:
        ids = {await submit(empty_broker) for _ in range(8)}
        with pytest.raises(UnavailableError):
            await eventually(consumer.check, "pausing")
        await eventually(lambda: set(handler.ids) >= ids, "each of them probing")
        handler.error = None
        await eventually(lambda: {one.id for one in handler.done} >= ids, "working off everything")
        await eventually(lambda: _healthy(consumer), "being ready again")

    assert {envelope.attempt for envelope in handler.seen} == {1}
    assert await depth(empty_broker.admin_url, DEAD) == 0


async def test_a_single_message_in_an_outage_that_nobody_admits_is_not_dead_lettered(
    empty_broker: TestBroker,
) -> None:
    """As with PostgreSQL's disk full: it can be asked, and stores nothing."""
    handler = Recorder()
    handler.error = DatabaseServiceUnavailableError("gone")

    async with a_consumer(empty_broker, handler, ask=is_well):
        one = await submit(empty_broker)
        await eventually(lambda: len(handler.seen) >= 3 + 2 * LAST_TRIES, "trying again and again")
        assert await depth(empty_broker.admin_url, DEAD) == 0
        handler.error = None
        await eventually(lambda: [each.id for each in handler.done] == [one], "handling it")


async def test_a_single_message_in_an_outage_that_is_admitted_burns_no_attempt(
    empty_broker: TestBroker,
) -> None:
    handler = Recorder()
    handler.error = DatabaseServiceUnavailableError("gone")

    async def says_so() -> None:
        if handler.error:
            raise DatabaseServiceUnavailableError("I am away.")

    async with a_consumer(empty_broker, handler, ask=says_so) as consumer:
        one = await submit(empty_broker)
        await eventually(lambda: len(handler.seen) >= 3, "probing")
        with pytest.raises(UnavailableError, match="I am away"):
            await consumer.check()
        handler.error = None
        await eventually(lambda: [each.id for each in handler.done] == [one], "handling it")
        await eventually(lambda: _healthy(consumer), "being ready again")

    assert {envelope.attempt for envelope in handler.seen} == {1}


async def test_what_cannot_even_be_dead_lettered_stops_no_other(
    empty_broker: TestBroker,
) -> None:
    """The dead letters are full, and reject what would overflow them."""
    handler = Recorder()
    policy = "/api/policies/%2F/no-more-dead-letters"
    empty_broker.management(
        "PUT",
        policy,
        {
            "pattern": f"^{DEAD.replace('.', '[.]')}$",
            "definition": {"max-length": 0, "overflow": "reject-publish"},
            "priority": 100,
            "apply-to": "queues",
        },
    )
    try:
        await eventually(lambda: _rejects(empty_broker), "the dead letters being full")
        async with a_consumer(empty_broker, handler, prefetch=2, ask=is_well):
            for _ in range(6):
                await publish(empty_broker.admin_url, USER_REGISTRATION.name, b"{")
            good = {await submit(empty_broker) for _ in range(10)}
            await eventually(lambda: set(handler.ids) == good, "the good ones")
    finally:
        empty_broker.management("DELETE", policy)


async def _rejects(broker: TestBroker) -> bool:
    queue = broker.management("GET", f"/api/queues/%2F/{DEAD}")
    return bool(queue.get("effective_policy_definition", {}).get("max-length") == 0)


async def test_consuming_goes_on_after_the_broker_was_killed(empty_broker: TestBroker) -> None:
    handler = Recorder()

    async with a_consumer(empty_broker, handler) as consumer:
        first = await submit(empty_broker)
        await eventually(lambda: first in handler.ids, "handling the first")
        empty_broker.kill()
        empty_broker.start()
        second = await eventually(lambda: _submitted(empty_broker), "submitting the second")
        await eventually(lambda: second in handler.ids, "handling the second")
        await eventually(lambda: _healthy(consumer), "being ready again")


async def test_consuming_goes_on_after_its_queue_was_deleted_and_made_again(
    empty_broker: TestBroker,
) -> None:
    handler = Recorder()
    definitions = empty_broker.management("GET", "/api/definitions")

    async with a_consumer(empty_broker, handler) as consumer:
        await eventually(lambda: _healthy(consumer), "being ready")
        empty_broker.management("DELETE", f"/api/queues/%2F/{QUEUE}")
        try:

            async def names_it() -> bool:
                try:
                    await consumer.check()
                except TopologyMissingError as error:
                    return QUEUE in error.detail
                except UnavailableError:
                    return False
                return False

            await eventually(names_it, "naming the missing queue")
        finally:
            empty_broker.management("POST", "/api/definitions", definitions)
        message_id = await submit(empty_broker)
        await eventually(lambda: message_id in handler.ids, "handling after the repair")


async def test_draining_finishes_what_runs_and_leaves_the_rest(empty_broker: TestBroker) -> None:
    handler = Recorder()
    handler.gate = asyncio.Event()

    async with a_consumer(empty_broker, handler, prefetch=2):
        for _ in range(5):
            await submit(empty_broker)
        # The first one, which raised the prefetch, and as many as that.
        await eventually(lambda: len(handler.seen) == 3, "three in flight")
        asyncio.get_running_loop().call_later(0.3, handler.gate.set)

    assert len(handler.seen) == 3
    assert await depth(empty_broker.admin_url, QUEUE) == 2


async def test_a_queue_that_is_made_again_at_once_is_consumed(
    empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ 3.10 then counts the old consumer and gives it nothing."""
    monkeypatch.setattr("common.messaging.subscription.WATCH_INTERVAL", timedelta(seconds=0.5))
    handler = Recorder()
    definitions = empty_broker.management("GET", "/api/definitions")

    async with a_consumer(empty_broker, handler, prefetch=5) as consumer:
        await eventually(lambda: _healthy(consumer), "being ready")
        empty_broker.management("DELETE", f"/api/queues/%2F/{QUEUE}")
        empty_broker.management("POST", "/api/definitions", definitions)
        ids = {await submit(empty_broker) for _ in range(20)}
        await eventually(lambda: set(handler.ids) >= ids, "handling all twenty")


async def test_running_work_is_finished_when_its_channel_is_lost(
    empty_broker: TestBroker,
) -> None:
    finished: list[UUID] = []
    running, go_on = asyncio.Event(), asyncio.Event()

    async def handler(envelope: Registration) -> None:
        running.set()
        await go_on.wait()
        finished.append(envelope.id)

    async with a_consumer(empty_broker, handler) as consumer:
        message_id = await submit(empty_broker)
        await running.wait()
        await _cut_connections(empty_broker)
        go_on.set()
        await eventually(lambda: finished.count(message_id) == 2, "finishing it, and again")
        await eventually(lambda: _healthy(consumer), "being ready again")

    assert await depth(empty_broker.admin_url, QUEUE) == 0


async def test_lost_channels_quarantine_and_dead_letter_nothing(
    empty_broker: TestBroker, tmp_path: Path
) -> None:
    handler = Recorder()
    handler.gate = asyncio.Event()
    before = _quarantined()

    async with a_consumer(empty_broker, handler, prefetch=5, markers=tmp_path) as consumer:
        ids = [await submit(empty_broker) for _ in range(4)]
        given = 0
        for _ in range(8):  # more often than a message may kill
            await eventually(lambda n=given: len(handler.seen) > n, "being given again")
            given = len(handler.seen)
            consumer._subscription.reopen_channel()
            handler.gate.set()  # a quarantined message waits for the end of what was begun before
            handler.gate.clear()
        handler.gate.set()
        await eventually(lambda: set(handler.ids) == set(ids), "handling all")
        await eventually(lambda: _empty(empty_broker), "acknowledging all")
        await eventually(lambda: _healthy(consumer), "being ready")

    assert _quarantined() > before
    assert await depth(empty_broker.admin_url, DEAD) == 0
    assert list(tmp_path.glob(f"{QUEUE}/*")) == []  # noqa: ASYNC240 - nothing runs any more


class Leased(Recorder):
    """Raises ``InProgressError`` for messages that another has; records what lies on disk."""

    def __init__(self, markers: Path) -> None:
        super().__init__()
        self.folder = markers / QUEUE
        self.leased: set[UUID] = set()
        self.asked: list[UUID] = []
        self.markers: dict[UUID, list[str]] = {}

    async def __call__(self, envelope: Registration) -> None:
        if envelope.id in self.leased:
            self.asked.append(envelope.id)
            raise InProgressError(again_after=timedelta(milliseconds=100))
        self.markers[envelope.id] = [path.name.partition(".")[0] for path in self.folder.glob("*")]
        await super().__call__(envelope)


async def test_a_quarantined_message_with_a_lease_elsewhere_delays_no_other(
    empty_broker: TestBroker, tmp_path: Path
) -> None:
    handler = Leased(tmp_path)
    headers = {"headers": {PREVIOUS_DELIVERIES: QUARANTINE_AFTER}}
    waiting = await submit(empty_broker, **headers)
    handler.leased.add(waiting)

    async with a_consumer(empty_broker, handler, markers=tmp_path):
        await eventually(lambda: waiting in handler.asked, "meeting the lease")
        others = [await submit(empty_broker, **headers), await submit(empty_broker)]
        await eventually(lambda: set(handler.ids) == set(others), "handling the others")
        given = len(handler.asked)
        await eventually(lambda: len(handler.asked) > given, "asking again")
        handler.leased.clear()
        await eventually(lambda: waiting in handler.ids, "handling it in the end")
        await eventually(lambda: _empty(empty_broker), "acknowledging all")

    assert handler.markers[waiting] == [str(waiting)]
    assert handler.markers[others[0]] == [str(others[0])]
    assert str(others[1]) not in handler.markers[others[1]]
    assert handler.ids.count(waiting) == 1
    assert await depth(empty_broker.admin_url, DEAD) == 0


async def test_a_quarantined_message_does_not_wait_at_the_head_of_its_queue_for_slow_ones(
    empty_broker: TestBroker, tmp_path: Path
) -> None:
    handler = Recorder()
    handler.gate = asyncio.Event()

    async with a_consumer(empty_broker, handler, markers=tmp_path) as consumer:
        slow = await submit(empty_broker)
        await eventually(lambda: slow in handler.ids, "beginning the slow one")
        quarantined = await submit(empty_broker, headers={PREVIOUS_DELIVERIES: QUARANTINE_AFTER})
        consumer._subscription.reopen_channel()
        ordinary = await submit(empty_broker)
        await eventually(lambda: ordinary in handler.ids, "beginning the ordinary one")
        begun_early = quarantined in handler.ids
        handler.gate.set()
        await eventually(
            lambda: quarantined in handler.ids, "handling the quarantined one in the end"
        )
        await eventually(lambda: _empty(empty_broker), "acknowledging all")

    assert not begun_early


async def test_a_quarantined_message_among_others_is_handled_alone_on_the_channel_it_came_by(
    empty_broker: TestBroker, tmp_path: Path
) -> None:
    handler = Leased(tmp_path)

    async with a_consumer(empty_broker, handler, markers=tmp_path) as consumer:
        first = await submit(empty_broker)
        await eventually(lambda: first in handler.ids, "raising the prefetch")
        channel = consumer._state.channel
        handler.gate = asyncio.Event()
        quarantined = await submit(empty_broker, headers={PREVIOUS_DELIVERIES: QUARANTINE_AFTER})
        await eventually(lambda: quarantined in handler.ids, "beginning the quarantined one")
        others = [await submit(empty_broker) for _ in range(6)]
        others.insert(
            3, await submit(empty_broker, headers={PREVIOUS_DELIVERIES: QUARANTINE_AFTER})
        )
        await eventually(lambda: consumer._state.taken == 8, "having the others behind it")
        begun_beside_it = handler.ids[2:]
        handler.gate.set()
        await eventually(lambda: len(handler.ids) == 9, "handling all")
        await eventually(lambda: _empty(empty_broker), "acknowledging all")
        same = consumer._state.channel is channel

    assert begun_beside_it == []
    assert same
    assert sorted(handler.ids) == sorted([first, quarantined, *others])
    for each in (quarantined, others[3]):
        assert handler.markers[each] == [str(each)]


async def test_quarantined_messages_wait_for_the_same_slow_one_together(
    empty_broker: TestBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "EXCLUSIVE_WAIT_SECONDS", 3.0)
    handler = Recorder()
    handler.gate = asyncio.Event()
    before = _deferred()

    async with a_consumer(empty_broker, handler, markers=tmp_path):
        slow = await submit(empty_broker)
        await eventually(lambda: slow in handler.ids, "beginning the slow one")
        # Six seconds of exclusive_wait each, of which a busy machine needs a part for other things.
        headers = {PREVIOUS_DELIVERIES: QUARANTINE_AFTER, DEFERRALS: 1}
        waiting = [await submit(empty_broker, headers=headers) for _ in range(8)]
        begun = time.monotonic()
        await eventually(lambda: _deferred() >= before + 8, "deferring all")
        together = time.monotonic() - begun
        handler.gate.set()
        await eventually(lambda: set(handler.ids) >= set(waiting), "handling all in the end")
        await eventually(lambda: _empty(empty_broker), "acknowledging all")

    assert together < 8 * 6 / 2  # one after the other it would be twice as long
    assert await depth(empty_broker.admin_url, DEAD) == 0


async def test_nothing_waits_behind_a_quarantined_message_whose_channel_is_gone(
    empty_broker: TestBroker, tmp_path: Path
) -> None:
    handler = Recorder()
    handler.gate = asyncio.Event()
    # Two minutes of exclusive_wait: longer than anybody waits here.
    headers = {PREVIOUS_DELIVERIES: QUARANTINE_AFTER, DEFERRALS: 20}

    async with a_consumer(empty_broker, handler, markers=tmp_path) as consumer:
        slow = await submit(empty_broker)
        await eventually(lambda: slow in handler.ids, "beginning the slow one")
        quarantined = await submit(empty_broker, headers=headers)
        await eventually(
            lambda: consumer._state.blocked, "having the quarantined one in the backlog"
        )
        consumer._subscription.reopen_channel()
        await eventually(lambda: handler.ids.count(slow) == 2, "beginning with the slow one again")
        handler.gate.set()
        await eventually(
            lambda: quarantined in handler.ids, "handling the quarantined one in the end"
        )
        await eventually(lambda: _empty(empty_broker), "acknowledging all")

    assert handler.ids.count(quarantined) == 1


async def test_a_quarantined_message_that_is_deferred_again_and_again_is_handled_in_the_end(
    empty_broker: TestBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quarantine, "EXCLUSIVE_WAIT_SECONDS", 0.01)
    handler = Recorder()
    handler.gate = asyncio.Event()
    before = _deferred()
    # One redelivery more, and it would be dead-lettered: waiting is none.
    headers = {PREVIOUS_DELIVERIES: WORK_DELIVERY_LIMIT}

    async with a_consumer(empty_broker, handler, markers=tmp_path):
        slow = await submit(empty_broker)
        await eventually(lambda: slow in handler.ids, "beginning the slow one")
        quarantined = await submit(empty_broker, headers=headers)
        await eventually(lambda: _deferred() >= before + 5, "deferring it")
        handled_meanwhile = handler.ids.count(quarantined)
        handler.gate.set()
        await eventually(
            lambda: quarantined in handler.ids, "handling the quarantined one in the end"
        )
        await eventually(lambda: _empty(empty_broker), "acknowledging all")

    assert handled_meanwhile == 0
    assert handler.ids.count(quarantined) == 1
    assert await depth(empty_broker.admin_url, DEAD) == 0


def _deferred() -> float:
    labels = {"queue": QUEUE, "outcome": "deferred"}
    return REGISTRY.get_sample_value("userstream_deliveries_total", labels) or 0


def _quarantined() -> float:
    return REGISTRY.get_sample_value("userstream_quarantined_total", {"queue": QUEUE}) or 0


async def test_a_slow_answer_to_a_cancel_does_not_end_the_next_subscription(
    empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Recorder()
    cancel = Channel.basic_cancel

    async def slow_cancel(channel: Channel, *arguments: Any, **options: Any) -> Any:
        await asyncio.sleep(1.5)  # longer than the first pause of the gate
        return await cancel(channel, *arguments, **options)

    monkeypatch.setattr(Channel, "basic_cancel", slow_cancel)
    async with a_consumer(empty_broker, handler) as consumer:
        handler.error = DatabaseServiceUnavailableError("gone")
        await submit(empty_broker)
        await eventually(lambda: handler.seen, "the first failure")
        handler.error = None
        await eventually(lambda: len(handler.seen) == 2, "the probe")
        await eventually(lambda: _healthy(consumer), "being subscribed again")
        last = await submit(empty_broker)
        await eventually(lambda: last in handler.ids, "handling what comes later")


async def test_a_fault_of_ours_leaves_the_message_to_redelivery(
    empty_broker: TestBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = Recorder()
    dispatch = Dispatcher.dispatch
    faults = [ValueError("a fault")]

    async def faulty(dispatcher: Dispatcher, delivery: Delivery) -> Outcome:
        if faults:
            raise faults.pop()
        return await dispatch(dispatcher, delivery)

    monkeypatch.setattr(Dispatcher, "dispatch", faulty)
    async with a_consumer(empty_broker, handler):
        message_id = await submit(empty_broker)
        await eventually(lambda: handler.ids == [message_id], "handling it after all")


async def test_more_retries_than_steps_are_refused_at_start(empty_broker: TestBroker) -> None:
    async with Publisher(
        empty_broker.url("queue_receiver"), service="queue_receiver", exchanges=[]
    ) as publisher:
        with pytest.raises(SettingError, match="MAX_RETRY_ATTEMPTS is 4"):
            async with Consumer(
                empty_broker.url("queue_receiver"),
                {RegistrationSubmitted: Recorder()},
                service="queue_receiver",
                publisher=publisher,
                prefetch=1,
                retry_delays=[timedelta(seconds=1)] * 4,
            ):
                pass


async def _healthy(consumer: Consumer) -> bool:
    try:
        await consumer.check()
    except UnavailableError:
        return False
    return True


async def _cut_connections(broker: TestBroker) -> None:
    """Close the consumer's connection as an operator would; it takes a while to be listed."""

    def consuming_connections() -> list[str]:
        rows = broker.management("GET", "/api/connections")
        return [row["name"] for row in rows if row.get("user") == "queue_receiver"]

    for name in await eventually(consuming_connections, "listing connections"):
        broker.management("DELETE", f"/api/connections/{quote(name)}")


async def _submitted(broker: TestBroker) -> UUID | None:
    try:
        return await submit(broker)
    except Exception:  # noqa: BLE001 - whatever a broker says while it starts
        return None


async def _empty(broker: TestBroker) -> bool:
    return await depth(broker.admin_url, QUEUE) == 0
