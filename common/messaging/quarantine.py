"""Messages that may have killed their process: handled alone, and given up after some deaths.

A quorum queue counts how often it had to give a message again. That alone proves nothing: the
count of everything in hand rises when a process dies, a channel closes or the broker restarts.
So it only makes a message a *suspect*, which a process handles with nothing else in hand.
Before it does, it leaves a marker on disk, and removes it whatever comes of it. A marker without
its process is the proof: that process died with this one message in hand.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import structlog

from common import metrics
from common.amqp.message import Delivery
from common.contracts.topology import WORK_DELIVERY_LIMIT
from common.errors import DeliveryLimitError, PermanentError, ProcessKilledError
from common.messaging.dispatcher import Dispatcher, Outcome

log = structlog.get_logger()

SUSPECT_AFTER = 3
"""Deliveries in vain. Crashes and outages of the whole make suspects too; that costs speed only."""

CRASH_LIMIT = 5
"""Processes that a message may kill alone; a few, for who kills from outside may hit it too."""

EXCLUSIVE_WAIT_SECONDS = 1.0
"""How long a suspect waits at first until it is alone, while nothing else begins; each time in
vain it waits twice as long."""

LONGEST_EXCLUSIVE_WAIT_SECONDS = 120.0
"""The longest that it waits."""

HELD_UP_LASTS = timedelta(seconds=30)
"""Then it is put aside, at first for the longest step up to this: others met a slow neighbour."""

DEFER_FACTOR = 4
"""It is put aside at least so many times as long as it has waited: meanwhile others get on."""

MARKER_MAX_AGE = timedelta(days=1)
"""A message that kills is given again at once; an older marker is about something else."""


def is_suspect(delivery: Delivery) -> bool:
    """Whether it was given in vain so often that it must be handled alone."""
    return delivery.previous_deliveries >= SUSPECT_AFTER


def exclusive_wait(delivery: Delivery) -> float:
    """Seconds a suspect may wait for what is in hand before it is put aside."""
    return min(
        EXCLUSIVE_WAIT_SECONDS * 2.0 ** min(delivery.deferrals, 16), LONGEST_EXCLUSIVE_WAIT_SECONDS
    )


class Quarantine:
    """Hands suspects to the dispatcher, or to the dead letters."""

    def __init__(self, dispatcher: Dispatcher, markers: "CrashMarkers") -> None:
        self._dispatcher = dispatcher
        self._markers = markers
        self._marker: CrashMarker | None = None

    async def dispatch(
        self, delivery: Delivery, *, alone: Callable[[], bool], defer: bool = False
    ) -> Outcome:
        """As ``Dispatcher.dispatch``, unless the message has killed too many processes.

        Args:
            delivery: The suspect.
            alone: Whether nothing else is in hand, and nothing else can begin.
            defer: Whether it is to be put aside, because something slow is still in hand.
        """
        deaths = self._markers.count(delivery.id)
        if (verdict := _check_limits(delivery, deaths)) is not None:
            outcome = await self._dispatcher.give_up(delivery, verdict)
        elif defer:
            outcome = await self._dispatcher.defer(
                delivery,
                max(HELD_UP_LASTS, timedelta(seconds=DEFER_FACTOR * exclusive_wait(delivery))),
                code="busy_consumer",
                deferrals=delivery.deferrals + 1,
            )
        else:
            self._tell(delivery, deaths)
            outcome = await self._dispatch_noted(delivery, alone=alone())
        if outcome is not Outcome.DEFERRED:  # a copy will come, and with it the question
            self._markers.remove(delivery.id)
        return outcome

    async def _dispatch_noted(self, delivery: Delivery, *, alone: bool) -> Outcome:
        if not alone:
            return await self._dispatcher.dispatch(delivery)
        marker = self._marker = CrashMarker(self._markers.folder, delivery.id)
        marker.write()
        try:
            return await self._dispatcher.dispatch(delivery)
        finally:
            marker.withdraw()

    def no_longer_exclusive(self) -> None:
        """Take back what was noted: from now on something else can be in hand as well."""
        if self._marker is not None:
            self._marker.withdraw()

    def _tell(self, delivery: Delivery, deaths: int) -> None:
        queue = self._dispatcher.route.queue
        metrics.QUARANTINED.labels(queue).inc()
        log.warning(
            "delivery.quarantined",
            queue=queue,
            previous_deliveries=delivery.previous_deliveries,
            crash_count=deaths,
        )


def _check_limits(delivery: Delivery, deaths: int) -> PermanentError | None:
    """Why a suspect must not be handled any more, if so."""
    if deaths >= CRASH_LIMIT:
        return ProcessKilledError(f"{deaths} processes died with this message alone in hand.")
    # The back-stop where no marker outlives its process: the broker's own limit sees only the
    # latest of the copies that were put aside.
    if delivery.previous_deliveries > WORK_DELIVERY_LIMIT:
        return DeliveryLimitError(f"Given {delivery.previous_deliveries} times in vain.")
    return None


class CrashMarkers:
    """A folder with one file for each suspect in hand; instances on one machine share it.

    Whoever handles a suspect holds a lock on its file, which ends with the process at the
    latest. So a file without a lock is one whose process is dead.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def of(cls, queue: str, folder: Path | None) -> "CrashMarkers":
        """The markers about messages of one queue.

        Args:
            queue: Its name.
            folder: Where markers lie; by default where the system keeps temporary files.
        """
        folder = folder or Path(tempfile.gettempdir()) / f"userstream-{os.getuid()}"
        return cls(folder / queue)

    def count(self, message_id: UUID) -> int:
        """How many processes died with the message alone in hand."""
        return sum(1 for _ in self._left_behind(message_id))

    def remove(self, message_id: UUID) -> None:
        """Forget the deaths: the message has been handled, or given up."""
        for path in self._left_behind(message_id):
            with suppress(OSError):  # the work is done all the same; in a day it is too old
                path.unlink(missing_ok=True)

    def _left_behind(self, message_id: UUID) -> Iterator[Path]:
        for path in self.folder.glob(f"{message_id}.*"):
            with suppress(OSError):  # its owner has just removed it, or still holds it
                about = path.lstat()
                if about.st_uid != os.getuid():  # anybody may write to the default folder
                    continue
                if time.time() - about.st_mtime > MARKER_MAX_AGE.total_seconds():
                    path.unlink()
                elif _is_nobodys(path):
                    yield path


class CrashMarker:
    """What says: this process has nothing but this message in hand."""

    def __init__(self, folder: Path, message_id: UUID) -> None:
        self._folder = folder
        self._path = folder / f"{message_id}.{uuid4().hex}"
        self._descriptor: int | None = None

    def write(self) -> None:
        """Leave the marker; without one a death proves nothing, and the message goes on."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = _locked(self._path)
        except OSError as error:
            log.warning("quarantine.marker_failed", reason=error.strerror or type(error).__name__)

    def withdraw(self) -> None:
        """Remove the marker, if it is there."""
        if self._descriptor is not None:
            with suppress(OSError):
                self._path.unlink()
            os.close(self._descriptor)
            self._descriptor = None


def _locked(path: Path) -> int:
    """Make a file that is locked from the moment it has its name; returns its descriptor."""
    fresh = path.with_name(f".{path.name}")
    flags = os.O_CREAT | os.O_EXCL | os.O_RDONLY | os.O_NOFOLLOW
    descriptor = os.open(fresh, flags, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fresh.rename(path)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _is_nobodys(path: Path) -> bool:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True
