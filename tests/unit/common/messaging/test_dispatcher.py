from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from common.amqp.message import Delivery, Envelope
from common.contracts.notifications import EmailRequested
from common.contracts.registrations import RegistrationSubmitted
from common.errors import (
    BrokerUnavailableError,
    DatabaseServiceUnavailableError,
    DuplicateEmailError,
    InProgressError,
    PermanentError,
    SettingError,
    UnavailableError,
    UnroutableError,
    UpstreamError,
)
from common.messaging.dispatcher import SHORTEST_WAIT, Dispatcher, Outcome
from tests.fakes.publisher import FakePublisher, Sent

BODY = b'{"name": "Ada",  "surname": "Lovelace", "email": "ada@example.org", "more": 1}'
DELAYS = [timedelta(seconds=5), timedelta(seconds=10)]
TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

FOREIGN_HEADERS = {
    "x-death": [{"queue": "user.registration", "count": 1}],
    "x-first-death-queue": "user.registration",
    "CC": ["somewhere.else"],
    "BCC": ["elsewhere"],
    "x-error-code": "of an earlier life",
    "mood": "good",
}


@dataclass
class Handler:
    """Remembers what it was given and raises what it is told to."""

    error: Exception | None = None
    seen: list[Envelope[Any]] = field(default_factory=list)

    async def __call__(self, envelope: Envelope[Any]) -> None:
        self.seen.append(envelope)
        if self.error is not None:
            raise self.error


class Bench:
    """A dispatcher between a handler and a publisher."""

    def __init__(self, error: Exception | None = None) -> None:
        self.handler = Handler(error)
        self.publisher = FakePublisher()
        self.dispatcher = Dispatcher(
            service="queue_receiver",
            handlers={RegistrationSubmitted: self.handler},
            publisher=self.publisher,
            retry_delays=DELAYS,
        )

    async def dispatch(self, **changes: Any) -> Outcome:
        return await self.dispatcher.dispatch(a_delivery(**changes))

    @property
    def sent(self) -> Sent:
        (only,) = self.publisher.sent
        return only


def a_delivery(**changes: Any) -> Delivery:
    return Delivery(**{"body": BODY, "routing_key": "by.hand", "headers": {}} | changes)


async def test_a_handled_delivery_goes_nowhere_else() -> None:
    bench = Bench()

    assert await bench.dispatch(headers={"x-attempt": 3}) is Outcome.HANDLED

    assert bench.handler.seen[0].data.name == "Ada"
    assert bench.handler.seen[0].last_attempt
    assert bench.publisher.sent == []


@pytest.mark.parametrize("attempt", [1, 2])
async def test_a_failing_delivery_waits_at_the_step_of_its_attempt(attempt: int) -> None:
    bench = Bench(RuntimeError("no luck"))

    assert await bench.dispatch(headers={"x-attempt": attempt}) is Outcome.RETRIED

    assert bench.sent.exchange == f"user.registration.retry.{attempt}"
    assert bench.sent.routing_key == "by.hand"
    assert bench.sent.expiration == DELAYS[attempt - 1]
    assert bench.sent.headers["x-attempt"] == attempt + 1


@pytest.mark.parametrize("attempt", [3, 4, 1_000_000])
async def test_after_all_retries_a_failing_delivery_is_dead_lettered(attempt: int) -> None:
    bench = Bench(UpstreamError("database_service answered 500."))

    assert await bench.dispatch(headers={"x-attempt": attempt}) is Outcome.DEAD_LETTERED

    assert bench.sent.exchange == "user.registration.dlx"
    assert bench.sent.headers["x-error-code"] == "upstream_error"
    assert bench.sent.headers["x-failed-attempts"] == attempt
    assert bench.sent.expiration is None


DEAD: dict[str, tuple[Exception | None, dict[str, Any], str]] = {
    "a permanent error": (PermanentError("no"), {}, "rejected"),
    "a kind of permanent error": (DuplicateEmailError("taken"), {}, "duplicate_email"),
    "not JSON": (None, {"body": b"name=Ada"}, "malformed"),
    "another version": (None, {"type": "user.registration.submitted.v9"}, "unknown_version"),
    "too large": (None, {"body": b" " * 65_537}, "too_large"),
}


@pytest.mark.parametrize("kind", DEAD)
async def test_what_can_never_work_is_dead_lettered_at_once_with_its_reason(kind: str) -> None:
    error, changes, code = DEAD[kind]
    bench = Bench(error)

    assert await bench.dispatch(**changes) is Outcome.DEAD_LETTERED

    assert bench.sent.exchange == "user.registration.dlx"
    assert bench.sent.body == changes.get("body", BODY)
    assert bench.sent.headers["x-error-code"] == code
    assert bench.sent.headers["x-failed-attempts"] == 1


