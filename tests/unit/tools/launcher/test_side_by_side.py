import threading
import time

import pytest

from tools.launcher.errors import LauncherError
from tools.launcher.processes import run_briefly
from tools.launcher.side_by_side import side_by_side


def test_all_run_at_the_same_time_and_results_keep_their_order() -> None:
    meeting = threading.Barrier(2, timeout=30)

    def meet(name: str) -> str:
        meeting.wait()
        return name

    assert side_by_side(lambda: meet("a"), lambda: meet("b")) == ["a", "b"]


def test_the_first_failure_ends_what_the_others_wait_for() -> None:
    ended: list[float] = []

    def fail() -> None:
        raise LauncherError("no network")

    def fetch() -> None:
        try:
            run_briefly(["sleep", "300"], timeout=300)
        finally:
            ended.append(time.monotonic())

    with pytest.raises(LauncherError, match="no network"):
        side_by_side(fail, fetch)

    assert ended  # before it was raised


def test_the_others_are_told_to_give_up() -> None:
    given_up = threading.Event()

    def fail() -> None:
        raise LauncherError("no disk")

    def wait() -> None:
        assert given_up.wait(60)

    with pytest.raises(LauncherError, match="no disk"):
        side_by_side(fail, wait, give_up=given_up.set)
