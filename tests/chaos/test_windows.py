"""A process ends at each window of docs/reliability.md, and nothing that was promised is lost."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from common.failpoints import WINDOWS
from tests.e2e.stack import PROJECT

RUN_SECONDS = 900.0
"""Of the whole command; the usual two minutes many times over."""


pytestmark = pytest.mark.timeout(RUN_SECONDS + 60)


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    folder = Path(f"/var/tmp/userstream-windows-{os.getpid()}")  # noqa: S108 - also for ``nobody``
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def found(data: Path) -> dict[str, dict[str, Any]]:
    """What the command says about each window, after one crash at each."""
    command = ["chaos", "--windows", "--times", "1", "--json", "--data", str(data)]
    done = subprocess.run(
        [str(PROJECT / "userstream"), *command],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.stdout, done.stderr
    return {each["window"]: each for each in json.loads(done.stdout)["windows"]}


@pytest.mark.parametrize("window", WINDOWS)
def test_a_crash_breaks_no_promise(window: str, found: dict[str, dict[str, Any]]) -> None:
    result = found[window]

    assert result["broken"] == []
    assert result["crashes"] == 1
    assert result["promised"] > 0


@pytest.mark.parametrize("window", WINDOWS)
def test_only_an_unrecorded_250_sends_a_mail_twice(
    window: str, found: dict[str, dict[str, Any]]
) -> None:
    assert found[window]["duplicateMails"] == (1 if window == "w24" else 0)