async def test_an_outage_is_left_to_the_consumer() -> None:
    bench = Bench(DatabaseServiceUnavailableError("gone"))

    with pytest.raises(DatabaseServiceUnavailableError):
        await bench.dispatch(headers={"x-attempt": 3})

    assert bench.publisher.sent == []


@pytest.mark.parametrize(
    ("seconds", "step", "waits"),
    [(0.2, 1, 0.2), (5, 1, 5), (9.9, 1, 5), (10, 2, 10), (30, 2, 10)],
)
async def test_what_is_in_progress_elsewhere_waits_in_the_longest_step_that_is_not_too_long(
    seconds: float, step: int, waits: float
) -> None:
    bench = Bench(InProgressError(again_after=timedelta(seconds=seconds)))

    assert await bench.dispatch() is Outcome.DEFERRED

    assert bench.sent.exchange == f"user.registration.retry.{step}"
    assert bench.sent.expiration == timedelta(seconds=waits)
    assert bench.sent.body == BODY


async def test_a_deferred_message_keeps_its_attempt_and_all_previous_deliveries() -> None:
    bench = Bench(InProgressError(again_after=timedelta(seconds=5)))

    await bench.dispatch(
        headers={"x-attempt": 2, "x-delivery-count": 1, "x-previous-deliveries": 3}
    )

    assert bench.sent.headers["x-attempt"] == 2
    assert bench.sent.headers["x-previous-deliveries"] == 4
    assert "x-delivery-count" not in bench.sent.headers


async def test_deferrals_are_kept_after_a_lease() -> None:
    bench = Bench(InProgressError(again_after=timedelta(seconds=5)))

    await bench.dispatch(headers={"x-deferrals": 2})

    assert bench.sent.headers["x-deferrals"] == 2


async def test_a_message_that_was_never_deferred_names_no_deferrals() -> None:
    bench = Bench(InProgressError(again_after=timedelta(seconds=5)))

    await bench.dispatch()

    assert "x-deferrals" not in bench.sent.headers


async def test_a_message_that_is_deferred_for_no_time_at_all_still_waits_a_moment() -> None:
    bench = Bench(InProgressError(again_after=timedelta()))

    await bench.dispatch()

    assert bench.sent.expiration == SHORTEST_WAIT


async def test_a_count_that_a_stranger_made_up_is_not_believed() -> None:
    bench = Bench(InProgressError(again_after=timedelta(seconds=5)))

    await bench.dispatch(headers={"x-delivery-count": 1, "x-previous-deliveries": 2**63 - 1})

    assert bench.sent.headers["x-previous-deliveries"] == 1


@pytest.mark.parametrize(
    "error", [RuntimeError("no luck"), PermanentError("no"), InProgressError()]
)
@pytest.mark.parametrize("outage", [BrokerUnavailableError("away"), UnroutableError("no queue")])
async def test_what_could_not_be_republished_is_not_settled(
    error: Exception, outage: UnavailableError
) -> None:
    bench = Bench(error)
    bench.publisher.error = outage

    with pytest.raises(type(outage)):
        await bench.dispatch()


async def test_a_dead_letter_says_why_from_where_and_by_whom() -> None:
    bench = Bench(PermanentError("It cannot be stored."))

    await bench.dispatch(headers={"x-attempt": 2, "x-first-seen": "2026-01-31T09:30:00.000+00:00"})

    assert bench.sent.headers == {
        "x-attempt": 2,
        "x-error-code": "rejected",
        "x-error-detail": "It cannot be stored.",
        "x-failed-attempts": 2,
        "x-failed-service": "queue_receiver",
        "x-first-seen": "2026-01-31T09:30:00.000+00:00",
        "x-original-routing-key": "by.hand",
    }


async def test_an_unexpected_error_is_named_by_its_kind_and_not_quoted() -> None:
    bench = Bench(ValueError("ada@example.org is odd"))

    await bench.dispatch(headers={"x-attempt": 3})

    assert bench.sent.headers["x-error-code"] == "unexpected_error"
    assert bench.sent.headers["x-error-detail"] == "ValueError"


RETRY_OR_DEAD_LETTER = pytest.mark.parametrize(
    "fail", [lambda: RuntimeError("no luck"), lambda: PermanentError("no")], ids=["retry", "dead"]
)


