"""The journey of a registration as server-sent events, until it has ended."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from uuid import UUID

from aiohttp import web

from common.contracts.registrations import Journey
from common.errors import UnavailableError, UserStreamError

MAX_WATCHERS = 1000
"""Pages watching at once; further ones reload by themselves instead."""

LONGEST_WATCH_SECONDS = 600.0
"""Then the stream ends; a page that is still open connects again."""

KEEP_ALIVE_SECONDS = 15.0
"""Proxies close connections that are silent for longer."""

RECONNECT_MS = 2000

SelectJourney = Callable[[UUID], Awaitable[Journey]]


class TooManyWatchersError(UnavailableError):
    """So many pages are watching that a further one would slow down registering."""

    code = "too_many_watchers"


class Watchers:
    """Streams journeys; knows how many it streams, and ends them when the service stops."""

    def __init__(self, select_journey: SelectJourney) -> None:
        self._select_journey = select_journey
        self._stopping = asyncio.Event()
        self._count = 0

    def stop(self) -> None:
        """End all streams; the pages connect to another instance."""
        self._stopping.set()

    async def watch(self, request: web.Request, registration_id: UUID) -> web.StreamResponse:
        """Send a ``journey`` event for every change, ``unavailable`` when it can not be read."""
        if self._count >= MAX_WATCHERS:
            raise TooManyWatchersError("Reload the page to see how far the registration is.")
        response = web.StreamResponse(
            headers={"Content-Type": "text/event-stream", "X-Accel-Buffering": "no"}
        )
        await response.prepare(request)
        if request.method == "HEAD":
            return response
        self._count += 1
        try:
            await response.write(f"retry: {RECONNECT_MS}\n\n".encode())
            await self._follow(response, registration_id)
        finally:
            self._count -= 1
        return response

    async def _follow(self, response: web.StreamResponse, registration_id: UUID) -> None:
        started = last_sent = time.monotonic()
        previous = ""
        finished = False
        while not finished and time.monotonic() - started < LONGEST_WATCH_SECONDS:
            event, finished = await self._event(registration_id)
            if event != previous:
                await response.write(event.encode())
                previous, last_sent = event, time.monotonic()
            elif time.monotonic() - last_sent > KEEP_ALIVE_SECONDS:
                await response.write(b": still here\n\n")
                last_sent = time.monotonic()
            if finished or await self._told_to_stop(_interval(time.monotonic() - started)):
                return

    async def _event(self, registration_id: UUID) -> tuple[str, bool]:
        try:
            journey = await self._select_journey(registration_id)
        except UserStreamError:
            return "event: unavailable\ndata: {}\n\n", False
        data = journey.model_dump_json(by_alias=True)
        return f"event: journey\ndata: {data}\n\n", journey.finished

    async def _told_to_stop(self, within: float) -> bool:
        try:
            async with asyncio.timeout(within):
                await self._stopping.wait()
        except TimeoutError:
            return False
        return True


def _interval(watched: float) -> float:
    """Seconds to the next look: often at first, when most journeys end."""
    return min(0.2 + watched / 10, 3.0)
