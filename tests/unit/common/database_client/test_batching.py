import asyncio

from hypothesis import given
from hypothesis import strategies as st

from common.database_client.batching import CONCURRENT_SINGLES, Batcher
from common.errors import DatabaseServiceUnavailableError, InvalidError, RowLockedError


class Upstream:
    """Doubles numbers in bulk; answers when it is told to, and fails as it is told to."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []
        self.gate: asyncio.Event | None = None
        self.bad: set[int] = set()
        self.locked: set[int] = set()
        self.away = False

    async def __call__(self, items: list[int]) -> list[int]:
        self.requests.append(items)
        if self.gate is not None:
            await self.gate.wait()
        if self.away:
            raise DatabaseServiceUnavailableError("gone")
        if self.bad & set(items):
            raise InvalidError("one of them is bad")
        if self.locked & set(items):
            raise RowLockedError("one of them is locked")
        return [item * 2 for item in items]


def batcher(upstream: Upstream, **changes: int) -> Batcher[int, int]:
    return Batcher(upstream, name="test", **{"max_items": 100, **changes})


async def turns(count: int = 10) -> None:
    """Let everybody go as far as they can."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_lone_call_leaves_at_once_and_alone() -> None:
    upstream = Upstream()
    double = batcher(upstream)

    assert await double(1) == 2
    assert await double(2) == 4

    assert upstream.requests == [[1], [2]]


async def test_calls_of_the_same_moment_are_sent_in_one_request_in_order() -> None:
    upstream = Upstream()
    double = batcher(upstream)

    assert await asyncio.gather(*(double(item) for item in range(5))) == [0, 2, 4, 6, 8]

    assert upstream.requests == [[0, 1, 2, 3, 4]]


async def test_calls_made_while_a_request_is_in_flight_are_sent_in_one_after_its_answer() -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    double = batcher(upstream)

    tasks = []
    for item in range(6):
        tasks.append(asyncio.create_task(double(item)))
        await turns()
    assert upstream.requests == [[0]]
    upstream.gate.set()

    assert await asyncio.gather(*tasks) == [0, 2, 4, 6, 8, 10]
    assert upstream.requests == [[0], [1, 2, 3, 4, 5]]


async def test_no_request_holds_more_than_the_limit() -> None:
    upstream = Upstream()
    double = batcher(upstream, max_items=3)

    await asyncio.gather(*(double(item) for item in range(8)))

    assert upstream.requests == [[0, 1, 2], [3, 4, 5], [6, 7]]


async def test_a_bad_item_fails_alone() -> None:
    upstream = Upstream()
    upstream.bad = {2}
    double = batcher(upstream)

    results = await asyncio.gather(*(double(item) for item in range(4)), return_exceptions=True)

    assert results[:2] + results[3:] == [0, 2, 6]
    assert isinstance(results[2], InvalidError)


async def test_what_is_locked_fails_alone_and_the_others_do_not_wait_for_it() -> None:
    upstream = Upstream()
    upstream.locked = {1, 2, 3}
    double = batcher(upstream)
    calls = [asyncio.create_task(double(item)) for item in range(6)]
    await turns(3)
    upstream.gate = asyncio.Event()
    await turns()

    assert upstream.requests == [[0, 1, 2, 3, 4, 5], *([one] for one in range(CONCURRENT_SINGLES))]

    upstream.gate.set()
    answers = await asyncio.gather(*calls, return_exceptions=True)
    assert [answer for answer in answers if isinstance(answer, int)] == [0, 8, 10]
    assert [type(answers[item]) for item in (1, 2, 3)] == [RowLockedError] * 3


async def test_an_outage_reaches_everyone_and_is_asked_once() -> None:
    upstream = Upstream()
    upstream.away = True
    double = batcher(upstream)

    results = await asyncio.gather(*(double(item) for item in range(3)), return_exceptions=True)

    assert {type(result) for result in results} == {DatabaseServiceUnavailableError}
    assert upstream.requests == [[0, 1, 2]]

    upstream.away = False
    assert await double(3) == 6


async def test_an_answer_of_the_wrong_length_is_nobodys_answer() -> None:
    async def forgetful(items: list[int]) -> list[int]:
        return items[1:]

    double: Batcher[int, int] = Batcher(forgetful, name="test", max_items=10)

    results = await asyncio.gather(double(1), double(2), return_exceptions=True)

    assert [type(result) for result in results] == [ValueError, ValueError]


async def test_a_caller_who_left_is_not_sent_and_spoils_nothing() -> None:
    upstream = Upstream()
    upstream.gate = asyncio.Event()
    double = batcher(upstream)

    in_flight = [asyncio.create_task(double(item)) for item in (0, 1)]
    await turns()
    waiting = [asyncio.create_task(double(item)) for item in (2, 3)]
    await turns()
    in_flight[0].cancel()
    waiting[0].cancel()
    await turns()
    upstream.gate.set()

    assert await in_flight[1] == 2
    assert await waiting[1] == 6
    assert upstream.requests == [[0, 1], [3]]


@given(
    items=st.lists(st.integers(0, 50), max_size=30),
    bad=st.sets(st.integers(0, 50), max_size=5),
    max_items=st.integers(1, 7),
    data=st.data(),
)
def test_everyone_gets_exactly_his_own_answer(
    items: list[int], bad: set[int], max_items: int, data: st.DataObject
) -> None:
    pauses = data.draw(st.lists(st.integers(0, 3), min_size=len(items), max_size=len(items)))

    async def run() -> list[int | BaseException]:
        upstream = Upstream()
        upstream.bad = bad
        double = batcher(upstream, max_items=max_items)

        async def call(item: int, pause: int) -> int:
            await turns(pause)
            return await double(item)

        calls = (call(item, pause) for item, pause in zip(items, pauses, strict=True))
        return await asyncio.gather(*calls, return_exceptions=True)

    for item, result in zip(items, asyncio.run(run()), strict=True):
        assert isinstance(result, InvalidError) if item in bad else result == item * 2
