from dataclasses import dataclass
from typing import Any, cast
from uuid import uuid4

import pytest

from common.amqp.message import DEFERRALS, Delivery
from common.messaging.consumer_state import INITIAL_PREFETCH, ConsumerState, Received
from common.messaging.quarantine import EXCLUSIVE_WAIT_SECONDS

PREFETCH = 10


@dataclass(eq=False)
class FakeChannel:
    """As much of a channel as the state looks at."""

    closed: bool = False


class Consuming:
    """A state with a channel, as the consumer uses it."""

    def __init__(self, prefetch: int = PREFETCH) -> None:
        self.state = ConsumerState(prefetch)
        self.now = 100.0
        self.channel = self.reopened()

    def reopened(self) -> FakeChannel:
        self.channel = FakeChannel()
        self.state.open_channel(cast("Any", self.channel))
        return self.channel

    def receive(self, *, quarantined: bool = False, deferrals: int = 0) -> Received:
        headers = {DEFERRALS: deferrals}
        delivery = Delivery(body=b"{}", routing_key="", message_id=str(uuid4()), headers=headers)
        received = Received(cast("Any", self.channel), 1, delivery, quarantined)
        self.state.receive(received)
        return received

    def receive_quarantined(self, *, deferrals: int = 0) -> Received:
        return self.receive(quarantined=True, deferrals=deferrals)

    def begun(self) -> list[Received]:
        """Everything that begins now."""
        begun = []
        while (received := self.state.next(self.now)) is not None:
            begun.append(received)
        return begun

    def finish(self, *finished: Received) -> None:
        for received in finished:
            self.state.finish(received)


@pytest.fixture
def consuming() -> Consuming:
    return Consuming()


# -- open -----------------------------------------------------------------------------------


def test_ordinary_messages_begin_at_once_side_by_side(consuming: Consuming) -> None:
    received = [consuming.receive() for _ in range(5)]

    assert consuming.begun() == received
    assert consuming.state.taken == 5


def test_a_channel_begins_with_one_delivery_and_the_first_ordinary_one_raises_it(
    consuming: Consuming,
) -> None:
    assert consuming.state.demand == (INITIAL_PREFETCH, True)

    consuming.receive()
    consuming.begun()

    assert consuming.state.demand == (PREFETCH, True)


def test_a_new_channel_begins_with_one_delivery_again(consuming: Consuming) -> None:
    consuming.receive()
    consuming.begun()

    consuming.reopened()

    assert consuming.state.demand == (INITIAL_PREFETCH, True)


def test_what_came_by_an_older_channel_cannot_be_acknowledged(consuming: Consuming) -> None:
    first = consuming.receive()
    consuming.begun()
    assert consuming.state.is_current(first)

    consuming.reopened()

    assert not consuming.state.is_current(first)


def test_what_came_by_a_closed_channel_cannot_be_acknowledged(consuming: Consuming) -> None:
    first = consuming.receive()
    consuming.begun()

    consuming.channel.closed = True

    assert not consuming.state.is_current(first)


def test_a_delivery_of_an_older_channel_is_not_taken(consuming: Consuming) -> None:
    old = consuming.channel
    consuming.reopened()

    late = Received(cast("Any", old), 1, consuming.receive().delivery, quarantined=False)
    consuming.begun()
    consuming.state.receive(late)

    assert consuming.begun() == []
    assert consuming.state.taken == 1


# -- exclusive ------------------------------------------------------------------------------


def test_a_quarantined_message_begins_alone_and_what_comes_after_it_waits(
    consuming: Consuming,
) -> None:
    quarantined = consuming.receive_quarantined()
    others = [consuming.receive() for _ in range(3)]

    assert consuming.begun() == [quarantined]
    assert consuming.state.is_exclusive(quarantined)
    assert consuming.state.taken == 4
    consuming.finish(quarantined)

    assert consuming.begun() == others


