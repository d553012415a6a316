"""A mail server that misbehaves as mail servers do, and counts faults by recipient.

What it does to a mail follows from the seed, the recipient and how often that mail has come.
"""

import random
import re
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from tools.testing.smtp_server import (
    DROP,
    USUAL,
    Action,
    Goodbye,
    Hold,
    Point,
    ReceivedMail,
    SmtpServer,
)

MESSAGE_ID = re.compile(rb"(?im)^message-id:\s*<([^@>]+)@")

STALL_SECONDS = 3.0
"""Short of every deadline of a mail server's client, long enough to hold up a connection."""


class SmtpFault(StrEnum):
    """What the server does to a mail instead of taking it."""

    DEFER = "deferred"
    """4yz, to the recipient or to the text: come again."""
    REFUSE = "refused"
    """5yz: never come again."""
    STALL = "stalled"
    """Sends nothing for some seconds, then takes it."""
    DROP_IN_TEXT = "dropped_in_text"
    """Closes the connection while the text is on its way: not taken."""
    DROP_AFTER_DOT = "dropped_after_dot"
    """Takes the mail and closes without the 250: the client cannot know."""
    HANG_UP = "hung_up"
    """421 to the recipient and the end of the session, each time."""


ACTIONS: dict[SmtpFault, Action] = {
    SmtpFault.DEFER: "451 4.3.2 later",
    SmtpFault.REFUSE: "550 5.1.1 no such mailbox",
    SmtpFault.STALL: Hold(USUAL["TEXT"], seconds=STALL_SECONDS),
    SmtpFault.DROP_IN_TEXT: DROP,
    SmtpFault.DROP_AFTER_DOT: DROP,
    SmtpFault.HANG_UP: Goodbye("421 4.3.2 not now"),
}

SHARES = (
    (SmtpFault.DEFER, 0.20),
    (SmtpFault.REFUSE, 0.02),
    (SmtpFault.STALL, 0.05),
    (SmtpFault.DROP_IN_TEXT, 0.05),
    (SmtpFault.DROP_AFTER_DOT, 0.02),
)
"""How many of the mails meet which fault."""

HUNG_UP_SHARE = 0.01
"""How many of the recipients are hung up on for as long as the server misbehaves."""


def fault_for(seed: int, recipient: str, time_seen: int) -> SmtpFault | None:
    """What happens to this mail, the ``time_seen``-th time that it comes; None: it is taken."""
    if random.Random(f"{seed} {recipient}").random() < HUNG_UP_SHARE:
        return SmtpFault.HANG_UP
    dice = random.Random(f"{seed} {recipient} {time_seen}").random()
    for fault, share in SHARES:
        if dice < share:
            return fault
        dice -= share
    return None


def point_of(fault: SmtpFault, recipient: str) -> Point:
    """Where a mail meets a fault: half of 4yz and 5yz at RCPT, the rest after the text."""
    match fault:
        case SmtpFault.HANG_UP:
            return "RCPT"
        case SmtpFault.DROP_IN_TEXT:
            return "BODY"
        case SmtpFault.DEFER | SmtpFault.REFUSE if is_odd(recipient):
            return "RCPT"
        case _:
            return "TEXT"


def is_odd(text: str) -> bool:
    """Toss a coin that falls the same in every process, as ``hash`` does not."""
    return bool(sum(text.encode()) % 2)


@dataclass(frozen=True, slots=True)
class Accepted:
    """A mail that the server has taken, whether or not the 250 was sent."""

    message_id: str
    """What stands before the @ in Message-ID: the identity of the mail."""
    recipient: str
    at: float
    """Seconds since 1970."""


@dataclass(slots=True, kw_only=True)
class FaultyMailServer(SmtpServer):
    """The server, and everything it did."""

    seed: int
    misbehaves: bool = True
    records: bool = False
    taken: list[Accepted] = field(default_factory=list)
    faults: Counter[SmtpFault] = field(default_factory=Counter)
    faulted: dict[SmtpFault, Counter[str]] = field(default_factory=dict)
    """Fault to recipients, and how often each met it."""
    _seen: Counter[str] = field(default_factory=Counter)

    def action(self, point: Point, recipients: list[str]) -> Action | None:
        """Play the fault of this mail where the mail meets it."""
        if not recipients:
            return None
        [recipient] = recipients
        self._seen[recipient] += point == "RCPT"
        fault = fault_for(self.seed, recipient, self._seen[recipient])
        if not self.misbehaves or fault is None or point_of(fault, recipient) != point:
            return None
        self.faults[fault] += 1
        self.faulted.setdefault(fault, Counter())[recipient] += 1
        return ACTIONS[fault]

    def receive(self, mail: ReceivedMail) -> None:
        """Note a mail that is not refused."""
        if mail.reply.startswith(("4", "5")):
            return
        found = MESSAGE_ID.search(mail.content)
        message_id = found[1].decode() if found else "none"
        self.taken.append(Accepted(message_id, mail.recipients[0], time.time()))
