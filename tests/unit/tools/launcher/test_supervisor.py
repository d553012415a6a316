from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from tools.launcher import supervisor as module
from tools.launcher.processes import Program
from tools.launcher.supervisor import PROVEN_AFTER, Part, Supervisor, pause_before_restart
from tools.launcher.terminal import Terminal


@dataclass
class FakeRunning:
    program: Program
    since: float = 0.0
    exit_code: int | None = None
    pid: int = 4242

    def kill(self) -> None:
        self.exit_code = -9


class Alive(FakeRunning):
    def kill(self) -> None:
        """Stay, for the next question."""


def a_program(name: str = "sender") -> Program:
    return Program(
        name=name,
        argv=("true",),
        environment={},
        directory=Path("/"),
        log=Path("/nonexistent.log"),
        is_ready=lambda: True,
    )


def alive() -> Any:
    """A process that nothing ends."""
    return Alive(a_program())


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[FakeRunning]:
    """Every start the supervisor asks for."""
    starts: list[FakeRunning] = []

    def start(program: Program) -> Any:
        starts.append(FakeRunning(program))
        return starts[-1]

    monkeypatch.setattr(module, "start", start)
    return starts


def a_part(**running: Any) -> Part:
    program = a_program()
    return Part(program, running=FakeRunning(program, **running))  # type: ignore[arg-type]


def test_pauses_double_and_end_at_thirty_seconds() -> None:
    pauses = [pause_before_restart(crashes) for crashes in range(1, 12)]

    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30]
    assert pause_before_restart(10_000) == 30


def test_part_that_lives_is_left_alone() -> None:
    part = a_part()

    assert part.note_exit(now=1.0) is None
    assert part.running is not None


def test_part_that_dies_is_due_after_its_pause_and_not_before() -> None:
    part = a_part(exit_code=-9)

    said = part.note_exit(now=10.0)

    assert said is not None
    assert "sender was ended by SIGKILL after 10.0 s" in said
    assert not part.is_due(now=10.1)
    assert part.is_due(now=10.2)


def test_part_that_keeps_dying_waits_longer_each_time() -> None:
    part = a_part(exit_code=1)
    part.crashes = 3

    part.note_exit(now=5.0)

    assert part.start_at == pytest.approx(5.0 + 1.6)


def test_part_that_proved_itself_begins_with_the_first_pause_again() -> None:
    part = a_part(exit_code=1)
    part.crashes = 8

    part.note_exit(now=PROVEN_AFTER + 1)

    assert part.start_at == pytest.approx(PROVEN_AFTER + 1.2)


@pytest.fixture
def now() -> Callable[[Callable[[], bool]], Future[bool]]:
    """Answers at once what a thread would answer later."""

    def ask(works: Callable[[], bool]) -> Future[bool]:
        future: Future[bool] = Future()
        future.set_result(works())
        return future

    return ask


def looks(part: Part, ask: Any, *, begin: float, seconds: float) -> float | None:
    """Look each second; when it was found stuck, after so many seconds, or None."""
    for second in range(int(seconds)):
        if part.note_work(begin + second, ask):
            return second
    return None


def test_part_that_does_not_work_is_ended_after_its_patience(now: Any) -> None:
    part = Part(replace(a_program(), works=lambda: False, stuck_after=30), running=alive())

    assert looks(part, now, begin=1000, seconds=25) is None
    assert looks(part, now, begin=1025, seconds=30) is not None


def test_part_that_works_now_and_then_is_left_alone(now: Any) -> None:
    answers = iter([False, False, True] * 1000)
    part = Part(replace(a_program(), works=lambda: next(answers), stuck_after=30), running=alive())

    assert looks(part, now, begin=1000, seconds=1000) is None


def test_patience_grows_while_a_new_start_does_not_help(now: Any) -> None:
    part = Part(replace(a_program(), works=lambda: False, stuck_after=30), running=alive())

    found = []
    for _ in range(8):
        found.append(looks(part, now, begin=0, seconds=5000) or 0)
        part.end_stuck(0)
        part.ask_at = 0

    assert found == sorted(found)
    assert 30 <= found[0] < 45
    assert found[3] > 7 * 30
    assert found[-1] < 33 * 30 + 15  # the limit does not grow for ever


def test_part_that_is_not_asked_is_never_stuck(now: Any) -> None:
    assert looks(a_part(), now, begin=0, seconds=1000) is None


def test_supervisor_ends_a_stuck_part_and_starts_it_again(started: list[FakeRunning]) -> None:
    output = StringIO()
    supervisor = Supervisor(terminal=Terminal(output), on_change=lambda _: None)
    program = replace(a_program("rabbitmq"), works=lambda: False, stuck_after=0)
    part = supervisor.parts["rabbitmq"] = Part(program, running=FakeRunning(program))  # type: ignore[arg-type]

    supervisor.look(now=100.0)
    assert part.question is not None
    part.question.result(30)
    for later in (100.1, 100.2, 101.0):
        supervisor.look(now=later)

    assert "rabbitmq runs, but has not worked" in output.getvalue()
    assert part.restarts == 1
    assert len(started) == 1


def test_supervisor_starts_a_dead_part_again_and_says_so(started: list[FakeRunning]) -> None:
    output = StringIO()
    changes: list[Supervisor] = []
    supervisor = Supervisor(terminal=Terminal(output), on_change=changes.append)
    supervisor.parts["sender"] = a_part(exit_code=3)

    supervisor.look(now=100.0)
    supervisor.look(now=100.1)
    supervisor.look(now=100.3)

    assert len(started) == 1
    assert supervisor.parts["sender"].restarts == 1
    assert "sender ended with exit code 3" in output.getvalue()
    assert "sender was started again (pid 4242)" in output.getvalue()
    assert len(changes) == 2
