"""Every kind of fault strikes a running system, and nothing is lost: the bench's short run."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import PROJECT
from tools.chaos.schedule import Kind

SEED = 1
REGISTRATIONS = 600
MINUTES = 2.75
"""The shortest time in which each kind of fault strikes once."""

RUN_SECONDS = 900.0
"""Of the whole command; the usual four minutes some times over."""


pytestmark = pytest.mark.timeout(RUN_SECONDS + 60)


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    folder = Path(f"/var/tmp/userstream-chaos-{os.getpid()}")  # noqa: S108 - also for ``nobody``
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def report(data: Path) -> dict[str, Any]:
    """The JSON of one run."""
    command = ["chaos", "--seed", str(SEED), "--registrations", str(REGISTRATIONS)]
    command += ["--minutes", str(MINUTES), "--json", "--data", str(data)]
    done = subprocess.run(
        [str(PROJECT / "userstream"), *command],
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
    assert done.stdout, done.stderr[-4000:]
    document: dict[str, Any] = json.loads(done.stdout)
    assert (done.returncode == 0) == document["holds"]
    return document


def test_every_promise_is_kept(report: dict[str, Any]) -> None:
    (run,) = report["runs"]

    assert run["broken"] == {}
    assert run["left_after_drain"] == ""


def test_everybody_was_registered_and_mailed(report: dict[str, Any]) -> None:
    (run,) = report["runs"]
    counts = run["counts"]

    people = REGISTRATIONS - counts["ids_reused"]
    assert counts["attempted"] == REGISTRATIONS
    assert counts["accepted"] == counts["stored"] == people
    assert counts["ids_reused"] > 0
    # Of two people under one id only the first to be handled is mailed: the bench tells by ids.
    told = counts["mailed"] + counts["mails_failed"] + counts["mails_suppressed"]
    assert told >= people - counts["ids_reused"]
    assert counts["dead_letters"] >= counts["malformed"] > 0


def test_every_kind_of_fault_struck(report: dict[str, Any]) -> None:
    (run,) = report["runs"]
    impossible = {note.partition(":")[0] for note in run["notes"]}
    expected = set(Kind)
    if "disk full" in impossible:
        expected.remove(Kind.DISK_FULL)
    if "clock jumps" in impossible:
        expected.remove(Kind.CLOCK_JUMP)

    assert set(run["faults"]) >= {kind.value for kind in expected}
    assert set(run["smtp"]) >= {"deferred", "refused", "stalled", "dropped_in_text"}


def test_whoever_is_killed_is_replaced(report: dict[str, Any]) -> None:
    recovery = report["recovery"]

    assert recovery["instance_ready_again"]["n"] > 0
    kills = [f for f in report["runs"][0]["fault_log"] if f["kind"] == "kill9"]
    again = [f for f in kills if "skipped" not in f]
    assert all("ready_after_s" in fault for fault in again)


def test_the_promise_lines_name_what_was_promised(report: dict[str, Any]) -> None:
    first, second, *_ = report["promise_lines"]
    people = REGISTRATIONS - report["runs"][0]["counts"]["ids_reused"]

    assert first.startswith(f"seeds=1 registrations={REGISTRATIONS} accepted={people} ")
    assert second.startswith("lost=0 stored_twice=0 unexpected=0 stuck=0 dlq_unexplained=0 ")


def test_nothing_is_left_behind(report: dict[str, Any], data: Path) -> None:
    assert report["runs"]

    assert list(data.iterdir()) == []
