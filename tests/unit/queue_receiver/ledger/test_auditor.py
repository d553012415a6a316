import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID, uuid4

import pytest
from structlog.testing import capture_logs

from common.amqp.dead_letter_queue import DeadLetterQueue
from common.amqp.message import Delivery
from common.amqp.queue_depths import QueueDepth
from common.amqp.stream import Start
from common.contracts.ledger import (
    MAX_VERIFIED,
    Acknowledged,
    AcknowledgeIncidents,
    AcknowledgeRequest,
    Incident,
    IncidentKind,
    Ledger,
    LedgerBatch,
    LedgerPosition,
    LedgerTotals,
    MailCounts,
    MissingRegistration,
    Reconciliation,
    ReconciliationRequest,
    WorkBinding,
)
from common.errors import BrokerUnavailableError, ConflictError, TopologyMissingError
from queue_receiver.ledger import auditor as ledger_module
from queue_receiver.ledger.auditor import Auditor
from queue_receiver.ledger.reader import Item, Progress

LOST_AFTER = timedelta(minutes=10)


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "RECHECK_AFTER", 0)


class EmptyStream:
    """A stream in which nothing new is to be read."""

    async def read(
        self,
        _stream: str,
        _start: Start,
        _take: Callable[[int, Delivery], Item | None],
        *,
        limit: int,
        throttled: bool = False,
    ) -> list[Item]:
        del limit, throttled
        return []


@dataclass
class FakeStore:
    """Who is missing, by the age in seconds."""

    missing: dict[UUID, float] = field(default_factory=dict)
    claimed_age: float = 0
    """Seconds by which a publisher's clock makes registrations older than they are."""

    incidents: list[Incident] = field(default_factory=list)
    acknowledged: list[AcknowledgeIncidents] = field(default_factory=list)
    stored_up_to: timedelta | None = None
    """How long ago the youngest that is stored was accepted."""

    on_reconcile: Callable[[], None] = lambda: None
    verified: list[int] = field(default_factory=list)

    async def select_ledger_position(self, _stream: str) -> LedgerPosition:
        return LedgerPosition(next_offset=0)

    async def insert_ledger_entries(self, _batch: LedgerBatch) -> LedgerPosition:
        raise AssertionError("nothing was read")

    async def reconcile_ledger(self, request: ReconciliationRequest) -> Reconciliation:
        now = datetime.now(UTC)
        self.verified.append(request.verify)
        old = [
            MissingRegistration(
                registration_id=key,
                accepted_at=now - timedelta(seconds=age + self.claimed_age),
                read_at=now - timedelta(seconds=age),
                stream_offset=0,
            )
            for key, age in self.missing.items()
            if age >= request.missing_for_seconds
        ]
        self.on_reconcile()
        return Reconciliation(
            totals=LedgerTotals(
                accepted=len(self.missing),
                repeated=0,
                stored=0,
                duplicates=0,
                missing=len(self.missing),
                mails=MailCounts(),
                truncated=0,
                restarts=0,
            ),
            stored_up_to=now - self.stored_up_to if self.stored_up_to is not None else None,
            missing_for_long=len(old),
            missing=old,
            incidents=self.incidents,
        )

    async def acknowledge_incidents(self, request: AcknowledgeIncidents) -> Acknowledged:
        self.acknowledged.append(request)
        closed, self.incidents = self.incidents, []
        return Acknowledged(acknowledged=closed)


@dataclass
class FakeQueues:
    ready: int = 0
    retrying: int = 0
    dead: int = 0
    unacknowledged: int | None = 0
    bound: bool | None = True

    async def read(self) -> QueueDepth:
        return QueueDepth(
            ready=self.ready,
            retrying=self.retrying,
            dead=self.dead,
            unacknowledged=self.unacknowledged,
            bound=self.bound,
        )


@dataclass
class FakeDeadLetterQueue:
    """The dead letters, some of which cannot be read."""

    ids: list[UUID] = field(default_factory=list)
    unlisted: int = 0
    in_use: bool = False
    looked: int = 0

    @asynccontextmanager
    async def held(self, _wanted: object) -> AsyncIterator[Any]:
        self.looked += 1
        if self.in_use:
            raise ConflictError
        messages = [SimpleNamespace(id=key, code="malformed") for key in self.ids]
        ready = len(self.ids) + self.unlisted
        yield SimpleNamespace(messages=messages, ready=ready, is_locked_by_another_reader=False)


@dataclass
class World:
    """An auditor with everything around it."""

    store: FakeStore = field(default_factory=FakeStore)
    queues: FakeQueues = field(default_factory=FakeQueues)
    dead_letters: FakeDeadLetterQueue = field(default_factory=FakeDeadLetterQueue)

    def __post_init__(self) -> None:
        self.auditor = Auditor(
            stream=EmptyStream(),
            store=self.store,
            queues=self.queues,
            dead_letters=cast(DeadLetterQueue, self.dead_letters),
            lost_after=LOST_AFTER,
        )

    def missing(self, age: float) -> UUID:
        key = uuid4()
        self.store.missing[key] = age
        return key

    async def lost(self) -> set[UUID]:
        ledger: Ledger = await self.auditor.reconcile()
        assert ledger.lost == len(ledger.lost_registrations)
        return {lost.registration_id for lost in ledger.lost_registrations}


