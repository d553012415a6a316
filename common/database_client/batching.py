"""Sends calls made at the same time as one bulk request; each caller gets its own answer."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from common import metrics
from common.errors import PermanentError, RowLockedError, UpstreamError

Item = TypeVar("Item")
Result = TypeVar("Result")

CONCURRENT_SINGLES = 4
"""Requests at once where each item is sent alone; less than the connections to the database."""


class Batcher(Generic[Item, Result]):
    """Collects items while a request is in flight; no item waits for others to come.

    An item that comes when no request is in flight is sent at once, alone. Those that come
    meanwhile are sent in one request as soon as the answer has come.
    """

    def __init__(
        self,
        send: Callable[[list[Item]], Awaitable[list[Result]]],
        *,
        name: str,
        max_items: int,
    ) -> None:
        self._send = send
        # Looked up once: a lookup costs as much as counting.
        self._size = metrics.BATCH_SIZE.labels(name)
        self._max_items = max_items
        self._pending: list[tuple[Item, asyncio.Future[Result]]] = []
        self._request: asyncio.Task[None] | None = None

    async def __call__(self, item: Item) -> Result:
        """The answer to ``item``; raises what the request raised.

        If one item makes a whole request fail, each is sent again alone, so that only the bad
        one fails. A locked row takes long to fail; the other items do not wait for it.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = loop.create_future()
        self._pending.append((item, future))
        if len(self._pending) == 1:
            # After this turn of the loop: calls of handlers that woke together are one request.
            loop.call_soon(self._dispatch)
        return await future

    def _dispatch(self) -> None:
        if self._request is None and self._pending:
            batch = self._pending[: self._max_items]
            del self._pending[: self._max_items]
            self._request = asyncio.create_task(self._run(batch))
            self._request.add_done_callback(self._finished)

    def _finished(self, _request: asyncio.Task[None]) -> None:
        self._request = None
        self._dispatch()

    async def _run(self, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        batch = [(item, future) for item, future in batch if not future.done()]
        if not batch:
            return
        self._size.observe(len(batch))
        try:
            results = await self._send([item for item, _ in batch])
            # As a list: with a result too few or too many, no result's place is certain.
            for (_, future), result in list(zip(batch, results, strict=True)):
                if not future.done():
                    future.set_result(result)
        except (PermanentError, UpstreamError, RowLockedError) as error:
            if len(batch) == 1:
                _fail(batch, error)
            else:
                is_locked = isinstance(error, RowLockedError)
                await self._run_singly(batch, at_once=CONCURRENT_SINGLES if is_locked else 1)
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
