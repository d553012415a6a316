"""Decides which delivery may begin and how many the broker is to send. Without I/O.

| state     | what may begin                            | the broker is to send              |
|-----------|-------------------------------------------|------------------------------------|
| open      | ordinary messages, side by side           | one; all of the prefetch once an   |
|           |                                           | ordinary message has begun         |
| exclusive | nothing: a quarantined message is in      | as before                          |
|           | flight, or waits for what is              |                                    |
| paused    | as before, to be held by the outage gate  | one more than what is held         |
| draining  | nothing                                   | nothing                            |

A new channel begins with one delivery: a process that was just started again takes a message that
kills alone, and no others with it. See ``common.messaging.quarantine``. Until that one is settled,
one more than the prefetch is in flight.
"""

from collections import deque
from dataclasses import dataclass

from common.amqp.channel import Channel
from common.amqp.message import Delivery
from common.messaging.quarantine import exclusive_wait

INITIAL_PREFETCH = 1
"""Prefetch of a channel on which no ordinary message has begun yet, and during an outage."""


@dataclass(slots=True, eq=False)
class Received:
    """A delivery, and the channel that it came by: on no other can it be acknowledged."""

    channel: Channel
    tag: int
    delivery: Delivery
    quarantined: bool
    """Whether it must be handled with nothing else in flight."""
    deferred: bool = False
    """Whether it waited too long for that, and begins to be deferred instead."""


class ConsumerState:
    """What is in flight, what waits, and what follows from both.

    Args:
        prefetch: Deliveries in flight at once, on a channel where ordinary messages come.
    """

    def __init__(self, prefetch: int) -> None:
        self._full = prefetch
        self._prefetch = INITIAL_PREFETCH
        self._paused = False
        self._catching_up = False
        self._exclusive: Received | None = None
        self._backlog: deque[Received] = deque()
        self._in_flight: set[Received] = set()
        self._waited_for: dict[Received, float] = {}
        """What is in flight, to since when quarantined messages have waited for its end."""
        self.draining = False
        self.channel: Channel | None = None
        """Where deliveries come from; what came by another cannot be acknowledged any more."""
        self.demand: tuple[int, bool] | None = (INITIAL_PREFETCH, True)
        """The prefetch, and whether there is no outage; None for no subscription. Every change
        takes a new subscription: as an outage begins, that brings one delivery more than what is
        held. If all of that fails for reasons of its own, another has to show it."""
        self.blocked: Received | None = None
        """The quarantined message that waits for others in flight, if one does."""
        self.blocked_until = 0.0
        """When it will have waited long enough, on the clock of ``next``."""

    @property
    def taken(self) -> int:
        """Deliveries that are in flight, or wait behind a quarantined one."""
        return len(self._in_flight) + len(self._backlog)

    def is_current(self, received: Received) -> bool:
        """Whether a delivery can still be acknowledged."""
        return received.channel is self.channel and not received.channel.closed

    def is_exclusive(self, received: Received) -> bool:
        """Whether no other delivery is in flight, and none can come by a newer channel."""
        return received is self._exclusive and self.is_current(received)

    def open_channel(self, channel: Channel | None) -> None:
        """Forget what has not begun: it is delivered again, by the new channel if there is one."""
        self.channel = channel
        self._prefetch = INITIAL_PREFETCH
        self._backlog.clear()
        self._decide_demand()

    def receive(self, received: Received) -> None:
        """Take a delivery; ``next`` says when it begins."""
        if received.channel is self.channel and not self.draining:
            self._backlog.append(received)

    def next(self, now: float) -> Received | None:
        """Take the delivery that begins now, if there is one; to be asked after each event."""
        self.blocked = None
        if self._exclusive is not None:
            return None
        if not self._backlog:
            self._waited_for.clear()
            return None
        head = self._backlog[0]
        if head.quarantined:
            if head.channel.closed:
                return None
            if self._in_flight and not self._has_waited(head, now):
                return None
            head.deferred = bool(self._in_flight)
            self._exclusive = head
        self._backlog.popleft()
        self._in_flight.add(head)
        if self._prefetch != self._full and not head.quarantined and not self._backlog:
            self._prefetch = self._full
            self._decide_demand()
        return head

    def _has_waited(self, head: Received, now: float) -> bool:
        """Whether a quarantined message has waited long enough for one that is in flight.

        Those that wait for the same slow one wait together. An outage that holds what is in
        flight does not count.
        """
        if self._paused:
            return False
        since = min(self._waited_for.setdefault(other, now) for other in self._in_flight)
        self.blocked_until = since + exclusive_wait(head.delivery)
        self.blocked = head if now < self.blocked_until else None
        return self.blocked is None

    def finish(self, received: Received) -> None:
        """Note that a delivery is settled, or left unsettled for good."""
        self._in_flight.discard(received)
        if received is self._exclusive:
            self._exclusive = None
            if self._backlog and self._backlog[0].channel.closed:
                self._backlog.clear()
        if self._catching_up:
            self._decide_demand()

    def pause(self) -> None:
        """Note that an outage has begun: what is in flight is held."""
        self._paused = True
        self._waited_for.clear()
        self._decide_demand()

    def resume(self) -> None:
        """Note that the outage is over."""
        self._paused, self._catching_up = False, True
        self._decide_demand()

    def drain(self) -> None:
        """Take and begin nothing more."""
        self.draining = True
        self._backlog.clear()
        self._decide_demand()

    def _decide_demand(self) -> None:
        # After an outage, a new subscription brings a new prefetch: first comes what was held.
        self._catching_up = self._catching_up and self.taken > self._full // 2
        if self.draining:
            demand = None
        elif self._paused or self._catching_up:
            demand = (INITIAL_PREFETCH, False)
        else:
            demand = (self._prefetch, True)
        if demand != self.demand:  # the same again is nothing to subscribe for
            self.demand = demand