@pytest.fixture
def world() -> World:
    return World()


async def test_who_is_old_and_nowhere_is_lost(world: World) -> None:
    old = world.missing(age=700)
    world.missing(age=500)

    assert await world.lost() == {old}
    assert world.auditor.note().warning
    assert "1 accepted" in world.auditor.note().detail


async def test_a_backlog_is_not_lost_however_old(world: World) -> None:
    world.missing(age=7000)
    world.queues.ready = 1
    world.store.stored_up_to = timedelta(seconds=7010)  # the queue has not come so far

    assert await world.lost() == set()


async def test_whom_the_work_queue_has_passed_long_ago_is_lost_though_it_is_busy(
    world: World,
) -> None:
    passed, waiting = world.missing(age=3000), world.missing(age=1000)
    world.queues.ready, world.queues.unacknowledged = 50, 100
    world.store.stored_up_to = timedelta(seconds=900)

    assert await world.lost() == {passed}

    del waiting


async def test_an_old_clock_of_a_publisher_makes_nobody_pass_for_lost(world: World) -> None:
    """What counts is when it was read: by its publisher's clock all of it is two hours old."""
    world.missing(age=700)
    world.store.claimed_age = 7200
    world.queues.unacknowledged = 1
    world.store.stored_up_to = timedelta(seconds=200)

    assert await world.lost() == set()


def an_incident(kind: IncidentKind, **changes: Any) -> Incident:
    values: dict[str, Any] = {
        "incident_id": 1,
        "kind": kind,
        "noticed_at": datetime(2026, 1, 31, 9, 30, tzinfo=UTC),
        "last_read_at": datetime(2026, 1, 31, 9, 29, tzinfo=UTC),
        "accepted_before": 1000,
        "stored_by_then": 700,
        "not_provable": 300,
    }
    return Incident.model_validate(values | changes)


@pytest.mark.parametrize("kind", list(IncidentKind))
async def test_what_cannot_be_accounted_for_is_red_until_it_is_acknowledged(
    world: World, kind: IncidentKind
) -> None:
    world.store.incidents = [an_incident(kind)]

    ledger = await world.auditor.reconcile()

    assert [incident.kind for incident in ledger.incidents] == [kind]
    note = world.auditor.note()
    assert (note.warning, note.facts["incidents"]) == (True, 1)
    assert "2026-01-31 09:30:00" in note.detail
    assert "--acknowledge" in note.detail

    done = await world.auditor.acknowledge_incidents(
        AcknowledgeRequest(reason="disk", acknowledged_by="ada")
    )

    assert len(done.acknowledged) == 1
    assert world.store.acknowledged == [
        AcknowledgeIncidents(stream="user.registration.log", reason="disk", acknowledged_by="ada")
    ]
    assert not world.auditor.note().warning


