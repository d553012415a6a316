"""What publishers and consumers see of a channel, whoever writes and reads its frames.

``common.wire`` does it by itself, ``common.plain_wire`` by aiormq's methods.
"""

import asyncio
import math
from collections.abc import Callable

from aiormq.channel import Channel

from common.envelope import Delivery

CONFIRM_SECONDS = 5.0
"""Longest wait for a confirm. What times out may still arrive later: it was not promised."""

Confirmation = asyncio.Future[None]
"""Done when the broker confirms.

Fails with ``UnroutableError`` when the message comes back, with ``BrokerUnavailableError`` when
the broker refuses it, does not answer in time, or is lost.
"""

Received = Callable[[int, Delivery], None]
"""Takes a delivery's tag and the delivery."""


class Line:
    """One channel to publish, consume and acknowledge on; knows which messages are under way."""

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._under_way: dict[str, Confirmation] = {}
        self._turns: dict[str, asyncio.Future[None]] = {}

    @property
    def closed(self) -> bool:
        """Whether nothing can be written any more."""
        return self.channel.is_closed

    @property
    def waiting_since(self) -> float:
        """When the oldest message left that the broker has not taken, by the loop's clock.

        It has said nothing of that one, or has refused it and confirmed none since. Infinite where
        there is none; also where aiormq has forgotten it at its deadline.
        """
        return math.inf

    def is_under_way(self, message_id: str) -> bool:
        """Whether a message of that id is not confirmed yet."""
        return message_id in self._under_way

    async def turn(self, message_id: str) -> None:
        """Wait until no other message of that id is under way.

        The broker names a message that comes back by its id alone: with two of them, the
        return of one would be taken for the other's, and the first for confirmed.
        """
        # Not for the confirmation: it may have failed, with the broker's word still to come.
        while message_id in self._under_way:
            free = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._turns.setdefault(message_id, free)])

    def _ended(self, message_id: str, confirmation: Confirmation) -> None:
        """The broker has had its say about the message, or never will."""
        if self._under_way.get(message_id) is confirmation:
            del self._under_way[message_id]
            if turn := self._turns.pop(message_id, None):
                turn.set_result(None)
