"""A consumer of registrations that dies of one of them; a program, started by a test.

``python -m tests.mortal_consumer URL PREFETCH MARKERS JOURNAL``: writes the id of each message it
has handled to the journal, and ends as by a fault in a library at the name of Poison. At the name
of LeasedPoison it takes a lease before it dies, which the next to come find taken.

It is started again as soon as it is dead, as by a supervisor: a parent that has imported all of it
forks. To start Python anew each time takes a second of a processor, and ten on a busy machine.
"""

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from common.amqp.message import Envelope
from common.amqp.publisher import Publisher
from common.contracts.registrations import RegistrationSubmitted
from common.contracts.topology import BROKER_USERS
from common.errors import InProgressError
from common.messaging.consumer import Consumer

POISON = "Poison"
LEASED_POISON = "LeasedPoison"

REFUSALS = 2
"""How often a lease is found taken; not how long, or a slow start would outlast it."""

SERVICE = "queue_receiver"

HANDLING_SECONDS = 0.02
"""So that there is always something in flight beside it."""


async def main(url: str, prefetch: int, markers: Path, journal: Path) -> None:
    """Consume until killed."""
    written = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    async def handle(envelope: Envelope[RegistrationSubmitted]) -> None:
        await asyncio.sleep(HANDLING_SECONDS)
        if envelope.data.name == LEASED_POISON:
            take_lease(journal.with_name(f"{envelope.id}.lease"))
        if envelope.data.name in {POISON, LEASED_POISON}:
            os.kill(os.getpid(), signal.SIGKILL)
        os.write(written, f"{envelope.id}\n".encode())

    exchanges = BROKER_USERS[SERVICE].exchanges
    async with (
        Publisher(url, service=SERVICE, exchanges=exchanges) as publisher,
        Consumer(
            url,
            {RegistrationSubmitted: handle},
            service=SERVICE,
            publisher=publisher,
            prefetch=prefetch,
            retry_delays=[timedelta(milliseconds=50)],
            markers=markers,
        ),
    ):
        await asyncio.Event().wait()


def take_lease(path: Path) -> None:
    """Take the lease, or raise InProgressError."""
    refusals = int(path.read_text()) if path.exists() else 0
    path.write_text(str(refusals - 1 if refusals else REFUSALS))
    if refusals:
        raise InProgressError(again_after=timedelta(milliseconds=100))


def crashes_of(journal: Path) -> Path:
    """Where a byte is written for each crash."""
    return journal.with_name("crashes")


def keep_one_running(url: str, prefetch: int, markers: Path, journal: Path) -> None:
    """Run one after the other, until this whole group of processes is killed."""
    crashes = os.open(crashes_of(journal), os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    while True:
        child = os.fork()
        if child == 0:
            asyncio.run(main(url, prefetch, markers, journal))
            os._exit(0)
        os.waitpid(child, 0)
        os.write(crashes, b"x")


if __name__ == "__main__":
    keep_one_running(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]), Path(sys.argv[4]))
