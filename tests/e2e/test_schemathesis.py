"""Each service's document against the service itself: what it allows, and what it forbids.

``schemathesis`` makes requests out of the documents, by phases: the examples in them, the
edges of each value, values by chance, and sequences of operations that follow each other.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.stack import PROJECT, Stack, running
from tests.scale import SEED, scaled
from tests.services import SERVICES

EXAMPLES = scaled(100)
"""Requests by chance for each operation; the edges come on top."""

PATIENCE_SECONDS = 300 + scaled(60)


pytestmark = pytest.mark.timeout(PATIENCE_SECONDS + 300)  # the stack has to start as well


@pytest.fixture(scope="module")
def stack() -> Iterator[Stack]:
    """A stack of its own: what is stored here by way of its own endpoint never gets a mail."""
    data = Path(f"/var/tmp/userstream-schemathesis-{os.getpid()}")  # noqa: S108 - also for ``nobody``
    with running(data, CANARY_SECONDS="0") as stack:
        yield stack


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_keeps_to_its_document_whatever_it_is_asked(
    stack: Stack, service: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [
            str(Path(sys.executable).with_name("schemathesis")),
            "--config-file",
            "tests/e2e/schemathesis.toml",
            "run",
            f"{stack.services[service]}/openapi.json",
            "--max-examples",
            str(EXAMPLES),
            "--seed",
            str(SEED),
            "--continue-on-failure",
            "--suppress-health-check=all",
            "--warnings=off",
            "--no-color",
            "--report=json",
            f"--report-json-path={tmp_path / 'report.json'}",
        ],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_SECONDS,
        env={"PYTHONPATH": str(PROJECT), "PATH": ""},
    )

    assert done.returncode == 0, f"USERSTREAM_TEST_SEED={SEED}\n{done.stdout}\n{done.stderr}"
    assert "No issues found" in done.stdout, done.stdout
    services = stack.status()["services"]
    assert {name for name, state in services.items() if not state["ready"]} == set()
    print(done.stdout.splitlines()[-1])  # noqa: T201 - how many requests it was