def test_a_quarantined_message_raises_no_prefetch(consuming: Consuming) -> None:
    quarantined = consuming.receive_quarantined()
    consuming.begun()
    consuming.finish(quarantined)
    consuming.begun()

    assert consuming.state.demand == (INITIAL_PREFETCH, True)


def test_the_prefetch_is_not_raised_while_a_quarantined_message_waits_behind(
    consuming: Consuming,
) -> None:
    first, second = consuming.receive(), consuming.receive_quarantined()
    assert consuming.begun() == [first]
    assert consuming.state.demand == (INITIAL_PREFETCH, True)

    consuming.finish(first)
    assert consuming.begun() == [second]
    consuming.finish(second)
    consuming.receive()
    consuming.begun()

    assert consuming.state.demand == (PREFETCH, True)


def test_quarantined_messages_begin_one_after_the_other(consuming: Consuming) -> None:
    first, second = consuming.receive_quarantined(), consuming.receive_quarantined()

    assert consuming.begun() == [first]
    consuming.finish(first)
    assert consuming.begun() == [second]
    assert not second.deferred


def test_a_quarantined_message_waits_for_what_is_in_flight(consuming: Consuming) -> None:
    running = [consuming.receive() for _ in range(2)]
    consuming.begun()
    quarantined, after = consuming.receive_quarantined(), consuming.receive()

    assert consuming.begun() == []
    assert consuming.state.blocked is quarantined
    consuming.finish(running[0])
    assert consuming.begun() == []
    consuming.finish(running[1])

    assert consuming.begun() == [quarantined]
    assert not quarantined.deferred
    assert consuming.state.blocked is None
    consuming.finish(quarantined)
    assert consuming.begun() == [after]


@pytest.mark.parametrize("deferrals", [0, 1, 3])
def test_it_is_deferred_when_its_wait_is_over_and_waits_longer_each_time(
    consuming: Consuming, deferrals: int
) -> None:
    consuming.receive()
    consuming.begun()
    quarantined = consuming.receive_quarantined(deferrals=deferrals)
    assert consuming.begun() == []
    until = consuming.state.blocked_until
    assert until == consuming.now + EXCLUSIVE_WAIT_SECONDS * 2**deferrals

    consuming.now = until - 0.01
    assert consuming.begun() == []
    consuming.now = until

    assert consuming.begun() == [quarantined]
    assert quarantined.deferred


def test_nothing_begins_beside_one_that_is_being_deferred(consuming: Consuming) -> None:
    consuming.receive()
    consuming.begun()
    quarantined, after = consuming.receive_quarantined(), consuming.receive()
    consuming.begun()
    consuming.now = consuming.state.blocked_until

    assert consuming.begun() == [quarantined]
    consuming.finish(quarantined)
    assert consuming.begun() == [after]


def test_those_that_wait_for_the_same_slow_one_wait_together(consuming: Consuming) -> None:
    consuming.receive()
    consuming.begun()
    first, second = consuming.receive_quarantined(), consuming.receive_quarantined()
    consuming.begun()
    consuming.now = consuming.state.blocked_until
    assert consuming.begun() == [first]
    consuming.finish(first)

    assert consuming.begun() == [second]
    assert second.deferred


def test_one_that_comes_later_waits_for_the_same_slow_one_anew(consuming: Consuming) -> None:
    consuming.receive()
    consuming.begun()
    first = consuming.receive_quarantined()
    consuming.begun()
    consuming.now = consuming.state.blocked_until
    consuming.begun()
    consuming.finish(first)
    assert consuming.begun() == []

    second = consuming.receive_quarantined(deferrals=1)

    assert consuming.begun() == []
    assert consuming.state.blocked is second
    assert consuming.state.blocked_until == consuming.now + 2 * EXCLUSIVE_WAIT_SECONDS


