import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from common.amqp.message import DEFERRALS, DELIVERY_COUNT, PREVIOUS_DELIVERIES, Delivery
from common.contracts.topology import USER_REGISTRATION, WORK_DELIVERY_LIMIT
from common.errors import DatabaseServiceUnavailableError, PermanentError
from common.messaging.dispatcher import Outcome
from common.messaging.quarantine import (
    CRASH_LIMIT,
    MARKER_MAX_AGE,
    CrashMarkers,
    Quarantine,
    exclusive_wait,
    needs_quarantine,
)

ROOT = Path(__file__).parents[4]

QUEUE = USER_REGISTRATION.queue

DIE_WITH_A_MARKER = """
import os, signal, sys
from pathlib import Path
from uuid import UUID
from common.messaging.quarantine import CrashMarkers

with CrashMarkers(sys.argv[1], Path(sys.argv[2])).placed(UUID(sys.argv[3])):
    os.kill(os.getpid(), signal.SIGKILL)
"""


class FakeDispatcher:
    """Does what the test says; remembers what it had to defer or dead-letter."""

    route = USER_REGISTRATION

    def __init__(
        self,
        handle: Callable[[], Awaitable[None]] | None = None,
        outcome: Outcome = Outcome.HANDLED,
    ) -> None:
        self.handle = handle
        self.outcome = outcome
        self.handled = 0
        self.dead_lettered: list[PermanentError] = []
        self.deferred: list[tuple[str, int, float]] = []

    async def dispatch(self, _delivery: Delivery) -> Outcome:
        self.handled += 1
        if self.handle is not None:
            await self.handle()
        return self.outcome

    async def defer(
        self, _delivery: Delivery, again_after: timedelta, *, code: str, deferrals: int
    ) -> Outcome:
        self.deferred.append((code, deferrals, again_after.total_seconds()))
        return Outcome.DEFERRED

    async def dead_letter(self, _delivery: Delivery, error: PermanentError) -> Outcome:
        self.dead_lettered.append(error)
        return Outcome.DEAD_LETTERED


def a_redelivered(count: Any = 3) -> Delivery:
    headers = {} if count is None else {DELIVERY_COUNT: count}
    return Delivery(body=b"{}", routing_key="", message_id=str(uuid4()), headers=headers)


def a_quarantine(tmp_path: Path, dispatcher: FakeDispatcher) -> Quarantine:
    return Quarantine(dispatcher, CrashMarkers(QUEUE, tmp_path))  # type: ignore[arg-type]


def markers_in(folder: Path, message_id: UUID | None = None) -> list[Path]:
    return list((folder / QUEUE).glob(f"{message_id}.*" if message_id else "*"))


def die_with(message_id: UUID, folder: Path, *, times: int = 1) -> None:
    """Let processes die while they hold a marker about the message."""
    for _ in range(times):
        command = [sys.executable, "-c", DIE_WITH_A_MARKER, QUEUE, str(folder), str(message_id)]
        done = subprocess.run(command, cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("count", "quarantined"),
    [(None, False), (0, False), (2, False), (3, True), (99, True), ("7", False)],
)
def test_a_message_that_was_redelivered_three_times_is_quarantined(
    count: Any, *, quarantined: bool
) -> None:
    assert needs_quarantine(a_redelivered(count)) is quarantined


@pytest.mark.parametrize(
    ("before", "count", "quarantined"),
    [
        (3, None, True),
        (2, 1, True),
        (2, None, False),
        (1, 1, False),
        (-9, 3, True),
        (2**63 - 1, 9, True),
        (2**40, 2, False),
        (2, 2**40, False),
        (True, 2, False),
        ("9", 2, False),
    ],
)
def test_deliveries_of_deferred_copies_count_too(
    before: Any, count: Any, *, quarantined: bool
) -> None:
    delivery = a_redelivered(count)
    delivery.headers[PREVIOUS_DELIVERIES] = before

    assert needs_quarantine(delivery) is quarantined


async def test_a_quarantined_message_has_a_marker_while_it_is_handled_and_not_after(
    tmp_path: Path,
) -> None:
    delivery = a_redelivered()
    seen: list[list[Path]] = []

    async def handle() -> None:
        seen.append(markers_in(tmp_path))

    outcome = await a_quarantine(tmp_path, FakeDispatcher(handle)).dispatch(
        delivery, is_exclusive=lambda: True
    )

    assert outcome is Outcome.HANDLED
    assert [path.name.partition(".")[0] for path in seen[0]] == [str(delivery.id)]
    assert markers_in(tmp_path) == []


async def test_a_message_that_is_not_alone_gets_no_marker(tmp_path: Path) -> None:
    async def handle() -> None:
        assert markers_in(tmp_path) == []

    await a_quarantine(tmp_path, FakeDispatcher(handle)).dispatch(
        a_redelivered(), is_exclusive=lambda: False
    )


@pytest.mark.parametrize(
    "error", [DatabaseServiceUnavailableError("gone"), asyncio.CancelledError()]
)
async def test_an_outage_or_a_stop_leaves_no_marker(tmp_path: Path, error: BaseException) -> None:
    async def handle() -> None:
        raise error

    with pytest.raises(type(error)):
        await a_quarantine(tmp_path, FakeDispatcher(handle)).dispatch(
            a_redelivered(), is_exclusive=lambda: True
        )

    assert markers_in(tmp_path) == []


