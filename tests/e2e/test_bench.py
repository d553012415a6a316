"""The benchmark measures all that it says, and leaves nothing behind; never how fast."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.stack import PROJECT

TINY = ("--quick", "--rounds", "1", "--count", "50", "--users", "500")


@pytest.fixture(scope="module")
def data() -> Iterator[Path]:
    folder = Path(f"/var/tmp/userstream-bench-{os.getpid()}")  # noqa: S108 - also for ``nobody``
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def measured(data: Path) -> dict[str, Any]:
    """The JSON of a run that is far too small to mean anything."""
    command = ["bench", "--only", "burst,paging", *TINY, "--json", "--data", str(data)]
    done = subprocess.run(
        [str(PROJECT / "userstream"), *command],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def test_every_registration_of_both_systems_arrived(measured: dict[str, Any]) -> None:
    burst = measured["workloads"]["burst"]["contenders"]

    assert measured["complete"] is True
    assert set(burst) == {"UserStream", "FastStream"}
    for contender in burst.values():
        (figures,) = contender["runs"]
        assert figures["registrations_per_s"] > 0
        assert figures["post_p99_ms"] >= figures["post_p50_ms"] > 0
        assert figures["rss_mb"] > 0


def test_each_service_is_listed_with_what_it_used(measured: dict[str, Any]) -> None:
    processes = measured["workloads"]["burst"]["contenders"]["UserStream"]["processes"]

    services = {"frontend", "queue_receiver", "sender", "database_service"}
    assert services | {"rabbitmq", "postgres"} <= set(processes)
    assert all(processes[service]["rss_mb"]["median"] > 0 for service in services)


def test_pages_are_compared_with_the_first(measured: dict[str, Any]) -> None:
    paging = measured["workloads"]["paging"]

    assert paging["baseline"] == "first page"
    assert paging["contenders"]["end"]["ratio"]["p50_ms"]["median"] > 0


def test_every_goal_of_what_was_measured_is_judged(measured: dict[str, Any]) -> None:
    judged = {goal["goal"].partition(":")[0] for goal in measured["goals"]}

    assert judged == {"burst", "paging"}
    assert all(isinstance(goal["must_met"], bool) for goal in measured["goals"])


def test_machine_and_versions_are_named(measured: dict[str, Any]) -> None:
    assert int(measured["machine"]["cores"]) > 0
    assert {"Python", "RabbitMQ", "PostgreSQL", "peer"} <= set(measured["versions"])


def test_nothing_is_left_behind(measured: dict[str, Any], data: Path) -> None:
    assert measured["complete"]

    assert list(data.iterdir()) == []


def test_part_of_a_run_is_not_written_into_the_page() -> None:
    before = (PROJECT / "docs" / "performance.md").read_text("utf-8")

    done = subprocess.run(
        [str(PROJECT / "userstream"), "bench", "--quick", "--write"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )

    assert (done.returncode, done.stdout) == (2, "")
    assert "--write takes a whole run" in done.stderr
    assert (PROJECT / "docs" / "performance.md").read_text("utf-8") == before
