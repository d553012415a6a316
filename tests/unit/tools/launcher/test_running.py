"""Who a start waits for, and how it tells of those who go on waiting."""

import io
from pathlib import Path
from threading import Timer
from typing import Any, cast

import pytest

from tools.launcher import running
from tools.launcher.invocation import Invocation
from tools.launcher.processes import Program
from tools.launcher.running import tell_who_waits, wait_for_readiness, waits_for_others_only
from tools.launcher.stack import Stack
from tools.launcher.state import StateFile
from tools.launcher.supervisor import Supervisor
from tools.launcher.terminal import Terminal

AWAY = "It does not answer."


def a_stack(tmp_path: Path, *, broker: bool = True, postgres: bool = True, **given: str) -> Stack:
    return Stack(
        data=tmp_path,
        ports={},
        given=given,
        environment=tmp_path,
        broker=cast("Any", object()) if broker else None,
        postgres=cast("Any", object()) if postgres else None,
    )


@pytest.mark.parametrize(
    ("own", "waiting", "others_only"),
    [
        ({"SMTP_HOST": "smtp"}, {"sender": ["smtp"]}, True),
        ({}, {"sender": ["smtp"]}, False),
        ({"broker": False}, {"frontend": ["publisher"], "sender": ["consumer", "topology"]}, True),
        ({}, {"frontend": ["publisher"]}, False),
        ({"SMTP_HOST": "smtp"}, {"sender": ["smtp", "publisher"]}, False),
        ({"postgres": False}, {"database_service": ["postgres"]}, True),
        (
            {"postgres": False},
            {"database_service": ["postgres"], "sender": ["database_service"]},
            True,
        ),
        ({}, {"database_service": ["postgres"], "sender": ["database_service"]}, False),
        # It is ready by now, so the other one will see it in a moment.
        ({"postgres": False}, {"sender": ["database_service"]}, False),
        ({"SMTP_HOST_FILE": "/smtp"}, {"sender": ["smtp"]}, True),
        ({"SMTP_HOST": "smtp"}, {"report_generator": ["output_directory"]}, False),
        ({"SMTP_HOST": "smtp"}, {"sender": ["itself"]}, False),
    ],
)
def test_a_start_waits_for_what_it_started_itself(
    tmp_path: Path,
    own: dict[str, Any],
    waiting: dict[str, list[str]],
    others_only: bool,  # noqa: FBT001 - a column of the table above
) -> None:
    stack = a_stack(tmp_path, **own)
    told = {name: dict.fromkeys(names, AWAY) for name, names in waiting.items()}

    assert waits_for_others_only(told, stack) is others_only


class Watched:
    def __init__(self) -> None:
        self.looks = 0

    def look(self, _now: float) -> None:
        self.looks += 1


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "OTHERS_WITHIN", 0.2)
    monkeypatch.setattr(running, "READY_WITHIN", 0.6)


@pytest.mark.slow
@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("given", [{"SMTP_HOST": "smtp"}, {}], ids=["of others", "our own"])
def test_a_start_ends_although_something_stays_away(
    tmp_path: Path, given: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = {"sender": {"smtp": AWAY}}
    monkeypatch.setattr(running, "all_waiting", lambda *_: waiting)
    watched = Watched()

    found = wait_for_readiness(a_stack(tmp_path, **given), cast("Supervisor", watched))

    assert found == waiting
    assert watched.looks > 0  # who dies meanwhile is started again


def test_a_start_ends_as_soon_as_all_are_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = [{"sender": {"smtp": AWAY}}, {}]
    monkeypatch.setattr(running, "all_waiting", lambda *_: answers.pop(0))

    assert wait_for_readiness(a_stack(tmp_path), cast("Supervisor", Watched())) == {}


def test_who_waits_for_what_is_told_with_the_command_that_shows_it() -> None:
    stream = io.StringIO()
    here = Invocation(offset=100, data=Path("/my data"))

    tell_who_waits({"sender": {"smtp": AWAY}}, Terminal(stream), here)

    assert f"  ! sender waits for smtp: {AWAY}" in stream.getvalue().splitlines()
    assert "./userstream status --port-offset 100 --data '/my data'" in stream.getvalue()


def test_nothing_is_told_where_nobody_waits() -> None:
    stream = io.StringIO()

    tell_who_waits({}, Terminal(stream), Invocation(offset=0, data=Path("/data")))

    assert stream.getvalue() == ""


def test_a_start_in_progress_is_waited_for_and_not_begun_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(running, "all_waiting", lambda *_: {})
    first = StateFile(tmp_path)
    assert first.claim()
    state = {"phase": "starting", "connections": {"services": {}}, "ports": {}}
    first.write(state)
    Timer(0.3, first.write, [{**state, "phase": "up"}]).start()
    stream = io.StringIO()

    found = running.detach(Invocation(offset=0, data=tmp_path), Terminal(stream))

    assert found == {"services": {}}
    assert "is starting" in stream.getvalue()
    assert not (tmp_path / "logs").exists()


def test_a_program_that_only_has_to_live_may_wait_for_others(tmp_path: Path) -> None:
    program = Program(
        name="sender",
        argv=("sleep", "60"),
        environment={"PATH": "/usr/bin:/bin"},
        directory=tmp_path,
        log=tmp_path / "sender.log",
        is_ready=lambda: False,
        is_live=lambda: True,
        ready_within=0.1,
    )
    supervisor = Supervisor(terminal=Terminal(io.StringIO()), on_change=lambda _: None)

    supervisor.start([program], until_live=True)

    assert supervisor.parts["sender"].running is not None
    supervisor.kill()
