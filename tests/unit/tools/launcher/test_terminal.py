import io

import pytest

from tools.launcher.terminal import BEGUN, STAMP, Terminal


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_step_takes_one_line() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)

    with terminal.step("Starting sender"), terminal.step("Starting rabbitmq"):
        pass

    lines = stream.getvalue().splitlines()
    assert [line.rpartition(" (")[0] for line in lines] == [
        "  ✓ Starting rabbitmq",
        "  ✓ Starting sender",
    ]


def test_a_screen_shows_what_is_going_on_and_forgets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    stream = Screen()
    terminal = Terminal(stream)

    with terminal.step("Starting sender"):
        assert stream.getvalue().endswith(f"{BEGUN}Starting sender")

    kept = [line.rpartition("\033[K")[2] for line in stream.getvalue().split("\n")]
    assert [line.rpartition(" (")[0] for line in kept] == ["  ✓ Starting sender", ""]


def test_a_step_that_fails_is_not_told_as_done() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream)

    with pytest.raises(ValueError, match="no"), terminal.step("Starting sender"):
        raise ValueError("no")

    assert stream.getvalue() == ""


def test_a_log_tells_beginnings_and_times() -> None:
    stream = io.StringIO()
    terminal = Terminal(stream, is_log=True)

    with terminal.step("Starting sender"):
        pass
    terminal.note("sender died")

    begun, done, note = (STAMP.sub("", line) for line in stream.getvalue().splitlines())
    assert all(STAMP.match(line) for line in stream.getvalue().splitlines())
    assert begun == f"{BEGUN}Starting sender"
    assert done.startswith("  ✓ Starting sender (")
    assert note == "sender died"
