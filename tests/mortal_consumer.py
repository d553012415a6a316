"""A consumer of registrations that dies of one of them; a program, started by a test.

``python -m tests.mortal_consumer URL PREFETCH NOTES JOURNAL``: writes the id of each message it
has handled to the journal, and ends as by a fault in a library at the name of Poison.
"""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from common.consumer import consuming
from common.contracts.registrations import RegistrationSubmitted
from common.envelope import Envelope
from common.publisher import Publisher
from common.topology import BROKER_USERS

POISON = "Poison"

SERVICE = "queue_receiver"

HANDLING_SECONDS = 0.02
"""So that there is always something in hand beside it."""


async def main(url: str, prefetch: int, notes: Path, journal: Path) -> None:
    """Consume until killed."""
    written = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def handle(envelope: Envelope[RegistrationSubmitted]) -> None:
        await asyncio.sleep(HANDLING_SECONDS)
        if envelope.data.name == POISON:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(written, f"{envelope.id}\n".encode())

    exchanges = BROKER_USERS[SERVICE].exchanges
    async with (
        Publisher.open(url, service=SERVICE, exchanges=exchanges) as publisher,
        consuming(
            url,
            {RegistrationSubmitted: handle},
            service=SERVICE,
            publisher=publisher,
            prefetch=prefetch,
            retry_delays=[timedelta(milliseconds=50)],
            notes=notes,
        ),
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4])))
