"""The journey of a registration as server-sent events, until it has ended.

However many pages watch, one task reads their journeys, all that are due in one request.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from uuid import UUID

from aiohttp import web

from common.contracts.registrations import MAX_BULK, Journey
from common.errors import UnavailableError, UserStreamError
from common.http.server import connection_limit
from frontend.clients import Clients

MAX_WATCHERS = 1000
"""Streams at once, where files are plenty; further pages reload by themselves instead."""

MAX_WATCHERS_OF_ONE = 100
"""Streams of one client: enough for a household or an office behind one address."""

PAUSE_SECONDS = 0.1
"""Between two readings; what becomes due meanwhile is read together."""

LONGEST_WATCH_SECONDS = 600.0
"""Then the stream ends; a page that is still open connects again."""

KEEP_ALIVE_SECONDS = 15.0
"""Proxies close connections that are silent for longer."""

RECONNECT_MS = 2000

UNAVAILABLE = "event: unavailable\ndata: {}\n\n"

SelectJourneys = Callable[[Sequence[UUID]], Awaitable[list[Journey]]]
"""Reads some journeys, in the order of their ids; at most ``MAX_BULK``."""


class TooManyWatchersError(UnavailableError):
    """A further stream would slow down registrations."""

    code = "too_many_watchers"


class _Watched:
    """A registration that pages watch: its latest event, and when to read it again."""

    def __init__(self, now: float) -> None:
        self.since = self.due = now
        self.watchers = 0
        self.event = ""
        self.finished = False
        self.changed = asyncio.Event()

    def publish(self, event: str, *, finished: bool) -> None:
        """Wake up the streams, if the event is a new one."""
        if event != self.event:
            self.event, self.finished = event, finished
            self.wake()

    def wake(self) -> None:
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()


class Watchers:
    """Streams journeys, within limits for all and for each client, until the service stops."""

    def __init__(
        self,
        select_journeys: SelectJourneys,
        *,
        clients: Clients | None = None,
        connections: int | None = None,
    ) -> None:
        """Not yet reading.

        Args:
            select_journeys: Reads the journeys.
            clients: Names the client of a request; without it, its peer's address.
            connections: How many the process can hold; at most half of them are streams.
        """
        half = (connections or connection_limit()) // 2
        self._most = min(MAX_WATCHERS, half)
        self._most_of_one = min(MAX_WATCHERS_OF_ONE, max(half // 4, 1))
        self._select_journeys = select_journeys
        self._clients = clients or Clients("")
        self._watched: dict[UUID, _Watched] = {}
        self._by_client: Counter[str] = Counter()
        self._reading: asyncio.Task[None] | None = None
        self._stopping = False

    def stop(self) -> None:
        """End all streams; the pages connect to another instance."""
        self._stopping = True
        for watched in self._watched.values():
            watched.wake()

    async def watch(self, request: web.Request, registration_id: UUID) -> web.StreamResponse:
        """Send a ``journey`` event for every change, ``unavailable`` when it cannot be read.

        Raises:
            TooManyWatchersError: This client, or all together, have as many as they may.
        """
        with self._place(self._clients.name(request)):
            response = web.StreamResponse(
                headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
            )
            await response.prepare(request)
            if request.method != "HEAD":
                await response.write(f"retry: {RECONNECT_MS}\n\n".encode())
                with suppress(TimeoutError):
                    async with asyncio.timeout(LONGEST_WATCH_SECONDS):
                        await self._follow(response, registration_id)
        return response

    @contextmanager
    def _place(self, client: str) -> Iterator[None]:
        if self._by_client.total() >= self._most or self._by_client[client] >= self._most_of_one:
            raise TooManyWatchersError(
                "Too many pages are being watched. Reload this one, or ask the API, to see how far "
                "the registration is."
            )
        self._by_client[client] += 1
        try:
            yield
        finally:
            self._by_client[client] -= 1
            if not self._by_client[client]:
                del self._by_client[client]

    @contextmanager
    def _joined(self, registration_id: UUID) -> Iterator[_Watched]:
        now = asyncio.get_running_loop().time()
        watched = self._watched.setdefault(registration_id, _Watched(now))
        watched.watchers += 1
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        try:
            yield watched
        finally:
            watched.watchers -= 1
            if not watched.watchers:
                del self._watched[registration_id]

    async def _follow(self, response: web.StreamResponse, registration_id: UUID) -> None:
        previous = ""
        with self._joined(registration_id) as watched:
            while not self._stopping:
                changed, event, finished = watched.changed, watched.event, watched.finished
                if event != previous:
                    await response.write(event.encode())
                    previous = event
                    if finished:
                        return
                    continue  # something may have changed while it was written
                try:
                    async with asyncio.timeout(KEEP_ALIVE_SECONDS):
                        await changed.wait()
                except TimeoutError:
                    await response.write(b": still here\n\n")

    async def _read(self) -> None:
        """Read the journeys of all that is watched, each when it is due."""
        clock = asyncio.get_running_loop().time
        while self._watched and not self._stopping:
            due = [key for key, watched in self._watched.items() if watched.due <= clock()]
            for first in range(0, len(due), MAX_BULK):
                some = due[first : first + MAX_BULK]
                await self._read_some(some)
                for each in filter(None, map(self._watched.get, some)):
                    each.due = clock() + _interval(clock() - each.since)
            await asyncio.sleep(PAUSE_SECONDS)

    async def _read_some(self, registration_ids: Sequence[UUID]) -> None:
        try:
            journeys = await self._select_journeys(registration_ids)
        except UserStreamError:
            for each in filter(None, map(self._watched.get, registration_ids)):
                each.publish(UNAVAILABLE, finished=False)
            return
        for journey in journeys:
            if watched := self._watched.get(journey.registration_id):
                data = journey.model_dump_json(by_alias=True)
                watched.publish(f"event: journey\ndata: {data}\n\n", finished=journey.finished)


def _interval(watched: float) -> float:
    """Seconds to the next look: often at first, when most journeys end."""
    return min(0.2 + watched / 10, 3.0)
