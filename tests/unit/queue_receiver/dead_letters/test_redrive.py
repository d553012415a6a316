from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import UUID, uuid4

import pytest

from common.amqp.dead_letter_queue import DeadLetter, DeadLetterQueue
from common.amqp.message import Delivery
from common.contracts.dead_letters import Redrive, RedriveRequest, RedriveState
from common.contracts.topology import USER_REGISTRATION
from common.errors import BrokerUnavailableError, ConflictError, NotFoundError
from queue_receiver.dead_letters import redrive as redrives
from queue_receiver.dead_letters.outcomes import MessageOutcome, OutcomeTracker
from queue_receiver.dead_letters.redrive import Redrives
from tests.polling import until

Key = tuple[str, UUID]


def a_message(code: str = "upstream_error", body: bytes = b"{}") -> DeadLetter:
    message_id = uuid4()
    delivery = Delivery(
        body=body, routing_key="", message_id=str(message_id), headers={"x-error-code": code}
    )
    return DeadLetter(
        tag=1,
        route=USER_REGISTRATION,
        delivery=delivery,
        id=message_id,
        size=len(body),
        has_body=True,
    )


class FakeHeld:
    def __init__(self, queue: "FakeQueue") -> None:
        self._queue = queue
        self.messages = list(queue.messages)

    async def send_back(self, message: DeadLetter) -> None:
        if self._queue.error:
            raise self._queue.error
        self._queue.messages.remove(message)
        self._queue.sent.append(message)
        if self._queue.fails(message):
            self._queue.messages.append(message)


class FakeQueue:
    """Stands for ``DeadLetterQueue``: what is sent back comes back where ``fails`` says so."""

    route = USER_REGISTRATION

    def __init__(self, *messages: DeadLetter) -> None:
        self.messages = list(messages)
        self.sent: list[DeadLetter] = []
        self.fails: Callable[[DeadLetter], bool] = lambda _: False
        self.error: Exception | None = None

    @asynccontextmanager
    async def held(self, _wanted: object) -> AsyncIterator[FakeHeld]:
        yield FakeHeld(self)

    async def count(self) -> int:
        return len(self.messages)


class FakeOutcomes:
    """Stands for ``OutcomeTracker``: everything is handled at once, or as ``outcome`` says."""

    outcome = MessageOutcome.HANDLED

    def __init__(self) -> None:
        self.steps: list[int] = []

    async def snapshot(self, messages: list[Key]) -> None:
        self.steps.append(len(messages))

    async def poll(self, messages: set[Key]) -> dict[Key, MessageOutcome]:
        return dict.fromkeys(messages, self.outcome)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redrives, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(redrives, "POLL_SECONDS", 0.001)


def of(queue: FakeQueue, outcomes: FakeOutcomes) -> Redrives:
    return Redrives(
        queues=[cast("DeadLetterQueue", queue)], outcomes=cast("OutcomeTracker", outcomes)
    )


async def ended(admin: Redrives, **wish: Any) -> Redrive:
    request = RedriveRequest.model_validate({"rate": 1000, **({"all": True} | wish)})
    redrive_id = admin.start(request).redrive_id
    await until(lambda: admin.get(redrive_id).state is not RedriveState.RUNNING, "the end")
    return admin.get(redrive_id)


async def test_a_few_are_sent_first_and_then_more() -> None:
    queue, outcomes = FakeQueue(*(a_message() for _ in range(30))), FakeOutcomes()

    redrive = await ended(of(queue, outcomes))

    assert (redrive.state, redrive.total, redrive.sent, redrive.handled) == ("done", 30, 30, 30)
    assert outcomes.steps == [1, 10, 19]
    assert queue.messages == []


async def test_it_stops_at_the_first_that_fails_again() -> None:
    queue, outcomes = FakeQueue(*(a_message() for _ in range(30))), FakeOutcomes()
    poison = queue.messages[5]
    queue.fails = lambda message: message is poison

    redrive = await ended(of(queue, outcomes))

    assert (redrive.state, redrive.failed) == ("failed", 1)
    assert redrive.first_failed == poison.id
    assert outcomes.steps == [1, 10]
    assert len(queue.sent) == 11
    assert len(queue.messages) == 20  # the rest, and the one that came back


async def test_what_a_mail_server_puts_off_again_fails_again() -> None:
    queue, outcomes = FakeQueue(a_message(), a_message()), FakeOutcomes()
    outcomes.outcome = MessageOutcome.FAILED

    redrive = await ended(of(queue, outcomes))

    assert (redrive.state, redrive.sent) == ("failed", 1)


async def test_only_what_is_meant_is_sent() -> None:
    queue = FakeQueue(a_message("malformed"), a_message("no_space"), a_message("malformed"))

    await ended(of(queue, FakeOutcomes()), all=False, code="malformed")

    assert [message.code for message in queue.sent] == ["malformed", "malformed"]
    assert [message.code for message in queue.messages] == ["no_space"]


@pytest.mark.slow
async def test_a_step_that_is_not_handled_in_time_ends_it() -> None:
    queue, outcomes = FakeQueue(a_message(), a_message()), FakeOutcomes()
    outcomes.outcome = MessageOutcome.OPEN

    redrive = await ended(of(queue, outcomes), waitSeconds=1)

    assert (redrive.state, redrive.sent, len(queue.messages)) == ("timed_out", 1, 1)
    assert "not lost" in redrive.detail


async def test_an_outage_aborts_it_and_leaves_the_rest() -> None:
    queue = FakeQueue(a_message())
    queue.error = BrokerUnavailableError("Away.")

    redrive = await ended(of(queue, FakeOutcomes()))

    assert (redrive.state, redrive.sent) == ("aborted", 0)
    assert "still a dead letter" in redrive.detail
    assert len(queue.messages) == 1


async def test_it_can_be_stopped_and_there_is_one_at_a_time() -> None:
    queue, outcomes = FakeQueue(a_message(), a_message()), FakeOutcomes()
    outcomes.outcome = MessageOutcome.OPEN
    admin = of(queue, outcomes)
    first = admin.start(RedriveRequest(all=True))

    with pytest.raises(ConflictError, match="is running"):
        admin.start(RedriveRequest(all=True))
    await until(lambda: queue.sent, "the first step")
    admin.stop(first.redrive_id)
    await until(lambda: admin.get(first.redrive_id).state is RedriveState.STOPPED, "its stop")

    assert len(queue.messages) == 1
    assert admin.latest == admin.get(first.redrive_id)


async def test_the_end_of_the_service_is_the_end_of_a_redrive() -> None:
    queue, outcomes = FakeQueue(a_message(), a_message()), FakeOutcomes()
    outcomes.outcome = MessageOutcome.OPEN
    admin = of(queue, outcomes)
    running = admin.start(RedriveRequest(all=True))
    await until(lambda: queue.sent, "the first step")

    await admin.close()

    assert admin.get(running.redrive_id).state is RedriveState.ABORTED
    assert len(queue.messages) == 1


async def test_a_redrive_of_another_instance_is_not_known() -> None:
    with pytest.raises(NotFoundError, match="still a dead letter"):
        of(FakeQueue(), FakeOutcomes()).get(uuid4())