async def test_an_empty_stream_is_believed_only_after_a_while(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    believed: list[bool] = []

    async def read_new_entries(*_: object, is_empty: bool, **_options: object) -> Progress:
        believed.append(is_empty)
        return Progress(9, caught_up=False, is_empty=len(believed) != 3)

    monkeypatch.setattr(ledger_module, "read_new_entries", read_new_entries)
    for empty_for in (60, 60, -1, 60, -1):  # the third finds a message
        monkeypatch.setattr(ledger_module, "EMPTY_FOR", empty_for)
        await world.auditor.reconcile()

    assert believed == [False, False, True, False, True]


@pytest.mark.parametrize("place", ["ready", "retrying", "unacknowledged"])
async def test_while_anything_is_in_a_queue_it_may_be_the_missing_one(
    world: World, place: str
) -> None:
    world.missing(age=3000)
    setattr(world.queues, place, 1)
    world.store.stored_up_to = timedelta(seconds=2900)

    assert await world.lost() == set()


async def test_while_messages_wait_to_be_retried_nobody_is_lost(world: World) -> None:
    world.missing(age=3000)
    world.queues.retrying = 1
    world.store.stored_up_to = timedelta()

    assert await world.lost() == set()


async def test_a_dead_letter_is_not_lost_and_its_reason_is_told(world: World) -> None:
    lost, dead = world.missing(age=700), world.missing(age=700)
    world.dead_letters.ids, world.queues.dead = [dead], 1

    ledger = await world.auditor.reconcile()

    assert [one.registration_id for one in ledger.lost_registrations] == [lost]
    assert ledger.dead_lettered_by_code == {"malformed": 1}


async def test_as_many_as_dead_letters_could_not_be_read_are_not_called_lost(
    world: World,
) -> None:
    for _ in range(5):
        world.missing(age=700)
    world.dead_letters.unlisted, world.queues.dead = 3, 3

    ledger = await world.auditor.reconcile()

    assert (ledger.lost, ledger.dead_lettered) == (2, 3)


async def test_dead_letters_that_are_being_decided_on_stay_known(world: World) -> None:
    dead = world.missing(age=700)
    world.dead_letters.ids, world.queues.dead = [dead], 1
    assert await world.lost() == set()

    world.dead_letters.in_use, world.queues.dead = True, 0

    assert await world.lost() == set()


async def test_dead_letters_are_read_again_only_when_something_speaks_for_it(
    world: World,
) -> None:
    for _ in range(3):
        await world.auditor.reconcile()
    assert world.dead_letters.looked == 0

    world.dead_letters.ids, world.queues.dead = [world.missing(age=700)], 1
    for _ in range(3):
        await world.auditor.reconcile()
    assert world.dead_letters.looked == 1


async def test_who_is_stored_between_two_looks_was_never_lost(world: World) -> None:
    """An old message that somebody sent back may be in a receiver's hands, unseen."""
    world.missing(age=700)
    world.store.on_reconcile = world.store.missing.clear

    assert await world.lost() == set()


async def test_without_a_management_api_a_missing_binding_shows_by_what_arrives_nowhere(
    world: World,
) -> None:
    world.queues.bound = world.queues.unacknowledged = None
    await world.auditor.reconcile()
    await world.auditor.check_binding()

    world.missing(age=40)
    ledger = await world.auditor.reconcile()

    assert (ledger.lost, ledger.work_binding) == (0, WorkBinding.MISSING)
    with pytest.raises(TopologyMissingError):
        await world.auditor.check_binding()

    world.store.missing.clear()
    await world.auditor.reconcile()
    await world.auditor.check_binding()


async def test_a_dead_letter_does_not_speak_for_a_missing_binding(world: World) -> None:
    world.queues.bound = world.queues.unacknowledged = None
    world.dead_letters.ids, world.queues.dead = [world.missing(age=40)], 1

    ledger = await world.auditor.reconcile()

    assert ledger.work_binding == WorkBinding.UNKNOWN


async def test_while_it_is_behind_the_background_reads_on_without_waiting(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    behind = Progress(10, caught_up=False, has_more=True)
    further_behind = Progress(20, caught_up=False, has_more=True)
    at_the_end, not_up = Progress(25, caught_up=True), Progress(25, caught_up=False)
    away = BrokerUnavailableError("away")
    turns: list[Progress | BrokerUnavailableError] = [
        behind,
        further_behind,
        at_the_end,
        not_up,
        behind,
        away,
    ]
    happened: list[float | Progress | BrokerUnavailableError] = []
    wait_a_turn, is_over = asyncio.sleep, asyncio.Event()

    async def sleep(seconds: float) -> None:
        happened.append(seconds)
        await wait_a_turn(0)

    async def read_new_entries(*_: object, most: int, throttled: bool, is_empty: bool) -> Progress:
        assert not is_empty
        assert (most, throttled) == (ledger_module.MOST_IN_BACKGROUND, True)
        if not turns:
            is_over.set()
            await asyncio.Event().wait()
        happened.append(turn := turns.pop(0))
        if isinstance(turn, BrokerUnavailableError):
            raise turn
        return turn

    monkeypatch.setattr(asyncio, "sleep", sleep)
    monkeypatch.setattr(ledger_module, "read_new_entries", read_new_entries)
    async with world.auditor.running(timedelta(hours=1)):
        await is_over.wait()

    assert happened == [
        *(3600, behind, further_behind, at_the_end),
        *(3600, not_up),
        *(3600, behind, away),
        3600,
    ]


async def test_a_ledger_that_stays_unreadable_is_logged_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns, is_over = 3, asyncio.Event()

    async def fails(*_: object, **__: object) -> Progress:
        nonlocal turns
        turns -= 1
        if not turns:
            is_over.set()
        raise BrokerUnavailableError("Connection refused")

    monkeypatch.setattr(ledger_module, "read_new_entries", fails)
    with capture_logs() as logs:
        async with world.auditor.running(timedelta(milliseconds=1)):
            await is_over.wait()

    assert [line["event"] for line in logs] == ["ledger.unreadable"]


async def test_rows_are_looked_for_a_few_at_a_time_while_registrations_come_in(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    offsets = iter((5, 5, 9, 9))

    async def read_new_entries(*_: object, **__: object) -> Progress:
        return Progress(next_offset=next(offsets), caught_up=True)

    monkeypatch.setattr(ledger_module, "read_new_entries", read_new_entries)

    for _ in range(3):
        await world.auditor.reconcile(throttled=True)
    await world.auditor.reconcile()

    few, many = ledger_module.VERIFIED_BESIDE_WORK, ledger_module.VERIFIED_IN_BACKGROUND
    assert world.store.verified == [few, many, few, MAX_VERIFIED]
    assert few < many < MAX_VERIFIED
