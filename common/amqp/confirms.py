"""What the broker says of the messages published on one channel, by number as it counts them."""

import asyncio
import math
from collections import deque
from collections.abc import Callable
from itertools import takewhile

from common.errors import BrokerUnavailableError, UnroutableError, UserStreamError

CONFIRM_SECONDS = 5.0
"""Longest wait for a confirm. What times out may still arrive later: it was not promised."""

Confirmation = asyncio.Future[None]
"""Done when the broker confirms.

Fails with ``UnroutableError`` when the message comes back, with ``BrokerUnavailableError`` when
the broker refuses it, does not answer in time, or is lost.
"""


class ConfirmTracker:
    """Settles confirmations as the broker's word comes, or at their deadline.

    Args:
        ended: Told when the broker has had its say about a message, or never will.
    """

    def __init__(self, ended: Callable[[str, Confirmation], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ended = ended
        self._published = 0
        self._unconfirmed: dict[int, tuple[str, Confirmation, float]] = {}
        self._refused_since = math.inf
        self._deadlines: deque[tuple[float, Confirmation]] = deque()
        self._timer_is_set = False

    @property
    def waiting_since(self) -> float:
        """When the oldest left that was not taken; those past their deadline count."""
        _, _, since = next(iter(self._unconfirmed.values()), (None, None, math.inf))
        return min(since, self._refused_since)

    def expect(self, message_id: str) -> Confirmation:
        """The confirmation of the message that is published next."""
        confirmation: Confirmation = self._loop.create_future()
        now = self._loop.time()
        self._published += 1
        self._unconfirmed[self._published] = message_id, confirmation, now
        self._expire_later(confirmation, now)
        return confirmation

    def heard(self, last: int, *, multiple: bool, failure: UserStreamError | None) -> None:
        """The broker's word on one message, or on all up to it."""
        unconfirmed = self._unconfirmed
        if multiple:
            numbers = list(takewhile(lambda number: number <= last, unconfirmed))
        else:
            numbers = [last] if last in unconfirmed else []
        for number in numbers:
            message_id, confirmation, since = unconfirmed.pop(number)
            self._refused_since = math.inf if failure is None else min(self._refused_since, since)
            self._settle(message_id, confirmation, failure)

    def end(self, failure: UserStreamError) -> None:
        """Nothing more will be heard."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for message_id, confirmation, _ in unconfirmed.values():
            self._settle(message_id, confirmation, failure)

    def _settle(
        self, message_id: str, confirmation: Confirmation, failure: UserStreamError | None
    ) -> None:
        self._ended(message_id, confirmation)
        if confirmation.done():  # whoever waited has given up, or it came back before
            return
        if failure is None:
            confirmation.set_result(None)
        else:
            fail(confirmation, failure)

    def _expire_later(self, confirmation: Confirmation, now: float) -> None:
        """Fail the confirmation at its deadline: one timer for all, since they expire in order."""
        self._drop_settled()
        self._deadlines.append((now + CONFIRM_SECONDS, confirmation))
        if not self._timer_is_set:
            self._timer_is_set = True
            self._loop.call_at(self._deadlines[0][0], self._expire)

    def _expire(self) -> None:
        self._drop_settled()
        while self._deadlines and self._deadlines[0][0] <= self._loop.time():
            _, confirmation = self._deadlines.popleft()
            fail(
                confirmation,
                BrokerUnavailableError(f"The broker did not confirm within {CONFIRM_SECONDS:g} s."),
            )
            self._drop_settled()
        self._timer_is_set = bool(self._deadlines)
        if self._timer_is_set:
            self._loop.call_at(self._deadlines[0][0], self._expire)

    def _drop_settled(self) -> None:
        while self._deadlines and self._deadlines[0][1].done():
            self._deadlines.popleft()


def came_back(confirmation: Confirmation | None) -> None:
    """The message was returned; its confirm still follows, and means nothing."""
    if confirmation is not None and not confirmation.done():
        fail(
            confirmation,
            UnroutableError("No queue is bound to the exchange; the message was not kept."),
        )


def fail(confirmation: Confirmation, failure: UserStreamError) -> None:
    """Say what became of a message that is not confirmed."""
    confirmation.set_exception(failure)
    confirmation.exception()  # seen, though its publisher may have given up waiting
