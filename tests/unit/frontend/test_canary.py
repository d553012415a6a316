import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from common.contracts.canary import is_canary
from common.contracts.registrations import Journey, JourneyStatus
from common.errors import BrokerUnavailableError, DatabaseServiceUnavailableError, UpstreamError
from frontend import canary
from frontend.canary import Canary
from tests.polling import until

EVERY_SECONDS = 0.05
"""Short, so that the tests are; what is late after it is late on any machine."""


@dataclass(slots=True)
class FakePipeline:
    """Takes a canary as far as ``reaches``, or does what it is told instead."""

    reaches: JourneyStatus = JourneyStatus.MAILED
    refusal: Exception | None = None
    unreadable: Exception | None = None
    unremovable: Exception | None = None
    registered: list[UUID] = field(default_factory=list)
    removed: list[UUID] = field(default_factory=list)
    lost: set[UUID] = field(default_factory=set)
    """Those whose messages are gone."""

    refused: int = 0
    polls: int = 0
    most_in_progress: int = 0

    async def register(self, canary_id: UUID) -> None:
        await asyncio.sleep(0)
        if self.refusal:
            self.refused += 1
            raise self.refusal
        self.registered.append(canary_id)
        self.most_in_progress = max(self.most_in_progress, len(self.registered) - len(self.removed))

    async def select_journey(self, registration_id: UUID) -> Journey:
        await asyncio.sleep(0)
        self.polls += 1
        if self.unreadable:
            raise self.unreadable
        reached = JourneyStatus.PENDING if registration_id in self.lost else self.reaches
        return Journey(registration_id=registration_id, status=reached)

    async def delete_canary(self, canary_id: UUID) -> None:
        await asyncio.sleep(0)
        if self.unremovable:
            raise self.unremovable
        self.removed.append(canary_id)


@pytest.fixture
def pipeline() -> FakePipeline:
    return FakePipeline()


@asynccontextmanager
async def run(
    pipeline: FakePipeline, every_seconds: float = EVERY_SECONDS
) -> AsyncIterator[Canary]:
    canaries = Canary(
        every_seconds=every_seconds, register=pipeline.register, registrations=pipeline
    )
    async with canaries.run():
        yield canaries


def events(lines: list[Any]) -> list[tuple[str, str]]:
    return [
        (line["event"], line.get("code", ""))
        for line in lines
        if line["event"].startswith("canary.")
    ]


async def test_canaries_are_mailed_and_removed(pipeline: FakePipeline) -> None:
    with capture_logs() as lines:
        async with run(pipeline) as canaries:
            assert canaries.note().detail == "no full round trip yet"
            await until(lambda: len(pipeline.removed) >= 3, "three round trips")
            note = canaries.note()

    assert pipeline.removed == pipeline.registered[: len(pipeline.removed)]
    assert all(map(is_canary, pipeline.registered))
    assert len(set(pipeline.registered)) == len(pipeline.registered)
    assert not note.warning
    assert note.detail.startswith("last full round trip 0 s ago, ")
    assert set(note.facts) == {"secondsAgo", "milliseconds"}
    assert events(lines) == []  # all is well: not a word


@pytest.mark.parametrize(
    ("reaches", "code", "words"),
    [
        (JourneyStatus.PENDING, "not_stored", "is not stored"),
        (JourneyStatus.STORED, "not_mailed", "is stored, but not mailed"),
    ],
)
async def test_one_that_is_late_is_reported_once_and_followed_until_it_is_mailed(
    pipeline: FakePipeline, reaches: JourneyStatus, code: str, words: str
) -> None:
    pipeline.reaches = reaches
    with capture_logs() as lines:
        async with run(pipeline) as canaries:
            await until(lambda: canaries.note().warning, "the warning")
            polls = pipeline.polls
            await until(lambda: pipeline.polls >= polls + 3, "further polls")
            assert words in canaries.note().detail
            assert len(pipeline.registered) == 1  # an outage leaves no others behind
            pipeline.reaches = JourneyStatus.MAILED
            await until(lambda: not canaries.note().warning, "the end of the warning")

    assert events(lines) == [("canary.failed", code), ("canary.recovered", "")]


