"""Calls made at the same time travel as one bulk request; each caller gets its own answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from common import metrics
from common.errors import PermanentError, RowLockedError, UpstreamError

Item = TypeVar("Item")
Result = TypeVar("Result")

REQUESTS_UNDER_WAY = 1
"""Bulk requests at once: while one is answered, the next one fills."""


SINGLES_UNDER_WAY = 4
"""Requests at once where each item is sent alone; less than the connections to the database."""


class Batcher(Generic[Item, Result]):
    """Collects items while requests are under way; nothing ever waits for company.

    An item that comes when no request is under way leaves at once, alone. What comes
    meanwhile leaves together as soon as an answer is in.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[list[Result]]],
        *,
        name: str,
        max_items: int,
        under_way: int = REQUESTS_UNDER_WAY,
    ) -> None:
        self._send = send
        # Looked up once: a lookup costs as much as counting.
        self._size = metrics.BATCH_SIZE.labels(name)
        self._max_items = max_items
        self._free = under_way
        self._pending: list[tuple[Item, asyncio.Future[Result]]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    async def __call__(self, item: Item) -> Result:
        """The answer to ``item``; raises what the request raised.

        If one item makes a whole request fail, each is sent again alone, so that only the bad
        one fails. What somebody holds a lock on takes long to fail; the others do not wait for it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._pending.append((item, future))
        if len(self._pending) == 1:
            # After this turn of the loop: handlers that woke together travel together.
            loop.call_soon(self._dispatch)
        return await future

    def _dispatch(self) -> None:
        while self._free and self._pending:
            batch, self._pending = (
                self._pending[: self._max_items],
                self._pending[self._max_items :],
            )
            self._free -= 1
            task = asyncio.create_task(self._run(batch))
            self._tasks.add(task)
            task.add_done_callback(self._finished)

    def _finished(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free += 1
        self._dispatch()

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        batch = [(item, future) for item, future in batch if not future.done()]
        if not batch:
            return
        self._size.observe(len(batch))
        try:
            results = await self._send([item for item, _ in batch])
            # As a list: with an answer too few or too many, nobody's place is certain.
            for (_, future), result in list(zip(batch, results, strict=True)):
                if not future.done():
                    future.set_result(result)
        except (PermanentError, UpstreamError, RowLockedError) as error:
            if len(batch) == 1:
                _fail(batch, error)
            else:
                at_once = SINGLES_UNDER_WAY if isinstance(error, RowLockedError) else 1
                await self._run_singly(batch, at_once=at_once)
        except Exception as error:  # noqa: BLE001 - handed to every caller
            _fail(batch, error)
        except asyncio.CancelledError:
            for _, future in batch:
                future.cancel()
            raise

    async def _run_singly(
        self, batch: list[tuple[Item, asyncio.Future[Result]]], *, at_once: int
    ) -> None:
        rest = iter(batch)

        async def run_some() -> None:
            for single in rest:
                await self._run([single])

        await asyncio.gather(*(run_some() for _ in range(at_once)))


def _fail(batch: list[tuple[Item, asyncio.Future[Result]]], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
