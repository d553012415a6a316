"""HTTP clients by the dozen, which cost next to nothing, so that they are not what is measured."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from common.database_client.http_client import Answer, Connection

HOST = "127.0.0.1"

TRY_AGAIN_STATUS = 503
PAUSE_SECONDS = 0.05
"""Before a post that was answered with 503, or not at all, is made again."""

ANSWER_WITHIN_SECONDS = 30.0

LOOK_SECONDS = 1.0
"""How often overdue requests are looked for: a timer for each would cost as much as the rest."""


class Post(NamedTuple):
    """What became of one post; instants on the monotonic clock."""

    due: float
    """When it was to be sent: with a full queue of work, earlier than when it was."""
    answered: float
    status: int
    repeats: int
    """How often it was made again after a 503 or a lost connection."""


class _Connection(Connection):
    """Knows how long it has been waiting."""

    _sent_at = 0.0

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        self._sent_at = time.monotonic()
        return super().send(request)

    def give_up(self, sent_before: float) -> None:
        waits = self._waiting is not None and not self._waiting.done()
        if waits and self._sent_at < sent_before:
            self.abort()


@dataclass(slots=True)
class Client:
    """Connections to one server, kept open and used again."""

    port: int
    _idle: list[_Connection] = field(default_factory=list)
    _all: list[_Connection] = field(default_factory=list)

    async def send(self, request: bytes) -> Answer:
        """Make one request.

        Raises:
            OSError: The connection could not be made, or was lost, or nothing came of it within
                half a minute.
        """
        connection = await self._connection()
        answer = await connection.send(request)
        self._idle.append(connection)
        return answer

    async def _connection(self) -> _Connection:
        while self._idle:
            if (connection := self._idle.pop()).usable:
                return connection
        loop = asyncio.get_running_loop()
        _, made = await loop.create_connection(_Connection, HOST, self.port)
        self._all.append(made)
        return made

    async def watch(self) -> None:
        """Give up requests that are overdue, again and again."""
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            for connection in self._all:
                connection.give_up(sent_before=time.monotonic() - ANSWER_WITHIN_SECONDS)

    def close(self) -> None:
        """Close all connections."""
        for connection in self._all:
            connection.abort()


@asynccontextmanager
async def connected(port: int) -> AsyncIterator[Client]:
    """A client, closed at the end."""
    client = Client(port)
    watching = asyncio.create_task(client.watch())
    try:
        yield client
    finally:
        watching.cancel()
        client.close()


def get(path: str) -> bytes:
    """A GET as it goes over the wire."""
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: */*\r\n\r\n".encode()


def post_json(path: str, body: object) -> bytes:
    """A POST as it goes over the wire."""
    content = json.dumps(body, ensure_ascii=False).encode()
    head = (
        f"POST {path} HTTP/1.1\r\nHost: {HOST}\r\nAccept: application/json\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


async def closed_loop(client: Client, posts: Sequence[bytes], *, connections: int) -> list[Post]:
    """Make all posts, each connection the next one as soon as it has its answer.

    Returns:
        What became of them, in the order of ``posts``.
    """
    made: dict[int, Post] = {}
    remaining: Iterator[tuple[int, bytes]] = iter(enumerate(posts))

    async def work() -> None:
        for number, request in remaining:
            made[number] = await _post(client, request, due=time.monotonic())

    await asyncio.gather(*(work() for _ in range(connections)))
    return [made[number] for number in range(len(posts))]


async def open_loop(client: Client, posts: Sequence[bytes], *, rate: float) -> list[Post]:
    """Make ``rate`` posts a second, whether or not the earlier ones are answered.

    Latencies count from the instant when a post was due; a server that stalls is charged for
    all that had to wait meanwhile.
    """
    begun = time.monotonic()
    tasks = []
    for number, request in enumerate(posts):
        due = begun + number / rate
        if (pause := due - time.monotonic()) > 0:
            await asyncio.sleep(pause)
        tasks.append(asyncio.create_task(_post(client, request, due=due)))
    return list(await asyncio.gather(*tasks))


async def _post(client: Client, request: bytes, *, due: float) -> Post:
    deadline = time.monotonic() + ANSWER_WITHIN_SECONDS
    repeats = 0
    while True:
        try:
            status = (await client.send(request)).status
        except OSError:
            status = 0
        answered = time.monotonic()
        if status not in (0, TRY_AGAIN_STATUS) or answered > deadline:
            return Post(due, answered, status, repeats)
        repeats += 1
        await asyncio.sleep(PAUSE_SECONDS)
