"""Deadlines that no busy machine misses; a test that is about one sets its own."""

import pytest

from common.amqp import confirms, connection, publisher, stream
from common.amqp import dead_letter_queue as dead_letters
from common.messaging import subscription

LONG_SECONDS = 60.0

DEADLINES = (
    (confirms, "CONFIRM_SECONDS"),
    (publisher, "CHANNEL_SECONDS"),
    (connection, "CONNECT_SECONDS"),
    (dead_letters, "READ_SECONDS"),
    (subscription, "CANCEL_SECONDS"),
    (stream, "ANSWER_SECONDS"),
)
"""What a broker that works is given to answer; in seconds, so that a page is not kept waiting."""


@pytest.fixture(autouse=True)
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for the broker as long as it takes at a load of 20."""
    for module, name in DEADLINES:
        monkeypatch.setattr(module, name, LONG_SECONDS)