async def test_a_new_channel_removes_the_marker(tmp_path: Path) -> None:
    dispatcher = FakeDispatcher()
    handling = a_quarantine(tmp_path, dispatcher)

    async def handle() -> None:
        handling.no_longer_exclusive()
        assert markers_in(tmp_path) == []

    dispatcher.handle = handle
    await handling.dispatch(a_redelivered(), is_exclusive=lambda: True)
    assert dispatcher.handled == 1


@pytest.mark.slow
async def test_a_deferred_message_keeps_its_crashes_and_leaves_no_marker(tmp_path: Path) -> None:
    delivery = a_redelivered()
    dispatcher = FakeDispatcher(outcome=Outcome.DEFERRED)
    die_with(delivery.id, tmp_path, times=2)

    await a_quarantine(tmp_path, dispatcher).dispatch(delivery, is_exclusive=lambda: True)

    assert CrashMarkers(QUEUE, tmp_path).count(delivery.id) == len(markers_in(tmp_path)) == 2


@pytest.mark.parametrize(("before", "seconds"), [(0, 30), (2, 30), (4, 64), (50, 480)])
async def test_a_message_that_waited_too_long_is_deferred_unhandled_and_longer_each_time(
    tmp_path: Path, before: int, seconds: float
) -> None:
    delivery, dispatcher = a_redelivered(), FakeDispatcher()
    delivery.headers[DEFERRALS] = before

    outcome = await a_quarantine(tmp_path, dispatcher).dispatch(
        delivery, is_exclusive=lambda: False, defer=True
    )

    assert outcome is Outcome.DEFERRED
    assert dispatcher.deferred == [("busy_consumer", before + 1, seconds)]
    assert dispatcher.handled == 0


@pytest.mark.slow
async def test_a_message_that_waited_too_long_and_killed_too_often_is_dead_lettered(
    tmp_path: Path,
) -> None:
    delivery, dispatcher = a_redelivered(), FakeDispatcher()
    die_with(delivery.id, tmp_path, times=CRASH_LIMIT)

    await a_quarantine(tmp_path, dispatcher).dispatch(
        delivery, is_exclusive=lambda: False, defer=True
    )

    assert [error.code for error in dispatcher.dead_lettered] == ["process_killed"]
    assert dispatcher.deferred == []


@pytest.mark.parametrize(
    ("deferrals", "seconds"),
    [(None, 1), (0, 1), (1, 2), (3, 8), (50, 120), (2**40, 1), (-1, 1), (True, 1)],
)
def test_the_exclusive_wait_doubles_each_time_up_to_two_minutes(
    deferrals: Any, seconds: float
) -> None:
    delivery = a_redelivered()
    delivery.headers[DEFERRALS] = deferrals

    assert exclusive_wait(delivery) == seconds


def test_a_process_that_lives_is_no_crash(tmp_path: Path) -> None:
    message_id = uuid4()

    with CrashMarkers(QUEUE, tmp_path).placed(message_id):
        assert markers_in(tmp_path, message_id)
        assert CrashMarkers(QUEUE, tmp_path).count(message_id) == 0

    assert markers_in(tmp_path) == []


@pytest.mark.slow
async def test_a_message_that_has_killed_too_often_is_dead_lettered_unhandled(
    tmp_path: Path,
) -> None:
    delivery, dispatcher = a_redelivered(), FakeDispatcher()
    die_with(delivery.id, tmp_path, times=CRASH_LIMIT)

    outcome = await a_quarantine(tmp_path, dispatcher).dispatch(delivery, is_exclusive=lambda: True)

    assert outcome is Outcome.DEAD_LETTERED
    assert [error.code for error in dispatcher.dead_lettered] == ["process_killed"]
    assert dispatcher.handled == 0
    assert markers_in(tmp_path) == []  # sent back later, it begins anew


@pytest.mark.parametrize(("before", "dead_lettered"), [(98, []), (99, ["delivery_limit"])])
async def test_copies_share_the_limit_of_deliveries_that_the_broker_has_for_each(
    tmp_path: Path, before: int, dead_lettered: list[str]
) -> None:
    delivery, dispatcher = a_redelivered(WORK_DELIVERY_LIMIT - 98), FakeDispatcher()
    delivery.headers[PREVIOUS_DELIVERIES] = before

    await a_quarantine(tmp_path, dispatcher).dispatch(delivery, is_exclusive=lambda: True)

    assert [error.code for error in dispatcher.dead_lettered] == dead_lettered
    assert dispatcher.handled == 1 - len(dead_lettered)


@pytest.mark.slow
async def test_other_messages_and_older_crashes_do_not_count(tmp_path: Path) -> None:
    delivery, dispatcher = a_redelivered(), FakeDispatcher()
    die_with(uuid4(), tmp_path)
    die_with(delivery.id, tmp_path, times=CRASH_LIMIT)
    old = time.time() - MARKER_MAX_AGE.total_seconds() - 1
    os.utime(markers_in(tmp_path, delivery.id)[0], (old, old))

    outcome = await a_quarantine(tmp_path, dispatcher).dispatch(delivery, is_exclusive=lambda: True)

    assert outcome is Outcome.HANDLED
    assert dispatcher.dead_lettered == []
    assert len(markers_in(tmp_path)) == 1  # the other message's


async def test_a_folder_that_cannot_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    dispatcher = FakeDispatcher()

    outcome = await a_quarantine(tmp_path / "file" / "markers", dispatcher).dispatch(
        a_redelivered(), is_exclusive=lambda: True
    )

    assert outcome is Outcome.HANDLED
