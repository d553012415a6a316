"""Which mails the mail server took, and when."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

PATIENCE_SECONDS = 45.0
"""Without a single new mail for so long, the rest is not going to come."""

POLL_SECONDS = 0.02


@dataclass(slots=True)
class Mails:
    """Reads the mail server's log as it grows."""

    log: Path
    first: dict[str, float] = field(default_factory=dict)
    """Recipient to the instant on the monotonic clock when its first mail was accepted."""
    repeated: list[str] = field(default_factory=list)
    """Recipients of every further mail."""
    _position: int = 0

    def read(self) -> list[str]:
        """Take in what is new; the recipients of mails that came for the first time."""
        with self.log.open(encoding="utf-8") as file:
            file.seek(self._position)
            text = file.read()
        complete = text[: text.rfind("\n") + 1]
        self._position += len(complete.encode())
        fresh = []
        for line in complete.splitlines():
            instant, _, recipient = line.partition(" ")
            if recipient in self.first:
                self.repeated.append(recipient)
            else:
                self.first[recipient] = float(instant)
                fresh.append(recipient)
        return fresh

    async def wait_for(self, recipients: Collection[str]) -> int:
        """Return when each has a mail, or none came for a while; how many are missing."""
        self.read()
        missing = {recipient for recipient in recipients if recipient not in self.first}
        last_progress = time.monotonic()
        while missing and time.monotonic() - last_progress < PATIENCE_SECONDS:
            await asyncio.sleep(POLL_SECONDS)
            if fresh := self.read():
                missing.difference_update(fresh)
                last_progress = time.monotonic()
        return len(missing)
