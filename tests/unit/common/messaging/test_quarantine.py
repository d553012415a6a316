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
    CrashMarker,
    CrashMarkers,
    Quarantine,
    exclusive_wait,
    is_suspect,
)

ROOT = Path(__file__).parents[4]

DIE_WITH_A_NOTE = """
import os, signal, sys
from pathlib import Path
from uuid import UUID
from common.messaging.quarantine import CrashMarker

CrashMarker(Path(sys.argv[1]), UUID(sys.argv[2])).write()
os.kill(os.getpid(), signal.SIGKILL)
"""


class FakeDispatcher:
    """Does what the test says; remembers what it had to give up."""

    route = USER_REGISTRATION

    def __init__(
        self,
        handle: Callable[[], Awaitable[None]] | None = None,
        outcome: Outcome = Outcome.HANDLED,
    ) -> None:
        self.handle = handle
        self.outcome = outcome
        self.handled = 0
        self.given_up: list[PermanentError] = []
        self.put_asides: list[tuple[str, int, float]] = []

    async def dispatch(self, _delivery: Delivery) -> Outcome:
        self.handled += 1
        if self.handle is not None:
            await self.handle()
        return self.outcome

    async def defer(
        self, _delivery: Delivery, again_after: timedelta, *, code: str, deferrals: int
    ) -> Outcome:
        self.put_asides.append((code, deferrals, again_after.total_seconds()))
        return Outcome.DEFERRED

    async def give_up(self, _delivery: Delivery, error: PermanentError) -> Outcome:
        self.given_up.append(error)
        return Outcome.DEAD_LETTERED


def a_suspect(count: Any = 3) -> Delivery:
    headers = {} if count is None else {DELIVERY_COUNT: count}
    return Delivery(body=b"{}", routing_key="", message_id=str(uuid4()), headers=headers)


def suspects(tmp_path: Path, dispatcher: FakeDispatcher) -> Quarantine:
    return Quarantine(dispatcher, CrashMarkers(tmp_path))  # type: ignore[arg-type]


def notes_in(folder: Path, message_id: UUID | None = None) -> list[Path]:
    return list(folder.glob(f"{message_id}.*" if message_id else "*"))


def die_with(message_id: UUID, folder: Path, *, times: int = 1) -> None:
    """Let processes die while they hold a marker about the message."""
    for _ in range(times):
        command = [sys.executable, "-c", DIE_WITH_A_NOTE, str(folder), str(message_id)]
        done = subprocess.run(command, cwd=ROOT, check=False)
        assert done.returncode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("count", "suspect"),
    [(None, False), (0, False), (2, False), (3, True), (99, True), ("7", False)],
)
def test_who_was_given_three_times_in_vain_is_a_suspect(count: Any, *, suspect: bool) -> None:
    assert is_suspect(a_suspect(count)) is suspect


