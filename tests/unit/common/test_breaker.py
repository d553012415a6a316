import asyncio
from collections.abc import Awaitable, Callable

import pytest

from common.breaker import Breaker
from common.errors import DatabaseServiceUnavailableError, PermanentError, UnavailableError
from tests.polling import until

GONE = DatabaseServiceUnavailableError("gone")

Sleep = Callable[[float], Awaitable[None]]


class Recorded:
    """A breaker, what it said, and how long it would have paused."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.paused_for: list[UnavailableError] = []
        self.resumed = 0
        self.pauses: list[float] = []
        self.breaker = Breaker(
            on_pause=self.paused_for.append, on_resume=self._on_resume, first_pause=1.0
        )
        self._turn: Sleep = asyncio.sleep
        monkeypatch.setattr(asyncio, "sleep", self._sleep)

    def _on_resume(self) -> None:
        self.resumed += 1

    async def _sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        await self._turn(0)

    async def work(self, error: BaseException | None = None) -> None:
        async with self.breaker.passage():
            if error is not None:
                raise error

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            with pytest.raises(UnavailableError):
                await self.work(GONE)

    async def turns(self, count: int = 20) -> None:
        """Let everybody go as far as they can."""
        for _ in range(count):
            await self._turn(0)


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


async def test_everyone_passes_at_once_while_the_neighbours_answer(recorded: Recorded) -> None:
    inside, leave = 0, asyncio.Event()

    async def work() -> None:
        nonlocal inside
        async with recorded.breaker.passage():
            inside += 1
            await leave.wait()

    tasks = [asyncio.create_task(work()) for _ in range(5)]
    await recorded.turns()
    assert inside == 5
    leave.set()
    await asyncio.gather(*tasks)

    assert recorded.pauses == []
    assert not recorded.breaker.paused


async def test_the_first_failure_pauses_and_is_said_once(recorded: Recorded) -> None:
    await recorded.fail(times=3)

    assert recorded.breaker.paused
    assert recorded.breaker.failure is GONE
    assert recorded.paused_for == [GONE]
    assert recorded.resumed == 0


async def test_while_paused_only_one_probes_at_a_time(recorded: Recorded) -> None:
    await recorded.fail()
    inside = most = 0

    async def probe(error: Exception | None) -> None:
        nonlocal inside, most
        async with recorded.breaker.passage():
            inside += 1
            most = max(most, inside)
            await recorded.turns(3)
            inside -= 1
            if error is not None:
                raise error

    results = await asyncio.gather(*(probe(GONE) for _ in range(5)), return_exceptions=True)

    assert results == [GONE] * 5
    assert most == 1


async def test_pauses_double_up_to_the_longest(recorded: Recorded) -> None:
    await recorded.fail(times=8)

    assert recorded.pauses == [1, 2, 4, 8, 16, 30, 30]


async def test_the_first_success_resumes_and_lets_everyone_through(recorded: Recorded) -> None:
    await recorded.fail(times=4)
    recorded.pauses.clear()

    await asyncio.gather(*(recorded.work() for _ in range(10)))

    assert recorded.pauses == [8]
    assert recorded.resumed == 1
    assert not recorded.breaker.paused


async def test_the_next_outage_begins_with_the_first_pause(recorded: Recorded) -> None:
    await recorded.fail(times=4)
    await recorded.work()
    recorded.pauses.clear()

    await recorded.fail(times=2)

    assert recorded.pauses == [1]
    assert recorded.paused_for == [GONE, GONE]


async def test_an_ordinary_error_shows_that_the_neighbours_answer(recorded: Recorded) -> None:
    await recorded.fail()

    with pytest.raises(PermanentError):
        await recorded.work(PermanentError("no"))

    assert not recorded.breaker.paused
    assert recorded.resumed == 1


async def test_work_that_began_before_the_outage_does_not_end_it(recorded: Recorded) -> None:
    finish = asyncio.Event()

    async def begun_before() -> None:
        async with recorded.breaker.passage():
            await finish.wait()

    early = asyncio.create_task(begun_before())
    await recorded.turns()
    await recorded.fail()
    finish.set()
    await early

    assert recorded.breaker.paused
    assert recorded.resumed == 0


async def test_failures_of_work_begun_before_do_not_lengthen_the_pause(
    recorded: Recorded,
) -> None:
    fail_now = asyncio.Event()

    async def begun_before() -> None:
        async with recorded.breaker.passage():
            await fail_now.wait()
            raise GONE

    early = [asyncio.create_task(begun_before()) for _ in range(5)]
    await recorded.turns()
    fail_now.set()
    await asyncio.gather(*early, return_exceptions=True)
    await recorded.fail()

    assert recorded.pauses == [1]
    assert recorded.paused_for == [GONE]


async def test_a_cancelled_probe_leaves_its_turn_to_the_next(recorded: Recorded) -> None:
    await recorded.fail()
    probing = asyncio.Event()

    async def hang() -> None:
        async with recorded.breaker.passage():
            probing.set()
            await asyncio.Event().wait()

    hanging = asyncio.create_task(hang())
    await probing.wait()
    following = asyncio.create_task(recorded.work())
    await recorded.turns()
    assert not following.done()
    hanging.cancel()
    await following

    assert recorded.resumed == 1


async def test_a_probe_that_outlives_our_patience_is_no_probe_of_the_next_outage(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.breaker.PATIENCE_SECONDS", 0.01)
    await recorded.fail()
    inside, leave_slow, leave = 0, asyncio.Event(), asyncio.Event()

    async def probe(left: asyncio.Event) -> None:
        nonlocal inside
        async with recorded.breaker.passage():
            inside += 1
            await left.wait()

    slow = asyncio.create_task(probe(leave_slow))
    await until(lambda: recorded.resumed == 1, "going on without the end of the probe")
    monkeypatch.setattr("common.breaker.PATIENCE_SECONDS", 1000)
    await recorded.fail()  # the next outage, while the first probe still runs
    others = [asyncio.create_task(probe(leave)) for _ in range(3)]
    await recorded.turns()
    assert inside == 2
    leave_slow.set()
    await slow
    await recorded.turns()

    assert inside == 2  # the end of the old one lets no second prober in
    assert recorded.breaker.paused  # and tells nothing about the new outage
    assert recorded.resumed == 1
    leave.set()
    await asyncio.gather(*others)
    assert recorded.resumed == 2