def test_what_waits_is_forgotten_with_its_channel(consuming: Consuming) -> None:
    running = consuming.receive()
    consuming.begun()
    consuming.receive_quarantined()
    consuming.receive()
    consuming.begun()

    consuming.reopened()
    consuming.finish(running)

    assert consuming.begun() == []
    assert consuming.state.blocked is None
    assert consuming.state.taken == 0


def test_what_waits_does_not_begin_once_its_channel_is_closed(consuming: Consuming) -> None:
    running = consuming.receive()
    consuming.begun()
    consuming.receive_quarantined()
    consuming.begun()

    consuming.channel.closed = True
    consuming.finish(running)

    assert consuming.begun() == []


def test_what_waits_behind_a_quarantined_message_does_not_begin_once_its_channel_is_closed(
    consuming: Consuming,
) -> None:
    quarantined = consuming.receive_quarantined()
    consuming.receive()
    consuming.begun()

    consuming.channel.closed = True
    consuming.finish(quarantined)

    assert consuming.begun() == []
    assert consuming.state.taken == 0


def test_a_new_channel_ends_exclusiveness_but_nothing_begins_until_the_work_has_ended(
    consuming: Consuming,
) -> None:
    quarantined = consuming.receive_quarantined()
    consuming.begun()

    consuming.reopened()
    again = consuming.receive()

    assert not consuming.state.is_exclusive(quarantined)
    assert consuming.begun() == []
    consuming.finish(quarantined)
    assert consuming.begun() == [again]


# -- paused ---------------------------------------------------------------------------------


def test_an_outage_lowers_the_prefetch_by_a_new_subscription(consuming: Consuming) -> None:
    before = consuming.state.demand

    consuming.state.pause()

    assert consuming.state.demand == (INITIAL_PREFETCH, False)
    assert consuming.state.demand != before


def test_after_an_outage_the_prefetch_rises_when_half_of_what_was_held_is_done(
    consuming: Consuming,
) -> None:
    held = [consuming.receive() for _ in range(PREFETCH)]
    consuming.begun()
    consuming.state.pause()
    consuming.state.resume()
    half = PREFETCH // 2

    consuming.finish(*held[: half - 1])
    assert consuming.state.demand == (INITIAL_PREFETCH, False)
    consuming.finish(held[half - 1])

    assert consuming.state.demand == (PREFETCH, True)


def test_an_outage_in_which_nothing_was_held_ends_at_once(consuming: Consuming) -> None:
    consuming.state.pause()

    consuming.state.resume()

    assert consuming.state.demand == (INITIAL_PREFETCH, True)


def test_an_outage_that_holds_what_is_in_flight_does_not_count_as_waiting(
    consuming: Consuming,
) -> None:
    consuming.receive()
    consuming.begun()
    quarantined = consuming.receive_quarantined()
    consuming.begun()
    consuming.state.pause()
    consuming.now += 1000

    assert consuming.begun() == []
    assert consuming.state.blocked is None
    consuming.state.resume()
    assert consuming.begun() == []

    assert consuming.state.blocked is quarantined
    assert consuming.state.blocked_until == consuming.now + EXCLUSIVE_WAIT_SECONDS


# -- draining -------------------------------------------------------------------------------


def test_while_draining_nothing_is_taken_and_nothing_begins(consuming: Consuming) -> None:
    running = consuming.receive()
    consuming.begun()
    consuming.receive_quarantined()
    consuming.begun()

    consuming.state.drain()
    consuming.receive()
    consuming.finish(running)

    assert consuming.begun() == []
    assert consuming.state.demand is None
    assert consuming.state.taken == 0


def test_while_it_catches_up_no_delivery_takes_a_new_subscription(consuming: Consuming) -> None:
    received = [consuming.receive() for _ in range(PREFETCH)]
    assert consuming.begun() == received
    consuming.state.pause()
    consuming.state.resume()
    demand = consuming.state.demand

    consuming.finish(received[0])

    assert consuming.state.demand is demand
