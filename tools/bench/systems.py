"""The two systems under test: where each is posted to, and what it is made of."""

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import aio_pika
import asyncpg

from tools.launcher.processes import describe_exit, start
from tools.launcher.supervisor import Part


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A pipeline from a POST to a row and a mail."""

    name: str
    port: int
    path: str
    """Where registrations are posted."""
    dsn: str
    count_rows: str
    """SQL that counts the rows of some e-mail addresses."""
    amqp_url: str
    queue: str
    """Where accepted registrations wait."""
    consumer: str
    """The part that takes them from there."""
    parts: Mapping[str, Part]
    """The processes that a registration passes through."""

    def pids(self) -> dict[str, int]:
        """Process id by name."""
        return {name: part.running.pid for name, part in self.parts.items() if part.running}

    def crashes(self) -> list[str]:
        """Which processes ended by themselves."""
        return [
            f"{name} {describe_exit(code)}; its log: {part.program.log}"
            for name, part in self.parts.items()
            if part.running and (code := part.running.exit_code) is not None
        ]

    def stop_consumer(self) -> None:
        """From now on registrations wait in the queue."""
        part = self.parts[self.consumer]
        if part.running:
            part.running.stop()
            part.running = None

    def start_consumer(self) -> None:
        """Let the consumer go on; returns when it takes messages."""
        part = self.parts[self.consumer]
        part.running = start(part.program)
        part.running.wait_until_ready()

    async def rows_of(self, emails: Iterable[str]) -> int:
        """How many of these people have a row."""
        connection = await asyncpg.connect(self.dsn)
        try:
            return int(await connection.fetchval(self.count_rows, list(emails)))
        finally:
            await connection.close()

    async def waiting(self) -> int:
        """Messages in the queue that no consumer has in flight."""
        async with await aio_pika.connect(self.amqp_url) as connection:
            queue = await (await connection.channel()).get_queue(self.queue)
            return queue.declaration_result.message_count or 0

    async def purge(self) -> None:
        """Throw away what waits in the queue."""
        async with await aio_pika.connect(self.amqp_url) as connection:
            queue = await (await connection.channel()).get_queue(self.queue)
            await queue.purge()


def has_consumer(amqp_url: str, queue: str) -> bool:
    """Whether a consumer takes messages from this queue."""

    async def ask() -> bool:
        async with await aio_pika.connect(amqp_url) as connection:
            found = await (await connection.channel()).get_queue(queue)
            return bool(found.declaration_result.consumer_count)

    try:
        return asyncio.run(ask())
    except (OSError, aio_pika.exceptions.AMQPError):  # the queue is not there yet
        return False
