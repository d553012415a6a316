"""Messages that may have killed their process: handled alone, dead-lettered after some crashes.

A quorum queue counts how often it delivered a message again. That alone proves nothing: the
count of everything in flight rises when a process dies, a channel closes or the broker restarts.
So it only puts a message into *quarantine*: a process handles it with nothing else in flight.
Before it does, it leaves a crash marker on disk, and removes it whatever the outcome. A marker
without its process is the proof: that process died with this one message in flight.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import structlog

from common import metrics
from common.amqp.message import DELIVERY_COUNT, PREVIOUS_DELIVERIES, Delivery
from common.contracts.topology import WORK_DELIVERY_LIMIT
from common.errors import DeliveryLimitError, PermanentError, ProcessKilledError
from common.messaging.dispatcher import Dispatcher, Outcome

log = structlog.get_logger()

QUARANTINE_AFTER = 3
"""Previous deliveries. Crashes and outages of the whole count too; that costs speed only."""

CRASH_LIMIT = 5
"""Processes that a message may kill alone; several, as a kill from outside may hit it too."""

EXCLUSIVE_WAIT_SECONDS = 1.0
"""How long a quarantined message waits at first until nothing else is in flight, while nothing
else begins; twice as long after each deferral."""

LONGEST_EXCLUSIVE_WAIT_SECONDS = 120.0
"""The longest that it waits."""

SHORTEST_DEFERRAL = timedelta(seconds=30)
"""How long it is deferred after that, at first: others may wait for a slow service."""

DEFER_FACTOR = 4
"""It is deferred at least so many times as long as it has waited: meanwhile others get on."""

MARKER_MAX_AGE = timedelta(days=1)
"""A message that kills is delivered again at once; an older marker is about something else."""


def needs_quarantine(delivery: Delivery) -> bool:
    """Whether it was delivered so often before that it must be handled alone."""
    headers = delivery.headers  # looked into first: hardly any message has been redelivered
    return (DELIVERY_COUNT in headers or PREVIOUS_DELIVERIES in headers) and (
        delivery.previous_deliveries >= QUARANTINE_AFTER
    )


def exclusive_wait(delivery: Delivery) -> float:
    """Seconds a quarantined message may wait for what is in flight before it is deferred."""
    return min(
        EXCLUSIVE_WAIT_SECONDS * 2.0 ** min(delivery.deferrals, 16), LONGEST_EXCLUSIVE_WAIT_SECONDS
    )


class Quarantine:
    """Hands quarantined messages to the dispatcher, or to the dead letters."""

    def __init__(self, dispatcher: Dispatcher, markers: "CrashMarkers") -> None:
        self._dispatcher = dispatcher
        self._markers = markers

    async def dispatch(
        self, delivery: Delivery, *, is_exclusive: Callable[[], bool], defer: bool = False
    ) -> Outcome:
        """As ``Dispatcher.dispatch``, unless the message has killed too many processes.

        Args:
            delivery: The quarantined message.
            is_exclusive: Whether nothing else is in flight, and nothing else can begin.
            defer: Whether to defer it, because something slow is still in flight.
        """
        crash_count = self._markers.count(delivery.id)
        if (error := _check_limits(delivery, crash_count)) is not None:
            outcome = await self._dispatcher.dead_letter(delivery, error)
        elif defer:
            outcome = await self._dispatcher.defer(
                delivery,
                max(SHORTEST_DEFERRAL, timedelta(seconds=DEFER_FACTOR * exclusive_wait(delivery))),
                code="busy_consumer",
                deferrals=delivery.deferrals + 1,
            )
        else:
            self._report(delivery, crash_count)
            if is_exclusive():
                with self._markers.placed(delivery.id):
                    outcome = await self._dispatcher.dispatch(delivery)
            else:
                outcome = await self._dispatcher.dispatch(delivery)
        if outcome is not Outcome.DEFERRED:  # a copy will come, and with it the question
            self._markers.remove(delivery.id)
        return outcome

    def no_longer_exclusive(self) -> None:
        """Withdraw the marker: from now on something else can be in flight as well."""
        self._markers.withdraw()

    def _report(self, delivery: Delivery, crash_count: int) -> None:
        queue = self._dispatcher.route.queue
        metrics.QUARANTINED.labels(queue).inc()
        log.warning(
            "delivery.quarantined",
            queue=queue,
            previous_deliveries=delivery.previous_deliveries,
            crash_count=crash_count,
        )


def _check_limits(delivery: Delivery, crash_count: int) -> PermanentError | None:
    """Why a quarantined message must not be handled any more, if so."""
    if crash_count >= CRASH_LIMIT:
        return ProcessKilledError(
            f"{crash_count} processes died with nothing but this message in flight."
        )
    # The back-stop where no marker outlives its process: the broker's own limit sees only the
    # latest of the copies that were deferred.
    if delivery.previous_deliveries > WORK_DELIVERY_LIMIT:
        return DeliveryLimitError(f"Delivered {delivery.previous_deliveries} times before.")
    return None


class CrashMarkers:
    """A folder with one file for each quarantined message in flight, shared on one machine.

    The process that handles the message holds a lock on its file, which ends with the process at
    the latest. So a file without a lock is one whose process is dead.

    Args:
        queue: The queue whose messages these are.
        folder: Where markers lie; by default where the system keeps temporary files.
    """

    def __init__(self, queue: str, folder: Path | None = None) -> None:
        self._folder = (folder or Path(tempfile.gettempdir()) / f"userstream-{os.getuid()}") / queue
        self._placed: tuple[Path, int] | None = None
        """The marker of this process, and the descriptor that holds its lock."""

    def count(self, message_id: UUID) -> int:
        """How many processes died with nothing but the message in flight."""
        return sum(1 for _ in self._left_behind(message_id))

    def remove(self, message_id: UUID) -> None:
        """Forget the crashes: the message has been handled, or dead-lettered."""
        for path in self._left_behind(message_id):
            with suppress(OSError):  # the work is done all the same; in a day it is too old
                path.unlink(missing_ok=True)

    @contextmanager
    def placed(self, message_id: UUID) -> Iterator[None]:
        """Leave a marker while the block runs; without one, a crash proves nothing."""
        path = self._folder / f"{message_id}.{uuid4().hex}"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._placed = path, _create_locked(path)
        except OSError as error:
            log.warning("quarantine.marker_failed", reason=error.strerror or type(error).__name__)
        try:
            yield
        finally:
            self.withdraw()

    def withdraw(self) -> None:
        """Remove the marker of this process, if there is one."""
        if self._placed is not None:
            path, descriptor = self._placed
            self._placed = None
            with suppress(OSError):
                path.unlink()
            os.close(descriptor)

    def _left_behind(self, message_id: UUID) -> Iterator[Path]:
        for path in self._folder.glob(f"{message_id}.*"):
            with suppress(OSError):  # its owner has just removed it, or still holds it
                about = path.lstat()
                if about.st_uid != os.getuid():  # everyone may write to the default folder
                    continue
                if time.time() - about.st_mtime > MARKER_MAX_AGE.total_seconds():
                    path.unlink()
                elif _is_unlocked(path):
                    yield path


def _create_locked(path: Path) -> int:
    """Make a file that is locked from the moment it has its name; return its descriptor."""
    fresh = path.with_name(f".{path.name}")
    descriptor = os.open(fresh, os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_unlocked(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
