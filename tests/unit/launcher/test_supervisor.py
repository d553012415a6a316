from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from launcher import supervisor as module
from launcher.processes import Program
from launcher.supervisor import PROVEN_AFTER, Part, Supervisor, pause_before_restart
from launcher.terminal import Terminal


@dataclass
class FakeRunning:
    program: Program
    since: float = 0.0
    exit_code: int | None = None
    pid: int = 4242

    def kill(self) -> None:
        self.exit_code = -9


def a_program(name: str = "sender") -> Program:
    return Program(
        name=name,
        argv=("true",),
        environment={},
        directory=Path("/"),
        log=Path("/nonexistent.log"),
        is_ready=lambda: True,
    )


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
    pauses = [pause_before_restart(deaths) for deaths in range(1, 12)]

    assert pauses == [0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30, 30]
    assert pause_before_restart(10_000) == 30


def test_part_that_lives_is_left_alone() -> None:
    part = a_part()

    assert part.note_death(now=1.0) is None
    assert part.running is not None


def test_part_that_dies_is_due_after_its_pause_and_not_before() -> None:
    part = a_part(exit_code=-9)

    said = part.note_death(now=10.0)

    assert said is not None
    assert "sender was ended by SIGKILL after 10.0 s" in said
    assert not part.is_due(now=10.1)
    assert part.is_due(now=10.2)


def test_part_that_keeps_dying_waits_longer_each_time() -> None:
    part = a_part(exit_code=1)
    part.deaths = 3

    part.note_death(now=5.0)

    assert part.start_at == pytest.approx(5.0 + 1.6)


def test_part_that_proved_itself_begins_with_the_first_pause_again() -> None:
    part = a_part(exit_code=1)
    part.deaths = 8

    part.note_death(now=PROVEN_AFTER + 1)

    assert part.start_at == pytest.approx(PROVEN_AFTER + 1.2)


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