@pytest.mark.parametrize(
    ("before", "count", "suspect"),
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
def test_copies_that_were_put_aside_count_too(before: Any, count: Any, *, suspect: bool) -> None:
    delivery = a_suspect(count)
    delivery.headers[PREVIOUS_DELIVERIES] = before

    assert is_suspect(delivery) is suspect


async def test_a_suspect_is_noted_while_it_is_handled_and_not_after(tmp_path: Path) -> None:
    delivery = a_suspect()
    seen: list[list[Path]] = []

    async def handle() -> None:
        seen.append(notes_in(tmp_path))

    outcome = await suspects(tmp_path, FakeDispatcher(handle)).dispatch(
        delivery, alone=lambda: True
    )

    assert outcome is Outcome.HANDLED
    assert [path.name.partition(".")[0] for path in seen[0]] == [str(delivery.id)]
    assert notes_in(tmp_path) == []


async def test_a_suspect_in_company_is_not_noted(tmp_path: Path) -> None:
    async def handle() -> None:
        assert notes_in(tmp_path) == []

    await suspects(tmp_path, FakeDispatcher(handle)).dispatch(a_suspect(), alone=lambda: False)


@pytest.mark.parametrize(
    "error", [DatabaseServiceUnavailableError("gone"), asyncio.CancelledError()]
)
async def test_an_outage_or_a_stop_leaves_no_note(tmp_path: Path, error: BaseException) -> None:
    async def handle() -> None:
        raise error

    with pytest.raises(type(error)):
        await suspects(tmp_path, FakeDispatcher(handle)).dispatch(a_suspect(), alone=lambda: True)

    assert notes_in(tmp_path) == []


async def test_a_new_channel_ends_the_note(tmp_path: Path) -> None:
    dispatcher = FakeDispatcher()
    handling = suspects(tmp_path, dispatcher)

    async def handle() -> None:
        handling.no_longer_exclusive()
        assert notes_in(tmp_path) == []

    dispatcher.handle = handle
    await handling.dispatch(a_suspect(), alone=lambda: True)
    assert dispatcher.handled == 1


@pytest.mark.slow
async def test_who_is_put_aside_keeps_its_deaths_and_leaves_no_note(tmp_path: Path) -> None:
    delivery = a_suspect()
    dispatcher = FakeDispatcher(outcome=Outcome.DEFERRED)
    die_with(delivery.id, tmp_path, times=2)

    await suspects(tmp_path, dispatcher).dispatch(delivery, alone=lambda: True)

    assert CrashMarkers(tmp_path).count(delivery.id) == len(notes_in(tmp_path)) == 2


@pytest.mark.parametrize(("before", "seconds"), [(0, 30), (2, 30), (4, 64), (50, 480)])
async def test_who_is_held_up_is_put_aside_unhandled_and_longer_each_time(
    tmp_path: Path, before: int, seconds: float
) -> None:
    delivery, dispatcher = a_suspect(), FakeDispatcher()
    delivery.headers[DEFERRALS] = before

    outcome = await suspects(tmp_path, dispatcher).dispatch(
        delivery, alone=lambda: False, defer=True
    )

    assert outcome is Outcome.DEFERRED
    assert dispatcher.put_asides == [("busy_consumer", before + 1, seconds)]
    assert dispatcher.handled == 0


@pytest.mark.slow
async def test_who_is_held_up_is_given_up_all_the_same_when_it_has_killed_too_often(
    tmp_path: Path,
) -> None:
    delivery, dispatcher = a_suspect(), FakeDispatcher()
    die_with(delivery.id, tmp_path, times=CRASH_LIMIT)

    await suspects(tmp_path, dispatcher).dispatch(delivery, alone=lambda: False, defer=True)

    assert [error.code for error in dispatcher.given_up] == ["process_killed"]
    assert dispatcher.put_asides == []


@pytest.mark.parametrize(
    ("deferrals", "seconds"),
    [(None, 1), (0, 1), (1, 2), (3, 8), (50, 120), (2**40, 1), (-1, 1), (True, 1)],
)
def test_patience_doubles_each_time_up_to_two_minutes(deferrals: Any, seconds: float) -> None:
    delivery = a_suspect()
    delivery.headers[DEFERRALS] = deferrals

    assert exclusive_wait(delivery) == seconds


def test_a_process_that_lives_is_no_death(tmp_path: Path) -> None:
    message_id = uuid4()
    marker = CrashMarker(tmp_path, message_id)

    marker.write()
    assert CrashMarkers(tmp_path).count(message_id) == 0
    marker.withdraw()
    assert notes_in(tmp_path) == []


@pytest.mark.slow
async def test_a_message_that_has_killed_too_often_is_given_up_unhandled(tmp_path: Path) -> None:
    delivery, dispatcher = a_suspect(), FakeDispatcher()
    die_with(delivery.id, tmp_path, times=CRASH_LIMIT)

    outcome = await suspects(tmp_path, dispatcher).dispatch(delivery, alone=lambda: True)

    assert outcome is Outcome.DEAD_LETTERED
    assert [error.code for error in dispatcher.given_up] == ["process_killed"]
    assert dispatcher.handled == 0
    assert notes_in(tmp_path) == []  # sent back later, it begins anew


@pytest.mark.parametrize(("before", "given_up"), [(98, []), (99, ["delivery_limit"])])
async def test_copies_share_the_limit_of_deliveries_that_the_broker_has_for_each(
    tmp_path: Path, before: int, given_up: list[str]
) -> None:
    delivery, dispatcher = a_suspect(WORK_DELIVERY_LIMIT - 98), FakeDispatcher()
    delivery.headers[PREVIOUS_DELIVERIES] = before

    await suspects(tmp_path, dispatcher).dispatch(delivery, alone=lambda: True)

    assert [error.code for error in dispatcher.given_up] == given_up
    assert dispatcher.handled == 1 - len(given_up)


@pytest.mark.slow
async def test_other_messages_and_older_deaths_do_not_count(tmp_path: Path) -> None:
    delivery, dispatcher = a_suspect(), FakeDispatcher()
    die_with(uuid4(), tmp_path)
    die_with(delivery.id, tmp_path, times=CRASH_LIMIT)
    old = time.time() - MARKER_MAX_AGE.total_seconds() - 1
    os.utime(notes_in(tmp_path, delivery.id)[0], (old, old))

    outcome = await suspects(tmp_path, dispatcher).dispatch(delivery, alone=lambda: True)

    assert outcome is Outcome.HANDLED
    assert dispatcher.given_up == []
    assert len(notes_in(tmp_path)) == 1  # the other message's


async def test_a_folder_that_can_not_be_written_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    dispatcher = FakeDispatcher()

    outcome = await suspects(tmp_path / "file" / "markers", dispatcher).dispatch(
        a_suspect(), alone=lambda: True
    )

    assert outcome is Outcome.HANDLED
