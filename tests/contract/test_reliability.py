"""docs/reliability.md names a test for each window, and each of them exists."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
REFERENCE = re.compile(r"\]\(\.\./(tests/[^)]+\.py)\) <!-- (test_\w+) -->")
WINDOW = re.compile(r"^\| (\d+) \|", re.MULTILINE)


def test_every_window_has_its_row() -> None:
    assert [int(number) for number in WINDOW.findall(PAGE)] == list(range(1, 53))


def test_every_test_that_is_named_exists() -> None:
    named = REFERENCE.findall(PAGE)

    assert len(named) > 40
    assert [
        f"{path}::{name}"
        for path, name in named
        if not re.search(rf"def {name}\(", (ROOT / path).read_text())
    ] == []
