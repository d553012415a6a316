"""What gets installed is pinned, and says nothing of where it was fetched."""

import re
from pathlib import Path

import pytest

LOCKS = sorted((Path(__file__).parents[2] / "requirements").glob("*.lock"))

PINNED = re.compile(
    r"""
    (?P<name>[a-z0-9-]+)(\[[a-z,-]+\])?==[\w.+!]+   # name and version
    (\ ;\ [^\\]+)?                                  # where it applies
    (\ \\\n\ +--hash=sha256:[0-9a-f]{64})+\n        # at least one hash
    (\ +\#.*\n)*                                    # who needs it
    """,
    re.VERBOSE,
)


def test_there_are_locks() -> None:
    assert {"runtime.lock", "test.lock", "demo.lock"} <= {path.name for path in LOCKS}


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.name)
def test_every_package_is_pinned_by_hash_and_no_address_is_named(lock: Path) -> None:
    text = "".join(line for line in lock.read_text().splitlines(keepends=True) if line[0] != "#")

    assert "://" not in lock.read_text()
    left_over = PINNED.sub("", text)
    assert left_over.strip() == ""
    assert len(PINNED.findall(text)) > 0


def test_what_runs_is_tested_in_the_same_version() -> None:
    assert pins("runtime.lock") <= pins("test.lock")


def pins(lock: str) -> set[str]:
    text = (LOCKS[0].parent / lock).read_text()
    return set(re.findall(r"^([a-z0-9-]+==[\w.+!]+)", text, re.MULTILINE))