async def test_one_is_late_long_before_the_next_one_if_those_are_rare(
    pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(random, "uniform", lambda _low, _high: 0.0)  # the first leaves at once
    monkeypatch.setattr(canary, "LATE_SECONDS", 0.01)
    pipeline.reaches = JourneyStatus.PENDING
    async with run(pipeline, every_seconds=3600.0) as canaries:
        await until(lambda: canaries.note().warning, "the warning")


async def test_one_that_is_refused_says_why_once_and_the_next_one_tries_again(
    pipeline: FakePipeline,
) -> None:
    pipeline.refusal = BrokerUnavailableError("The broker takes no messages.")
    with capture_logs() as lines:
        async with run(pipeline) as canaries:
            await until(lambda: canaries.note().warning, "the warning")
            assert "The broker takes no messages" in canaries.note().detail
            await until(lambda: pipeline.refused >= 3, "further refusals")
            pipeline.refusal = None
            await until(lambda: not canaries.note().warning, "the end of the warning")

    assert events(lines) == [
        ("canary.failed", "refused.broker_unavailable"),
        ("canary.recovered", ""),
    ]


async def test_an_unreadable_journey_is_no_end_of_it(pipeline: FakePipeline) -> None:
    pipeline.unreadable = DatabaseServiceUnavailableError("away")
    with capture_logs() as lines:
        async with run(pipeline) as canaries:
            await until(lambda: canaries.note().warning, "the warning")
            assert "cannot be read" in canaries.note().detail
            pipeline.unreadable = None
            await until(lambda: not canaries.note().warning, "the end of the warning")

    assert events(lines)[0] == ("canary.failed", "unreadable.database_service_unavailable")


async def test_one_whose_mail_failed_is_removed_and_reported(pipeline: FakePipeline) -> None:
    pipeline.reaches = JourneyStatus.MAIL_FAILED
    async with run(pipeline) as canaries:
        await until(lambda: len(pipeline.removed) > 0, "the removal")

        assert "recorded as failed" in canaries.note().detail
        assert canaries.note().warning


async def test_one_that_never_comes_is_given_up_and_another_one_sent(
    pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "GIVE_UP_SECONDS", 0.02)
    pipeline.reaches = JourneyStatus.PENDING
    async with run(pipeline) as canaries:
        await until(lambda: len(pipeline.registered) >= 2, "another canary")

        assert canaries.note().warning
    assert pipeline.most_in_progress == 1


async def test_one_that_is_lost_does_not_hide_the_recovery(
    pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its message is gone for good; the next ones are mailed, long before it is given up."""
    monkeypatch.setattr(canary, "NEXT_AFTER_SECONDS", 0.02)
    pipeline.reaches = JourneyStatus.PENDING
    with capture_logs() as lines:
        async with run(pipeline) as canaries:
            await until(lambda: canaries.note().warning, "the warning")
            lost = [*pipeline.registered]
            pipeline.lost.update(lost)
            pipeline.reaches = JourneyStatus.MAILED
            await until(lambda: not canaries.note().warning, "the end of the warning")
            await until(lambda: set(lost) <= set(pipeline.removed), "the lost ones being removed")
            mailed = len(pipeline.removed)
            await until(lambda: len(pipeline.removed) > mailed + 3, "further round trips")
            assert not canaries.note().warning

    assert events(lines) == [("canary.failed", "not_stored"), ("canary.recovered", "")]


async def test_in_an_outage_the_next_one_waits_its_minute(
    pipeline: FakePipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(canary, "NEXT_AFTER_SECONDS", 0.2)
    pipeline.reaches = JourneyStatus.PENDING
    async with run(pipeline) as canaries:
        await until(lambda: len(pipeline.registered) >= 3, "further canaries")
        polls = pipeline.polls
        await until(lambda: pipeline.polls > polls, "a poll")
        assert canaries.note().warning

    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_one_that_cannot_be_removed_was_a_round_trip_all_the_same(
    pipeline: FakePipeline,
) -> None:
    pipeline.unremovable = UpstreamError("no")
    with capture_logs() as lines:
        async with run(pipeline) as canaries:
            await until(lambda: len(pipeline.registered) >= 3, "three round trips")
            note = canaries.note()

    assert not note.warning
    assert events(lines) == [("canary.not_removed", "upstream_error")]


async def test_stopping_waits_for_nothing(pipeline: FakePipeline) -> None:
    pipeline.reaches = JourneyStatus.PENDING
    async with run(pipeline):
        await until(lambda: len(pipeline.registered) == 1, "a canary in progress")

    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert pipeline.removed == []  # it may still come; stale ones are swept


async def test_a_canary_that_stopped_is_reported(pipeline: FakePipeline) -> None:
    async with run(pipeline) as canaries:
        await until(lambda: len(pipeline.removed) >= 1, "a round trip")
        canaries.stop()
        await until(lambda: canaries.note().warning, "the warning")

        assert canaries.note().detail.startswith("No canary is sent any more (last full round trip")
