import asyncio
from collections.abc import Callable
from uuid import UUID, uuid4

import pytest

from common.errors import (
    DatabaseServiceUnavailableError,
    MailServerUnavailableError,
    TopologyMissingError,
    UnavailableError,
)
from common.messaging.pause import MAX_CASES, Ask, Case, Decision, Evidence, OutageGate
from tests.polling import until

GONE = DatabaseServiceUnavailableError("gone")
REFUSED = MailServerUnavailableError("421 to this one")
ADMITTED = DatabaseServiceUnavailableError("I am away")


def a_case() -> Case:
    return Case(uuid4())


# -- evidence -------------------------------------------------------------------------------


def test_one_message_is_no_evidence_however_often_it_fails() -> None:
    evidence, case = Evidence(), a_case()

    assert [evidence.failed(case) for _ in range(5)] == [False] * 5
    assert not evidence.is_enough


def test_the_same_message_in_another_delivery_is_no_second_one() -> None:
    evidence, message_id = Evidence(), uuid4()

    evidence.failed(Case(message_id))
    evidence.failed(Case(message_id))

    assert not evidence.is_enough


def test_a_second_message_is_evidence_until_one_gets_through() -> None:
    evidence = Evidence()

    evidence.failed(a_case())
    evidence.failed(a_case())
    assert evidence.is_enough
    evidence.succeeded(evidence.failures)

    assert not evidence.is_enough


def test_what_fails_alternately_with_what_gets_through_is_no_outage() -> None:
    evidence = Evidence()

    for _ in range(50):
        evidence.failed(a_case())
        evidence.succeeded(evidence.failures)

    assert not evidence.is_enough


def test_what_began_before_a_failure_refutes_nothing() -> None:
    evidence, case = Evidence(), a_case()
    begun_at = evidence.failures
    evidence.failed(case)
    evidence.succeeded(begun_at)
    evidence.failed(a_case())

    assert evidence.is_enough
    assert evidence.failed(case) is False


def test_a_message_that_fails_before_and_after_another_got_through_is_refuted() -> None:
    evidence, case = Evidence(), a_case()
    evidence.failed(case)
    evidence.succeeded(evidence.failures)

    assert evidence.failed(case) is True
    assert evidence.failed(case) is False  # nobody has got through since


def test_one_that_is_refuted_is_no_witness() -> None:
    evidence, case = Evidence(), a_case()
    evidence.failed(case)
    evidence.succeeded(evidence.failures)
    evidence.failed(case)
    evidence.failed(a_case())

    assert not evidence.is_enough


def test_a_message_that_comes_again_is_known_among_the_latest() -> None:
    evidence, message_id = Evidence(), uuid4()
    evidence.failed(evidence.case(message_id))
    assert evidence.case(message_id).failures == 1

    for _ in range(MAX_CASES):
        evidence.case(uuid4())

    assert evidence.case(message_id).failures == 0


def test_a_success_tells_something_only_after_a_failure() -> None:
    evidence = Evidence()
    assert not evidence.is_doubtful
    evidence.failed(a_case())
    assert evidence.is_doubtful
    evidence.succeeded(evidence.failures)
    assert not evidence.is_doubtful


# -- the gate ----------------------------------------------------------------------------


class Upstream:
    """A service that says how it is when it is asked."""

    def __init__(self) -> None:
        self.error: UnavailableError | None = None
        self.asked = 0

    async def ask(self) -> None:
        self.asked += 1
        if self.error is not None:
            raise self.error


