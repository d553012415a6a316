"""docs/reliability.md names the tests of each window, and each of them exists."""

import re

import pytest

from tests.windows import HEADING, PAGE, ROOT, TESTS, appendix, windows


def test_every_window_has_its_row_with_the_number_of_its_tests() -> None:
    shown = list(windows(PAGE.read_text()))

    assert shown == [(number, len(TESTS.get(number, ()))) for number in range(1, 53)]


def test_the_appendix_lists_the_tests_of_each_window() -> None:
    written = PAGE.read_text().partition(HEADING)[2]

    assert written == appendix(), "python -m tests.windows writes it"


@pytest.mark.parametrize("test", sorted({test for tests in TESTS.values() for test in tests}))
def test_every_test_that_is_named_exists(test: str) -> None:
    path, _, name = test.partition("::")

    assert re.search(rf"def {name}\(" if name else "def test_", (ROOT / path).read_text())
