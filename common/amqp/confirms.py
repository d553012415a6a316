"""The broker's confirms of what was published on one channel, by number as it counts them."""

import asyncio
import math
from collections import deque
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
    """Completes confirmations as the broker confirms or refuses, or at their deadline.

    It also knows which message ids the broker has not answered yet.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._published = 0
        self._unconfirmed: dict[int, tuple[str, Confirmation, float]] = {}
        self._by_id: dict[str, Confirmation] = {}
        self._resolved: dict[str, asyncio.Future[None]] = {}
        self._refused_since = math.inf
        self._deadlines: deque[tuple[float, Confirmation]] = deque()
        self._timer_is_set = False

    @property
    def waiting_since(self) -> float:
        """When the oldest message left that the broker has not taken, by the loop's clock.

        It has not answered that one, or has refused it and confirmed none since. Infinite where
        there is none. Those that are past their deadline count, too.
        """
        _, _, since = next(iter(self._unconfirmed.values()), (None, None, math.inf))
        return min(since, self._refused_since)

    def register(self, message_id: str) -> Confirmation:
        """Return the confirmation of the message that was published just now."""
        confirmation: Confirmation = self._loop.create_future()
        now = self._loop.time()
        self._published += 1
        self._unconfirmed[self._published] = message_id, confirmation, now
        self._by_id[message_id] = confirmation
        self._expire_later(confirmation, now)
        return confirmation

    def is_unconfirmed(self, message_id: str) -> bool:
        """Whether the broker has not answered a message of that id yet."""
        return message_id in self._by_id

    async def wait_until_resolved(self, message_id: str) -> None:
        """Wait until the broker has answered every message of that id.

        The broker names a message that comes back by its id alone: with two of them, the
        return of one would be taken for the other's, and the first for confirmed.
        """
        # Not for the confirmation: it may have failed, with the broker's answer still to come.
        while message_id in self._by_id:
            resolved = self._loop.create_future()
            await asyncio.wait([self._resolved.setdefault(message_id, resolved)])

    def resolve(self, last: int, *, multiple: bool, failure: UserStreamError | None) -> None:
        """Take the broker's answer to one message, or to all up to it."""
        unconfirmed = self._unconfirmed
        if multiple:
            numbers = list(takewhile(lambda number: number <= last, unconfirmed))
        else:
            numbers = [last] if last in unconfirmed else []
        for number in numbers:
            message_id, confirmation, since = unconfirmed.pop(number)
            self._refused_since = math.inf if failure is None else min(self._refused_since, since)
            self._complete(message_id, confirmation, failure)

    def on_return(self, message_id: str) -> None:
        """Fail a message that came back; its confirm still follows, and means nothing."""
        confirmation = self._by_id.get(message_id)
        if confirmation is not None and not confirmation.done():
            _fail(
                confirmation,
                UnroutableError("No queue is bound to the exchange; the message was not kept."),
            )

    def end(self, failure: UserStreamError) -> None:
        """Fail all that is unconfirmed: no answer will come any more."""
        unconfirmed, self._unconfirmed = self._unconfirmed, {}
        for message_id, confirmation, _ in unconfirmed.values():
            self._complete(message_id, confirmation, failure)

    def _complete(
        self, message_id: str, confirmation: Confirmation, failure: UserStreamError | None
    ) -> None:
        if self._by_id.get(message_id) is confirmation:
            del self._by_id[message_id]
            if resolved := self._resolved.pop(message_id, None):
                resolved.set_result(None)
        if confirmation.done():  # its publisher has given up, or it came back before
            return
        if failure is None:
            confirmation.set_result(None)
        else:
            _fail(confirmation, failure)

    def _expire_later(self, confirmation: Confirmation, now: float) -> None:
        """Fail the confirmation at its deadline: one timer for all, since they expire in order."""
        self._drop_done()
        self._deadlines.append((now + CONFIRM_SECONDS, confirmation))
        if not self._timer_is_set:
            self._timer_is_set = True
            self._loop.call_at(self._deadlines[0][0], self._expire)

    def _expire(self) -> None:
        self._drop_done()
        while self._deadlines and self._deadlines[0][0] <= self._loop.time():
            _, confirmation = self._deadlines.popleft()
            _fail(
                confirmation,
                BrokerUnavailableError(f"The broker did not confirm within {CONFIRM_SECONDS:g} s."),
            )
            self._drop_done()
        self._timer_is_set = bool(self._deadlines)
        if self._timer_is_set:
            self._loop.call_at(self._deadlines[0][0], self._expire)

    def _drop_done(self) -> None:
        while self._deadlines and self._deadlines[0][1].done():
            self._deadlines.popleft()


def _fail(confirmation: Confirmation, failure: UserStreamError) -> None:
    confirmation.set_exception(failure)
    confirmation.exception()  # retrieved, though its publisher may have given up waiting