class Recorded:
    """A gate, what it said, and how long it paused; its clock goes only when told."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ask: Ask | None = None) -> None:
        self.paused_for: list[UnavailableError] = []
        self.resumed = 0
        self.pauses: list[float] = []
        monkeypatch.setattr("common.messaging.pause.FIRST_PROBE_SECONDS", 1.0)
        self.gate = OutageGate(on_pause=self.paused_for.append, on_resume=self._on_resume, ask=ask)
        self._now = 0.0
        monkeypatch.setattr("common.messaging.pause._call_at", self._call_at)
        monkeypatch.setattr("common.messaging.pause._now", lambda: self._now)

    def _on_resume(self) -> None:
        self.resumed += 1

    def _call_at(self, when: float, callback: Callable[[], object]) -> asyncio.Handle:
        if when > self._now:
            self.pauses.append(when - self._now)
        self._now = max(self._now, when)
        return asyncio.get_running_loop().call_soon(callback)

    async def work(
        self, error: UnavailableError | None = None, case: Case | None = None
    ) -> Decision:
        """As the consumer does; a success is a HOLD that nobody looks at."""
        case = case or a_case()
        async with self.gate.pass_through(case):
            begun_at = self.gate.evidence.failures
            if error is not None:
                return await self.gate.failed(case, error)
            self.gate.succeeded(begun_at)
        return Decision.HOLD

    async def fail(self, times: int = 1) -> None:
        for _ in range(times):
            assert await self.work(GONE) is Decision.HOLD

    async def turns(self, count: int = 20) -> None:
        """Let everybody go as far as they can."""
        for _ in range(count):
            await asyncio.sleep(0)


@pytest.fixture
async def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    return Recorded(monkeypatch)


@pytest.fixture
def upstream() -> Upstream:
    return Upstream()


@pytest.fixture
async def asking(monkeypatch: pytest.MonkeyPatch, upstream: Upstream) -> Recorded:
    return Recorded(monkeypatch, upstream.ask)


async def test_all_pass_at_once_while_other_services_answer(recorded: Recorded) -> None:
    inside, leave = 0, asyncio.Event()

    async def work() -> None:
        nonlocal inside
        async with recorded.gate.pass_through(a_case()):
            inside += 1
            await leave.wait()

    tasks = [asyncio.create_task(work()) for _ in range(5)]
    await recorded.turns()
    assert inside == 5
    leave.set()
    await asyncio.gather(*tasks)

    assert recorded.pauses == []
    assert not recorded.gate.paused


async def test_without_anybody_to_ask_the_first_failure_pauses_and_is_said_once(
    recorded: Recorded,
) -> None:
    await recorded.fail(times=3)

    assert recorded.gate.paused
    assert recorded.gate.failure is GONE
    assert recorded.paused_for == [GONE]
    assert recorded.resumed == 0


async def test_while_paused_only_one_probes_at_a_time(recorded: Recorded) -> None:
    await recorded.fail()
    inside = most = 0

    async def probe() -> None:
        nonlocal inside, most
        case = a_case()
        async with recorded.gate.pass_through(case):
            inside += 1
            most = max(most, inside)
            await recorded.turns(3)
            inside -= 1
            await recorded.gate.failed(case, GONE)

    await asyncio.gather(*(probe() for _ in range(5)))

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
    assert not recorded.gate.paused


async def test_the_next_outage_begins_with_the_first_pause(recorded: Recorded) -> None:
    await recorded.fail(times=4)
    await recorded.work()
    recorded.pauses.clear()

    await recorded.fail(times=2)

    assert recorded.pauses == [1]
    assert recorded.paused_for == [GONE, GONE]


async def test_after_a_failed_probe_another_delivery_probes(recorded: Recorded) -> None:
    first, probed = a_case(), list[UUID]()
    await recorded.work(GONE, first)

    async def probe(case: Case) -> None:
        async with recorded.gate.pass_through(case):
            probed.append(case.message_id)
            await recorded.gate.failed(case, GONE)

    others = [a_case() for _ in range(3)]
    await asyncio.gather(*(probe(case) for case in (first, *others)))

    assert probed == [*(case.message_id for case in others), first.message_id]


async def test_work_that_began_before_the_outage_does_not_end_it(recorded: Recorded) -> None:
    begun_at = recorded.gate.evidence.failures
    await recorded.fail()
    recorded.gate.succeeded(begun_at)

    assert recorded.gate.paused
    assert recorded.resumed == 0


async def test_failures_of_work_begun_before_do_not_lengthen_the_pause(
    recorded: Recorded,
) -> None:
    for _ in range(5):
        await recorded.gate.failed(a_case(), GONE)
    await recorded.fail()

    assert recorded.pauses == [1]
    assert recorded.paused_for == [GONE]


async def test_a_cancelled_probe_leaves_its_turn_to_the_next(recorded: Recorded) -> None:
    await recorded.fail()
    probing = asyncio.Event()

    async def hang() -> None:
        async with recorded.gate.pass_through(a_case()):
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


async def test_one_that_is_cancelled_as_its_turn_comes_leaves_it_to_the_next(
    recorded: Recorded,
) -> None:
    await recorded.fail()
    first = asyncio.create_task(recorded.work())
    await asyncio.sleep(0)
    second = asyncio.create_task(recorded.work())
    await asyncio.sleep(0)  # the first may probe, and has not run since
    first.cancel()
    await second

    assert recorded.resumed == 1


async def test_a_probe_that_takes_too_long_is_no_probe_of_the_next_outage(
    recorded: Recorded, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.messaging.pause.PROBE_TIMEOUT_SECONDS", 0.01)
    await recorded.fail()
    inside, leave_slow, leave = 0, asyncio.Event(), asyncio.Event()

    async def probe(left: asyncio.Event) -> None:
        nonlocal inside
        async with recorded.gate.pass_through(a_case()):
            begun_at = recorded.gate.evidence.failures
            inside += 1
            await left.wait()
            recorded.gate.succeeded(begun_at)

    slow = asyncio.create_task(probe(leave_slow))
    await until(lambda: recorded.resumed == 1, "going on without the end of the probe")
    monkeypatch.setattr("common.messaging.pause.PROBE_TIMEOUT_SECONDS", 1000)
    await recorded.fail()  # the next outage, while the first probe still runs
    others = [asyncio.create_task(probe(leave)) for _ in range(3)]
    await recorded.turns()
    assert inside == 2
    leave_slow.set()
    await slow
    await recorded.turns()

    assert inside == 2  # the end of the old one lets no second prober in
    assert recorded.gate.paused  # and proves nothing about the new outage
    assert recorded.resumed == 1
    leave.set()
    await asyncio.gather(*others)
    assert recorded.resumed == 2


# -- with a service that can be asked ---------------------------------------------------------


async def test_a_service_that_admits_it_is_an_outage_at_once(
    asking: Recorded, upstream: Upstream
) -> None:
    upstream.error = ADMITTED

    assert await asking.work(GONE) is Decision.HOLD

    assert asking.paused_for == [ADMITTED]


async def test_a_message_that_fails_alone_pauses_nobody_and_is_its_own_failure(
    asking: Recorded,
) -> None:
    case = a_case()

    decisions = [await asking.work(REFUSED, case) for _ in range(2)]

    assert decisions == [Decision.HOLD, Decision.RETRY]
    assert asking.paused_for == []


async def test_what_concerns_all_is_believed_at_once(asking: Recorded) -> None:
    missing = TopologyMissingError("no such exchange")

    assert await asking.work(missing) is Decision.HOLD

    assert asking.paused_for == [missing]


async def test_what_two_messages_meet_is_an_outage_though_the_service_calls_itself_well(
    asking: Recorded,
) -> None:
    decisions = [await asking.work(REFUSED) for _ in range(2)]

    assert decisions == [Decision.HOLD, Decision.HOLD]
    assert asking.paused_for == [REFUSED]


async def test_while_only_messages_tell_probes_come_often_and_make_room(asking: Recorded) -> None:
    await asking.work(REFUSED)
    await asking.work(REFUSED)

    decisions = [await asking.work(REFUSED) for _ in range(5)]

    assert decisions == [Decision.DEFER] * 5
    assert asking.pauses == [1, 1, 1, 1, 1]


async def test_another_that_gets_through_makes_them_failures_of_their_own(
    asking: Recorded,
) -> None:
    bad = [a_case() for _ in range(50)]
    for case in bad:
        await asking.gate.failed(case, REFUSED)  # all were in flight at the same time
    assert asking.gate.paused
    await asking.work()
    assert not asking.gate.paused

    assert [await asking.work(REFUSED, case) for case in bad] == [Decision.RETRY] * 50
    assert len(asking.paused_for) == 1


async def test_what_failed_in_an_outage_and_works_afterwards_is_held_against_nobody(
    asking: Recorded, upstream: Upstream
) -> None:
    upstream.error = ADMITTED
    cases = [a_case() for _ in range(3)]
    for case in cases:
        assert await asking.gate.failed(case, GONE) is Decision.HOLD
    upstream.error = None
    await asking.work()
    upstream.error = ADMITTED  # the next outage, in the same moment

    assert {await asking.work(GONE, case) for case in cases} == {Decision.HOLD}
    assert len(asking.paused_for) == 2


async def test_what_the_service_has_explained_is_held_against_nobody(
    asking: Recorded, upstream: Upstream
) -> None:
    """A service that has just come back may still fail once or twice."""
    upstream.error = ADMITTED
    case = a_case()
    for _ in range(3):
        await asking.work(GONE, case)
    upstream.error = None
    await asking.work()

    assert await asking.work(GONE, case) is Decision.HOLD
    assert not asking.gate.paused


async def test_messages_that_fail_at_the_same_time_share_one_question(
    asking: Recorded, upstream: Upstream
) -> None:
    await asyncio.gather(*(asking.gate.failed(a_case(), GONE) for _ in range(10)))

    assert upstream.asked == 1


async def test_a_service_that_does_not_answer_is_away(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("common.messaging.pause.ASK_SECONDS", 0.01)
    said: list[UnavailableError] = []

    async def silent() -> None:
        await asyncio.Event().wait()

    gate = OutageGate(on_pause=said.append, on_resume=lambda: None, ask=silent)

    assert await gate.failed(a_case(), GONE) is Decision.HOLD
    assert len(said) == 1


@pytest.mark.parametrize("error", [None, ADMITTED])
async def test_after_an_inconclusive_probe_the_service_is_asked(
    asking: Recorded, upstream: Upstream, error: UnavailableError | None
) -> None:
    upstream.error = ADMITTED
    await asking.work(GONE)
    upstream.error = error
    case = a_case()

    async with asking.gate.pass_through(case):
        await asking.gate.inconclusive(case)

    assert asking.resumed == (0 if error else 1)
    assert asking.gate.paused is bool(error)
