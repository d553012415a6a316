"""Takes mails as fast as it can and notes when: ``python -m tools.bench.sink PORT LOG``.

It offers PIPELINING (RFC 2920) and keeps nothing of a mail but the recipients. Each line of
the log is an instant on the monotonic clock, which all processes share, and a recipient.
"""

import asyncio
import signal
import sys
import time
from pathlib import Path
from typing import cast

import uvloop

HOST = "127.0.0.1"

FLUSH_SECONDS = 0.02
"""Between two writes to the log; the instants in it are exact."""

EHLO_REPLY = b"250-sink\r\n250-PIPELINING\r\n250-8BITMIME\r\n250-SMTPUTF8\r\n250 SIZE 10485760\r\n"
END_OF_TEXT = b"\r\n.\r\n"

REPLIES = {
    b"EHLO": EHLO_REPLY,
    b"HELO": b"250 sink\r\n",
    b"MAIL": b"250 2.1.0 ok\r\n",
    b"RCPT": b"250 2.1.5 ok\r\n",
    b"DATA": b"354 go on\r\n",
    b"NOOP": b"250 2.0.0 ok\r\n",
    b"RSET": b"250 2.0.0 ok\r\n",
    b"QUIT": b"221 2.0.0 bye\r\n",
}


class Session(asyncio.Protocol):
    """One client's connection."""

    def __init__(self, accepted: list[str]) -> None:
        self._accepted = accepted
        self._unread = b""
        self._recipients: list[bytes] = []
        self._in_text = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet."""
        self._transport = cast(asyncio.WriteTransport, transport)
        self._transport.write(b"220 sink ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        """Answer all commands of this piece with one write."""
        self._unread += data
        replies = []
        while (reply := self._next_reply()) is not None:
            replies.append(reply)
        if replies:
            self._transport.write(b"".join(replies))
        if replies and replies[-1] == REPLIES[b"QUIT"]:
            self._transport.close()

    def _next_reply(self) -> bytes | None:
        """The answer to the next command or text; None if more must come first."""
        if self._in_text:
            return self._end_of_text()
        line, found, rest = self._unread.partition(b"\r\n")
        if not found:
            return None
        self._unread = rest
        verb = line[:4].upper()
        if verb in {b"MAIL", b"RSET"}:
            self._recipients = []
        elif verb == b"RCPT":
            self._recipients.append(line.partition(b"<")[2].partition(b">")[0])
        elif verb == b"DATA":
            self._in_text = True
            self._unread = b"\r\n" + rest  # so that an empty text has its end as well
        return REPLIES.get(verb, b"500 5.5.1 unknown\r\n")

    def _end_of_text(self) -> bytes | None:
        _, found, rest = self._unread.partition(END_OF_TEXT)
        if not found:
            return None
        self._unread, self._in_text = rest, False
        now = time.monotonic()
        self._accepted += [f"{now:.6f} {recipient.decode()}\n" for recipient in self._recipients]
        return b"250 2.0.0 accepted\r\n"


async def serve(port: int, log: Path) -> None:
    """Take mails until SIGTERM."""
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, stopped.set)
    accepted: list[str] = []
    server = await loop.create_server(lambda: Session(accepted), HOST, port, backlog=1024)
    with log.open("a", buffering=1 << 20, encoding="utf-8") as file:
        while not stopped.is_set():
            await asyncio.sleep(FLUSH_SECONDS)
            file.writelines(accepted)
            accepted.clear()
            file.flush()
    server.close()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2])))
