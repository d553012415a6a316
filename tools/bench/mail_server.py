"""Takes mails and notes when: ``python -m tools.bench.mail_server PORT LOG``.

Each line of the log is an instant on the monotonic clock, which all processes share, and a
recipient.
"""

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import uvloop

from tools.testing.smtp_server import ReceivedMail, SmtpServer, running_smtp_server

FLUSH_SECONDS = 0.02
"""Between two writes to the log; the instants in it are exact."""


@dataclass(slots=True, kw_only=True)
class TimingMailServer(SmtpServer):
    """Keeps nothing of a mail but its recipients and the instant."""

    records: bool = False
    lines: list[str] = field(default_factory=list)

    def receive(self, mail: ReceivedMail) -> None:
        """Note who gets the mail, and when it was there."""
        now = time.monotonic()
        self.lines += [f"{now:.6f} {recipient}\n" for recipient in mail.recipients]


async def serve(port: int, log: Path) -> None:
    """Take mails until SIGTERM."""
    stopped = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopped.set)
    server = TimingMailServer(port=port)
    with log.open("a", buffering=1 << 20, encoding="utf-8") as file:
        async with running_smtp_server(server):
            while not stopped.is_set():
                await asyncio.sleep(FLUSH_SECONDS)
                file.writelines(server.lines)
                server.lines.clear()
                file.flush()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