@RETRY_OR_DEAD_LETTER
async def test_a_republished_message_keeps_its_bytes_and_its_identity(
    fail: Callable[[], Exception],
) -> None:
    bench = Bench(fail())
    properties = {
        "message_id": str(uuid4()),
        "correlation_id": "c-7",
        "type": "user.registration.submitted.v1",
        "content_type": "application/json",
        "content_encoding": "utf-8",
        "app_id": "frontend",
        "timestamp": datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
    }

    await bench.dispatch(**properties)

    assert bench.sent.body == BODY
    assert bench.sent.properties == properties


@RETRY_OR_DEAD_LETTER
async def test_a_republished_message_keeps_the_id_that_we_derived(
    fail: Callable[[], Exception],
) -> None:
    bench = Bench(fail())

    await bench.dispatch(message_id=None)

    assert bench.sent.properties == {"message_id": str(a_delivery().id)}


@RETRY_OR_DEAD_LETTER
async def test_a_republished_message_drops_headers_that_are_not_ours(
    fail: Callable[[], Exception],
) -> None:
    bench = Bench(fail())

    await bench.dispatch(headers={**FOREIGN_HEADERS, "traceparent": TRACE})

    ours = {"x-attempt", "x-first-seen", "traceparent"}
    why = {name for name in bench.sent.headers if name.startswith(("x-error", "x-failed"))}
    assert set(bench.sent.headers) - why - {"x-failed-attempts", "x-original-routing-key"} == ours
    assert bench.sent.headers["traceparent"] == TRACE
    assert bench.sent.headers.get("x-error-code") != "of an earlier life"


@pytest.mark.parametrize(
    "error", [RuntimeError("no luck"), PermanentError("no"), InProgressError()]
)
async def test_a_republished_message_that_is_to_mail_nobody_still_mails_nobody(
    error: Exception,
) -> None:
    bench = Bench(error)

    await bench.dispatch(headers={"x-without-mail": True})

    assert bench.handler.seen[0].without_mail
    assert bench.sent.headers["x-without-mail"] is True


async def test_the_first_failure_notes_when_and_later_ones_keep_it() -> None:
    bench = Bench(RuntimeError("no luck"))
    before = datetime.now(UTC).isoformat(timespec="milliseconds")

    await bench.dispatch()
    first_seen = bench.sent.headers["x-first-seen"]
    bench.publisher.sent.clear()
    await bench.dispatch(headers={"x-attempt": 2, "x-first-seen": first_seen})

    assert before <= first_seen <= datetime.now(UTC).isoformat(timespec="milliseconds")
    assert bench.sent.headers["x-first-seen"] == first_seen


@RETRY_OR_DEAD_LETTER
async def test_a_time_that_would_not_fit_into_a_frame_is_not_carried_along(
    fail: Callable[[], Exception],
) -> None:
    bench = Bench(fail())

    await bench.dispatch(headers={"x-first-seen": "2026" * 30_000})

    assert len(bench.sent.headers["x-first-seen"]) < 40


@RETRY_OR_DEAD_LETTER
async def test_properties_of_odd_types_do_not_keep_a_message_from_being_kept(
    fail: Callable[[], Exception],
) -> None:
    bench = Bench(fail())

    await bench.dispatch(
        message_id=b"7",
        correlation_id=7,
        content_type=b"json",
        timestamp="now",
        app_id=None,
        headers={"x-attempt": "two", "x-first-seen": 7, "traceparent": 5},
    )

    assert bench.sent.properties == {"message_id": str(a_delivery().id)}
    assert set(bench.sent.headers) >= {"x-attempt", "x-first-seen"}


def test_more_retries_than_the_route_has_steps_stop_the_service() -> None:
    with pytest.raises(SettingError, match=r"MAX_RETRY_ATTEMPTS is 4, but user.registration has 3"):
        Dispatcher(
            service="queue_receiver",
            handlers={RegistrationSubmitted: Handler()},
            publisher=FakePublisher(),
            retry_delays=[timedelta(seconds=1)] * 4,
        )


def test_a_consumer_reads_one_route() -> None:
    with pytest.raises(ValueError, match="exactly one route"):
        Dispatcher(
            service="x",
            handlers={RegistrationSubmitted: Handler(), EmailRequested: Handler()},
            publisher=FakePublisher(),
            retry_delays=[],
        )


@pytest.mark.parametrize("priority", [0, 9, None])
async def test_a_copy_waits_with_the_priority_that_its_message_had(priority: int | None) -> None:
    bench = Bench(UpstreamError("500"))

    await bench.dispatch(priority=priority)

    assert bench.sent.properties.get("priority") == priority
