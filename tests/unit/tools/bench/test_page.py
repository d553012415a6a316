from pathlib import Path

import pytest

from tools.bench.page import BEGIN, END, PAGE, write
from tools.launcher.errors import LauncherError


def test_only_what_stands_between_the_marks_is_replaced(tmp_path: Path) -> None:
    page = tmp_path / "performance.md"
    page.write_text(f"# Title\n\nProse.\n\n{BEGIN}\n\nold\n\n{END}\n\nMore prose.\n")

    write("new", page)

    assert page.read_text() == f"# Title\n\nProse.\n\n{BEGIN}\n\nnew\n\n{END}\n\nMore prose.\n"


@pytest.mark.parametrize("text", ["no marks", f"{BEGIN} only", f"{END}\n{BEGIN}"])
def test_a_page_without_marks_is_left_alone(tmp_path: Path, text: str) -> None:
    page = tmp_path / "performance.md"
    page.write_text(text)

    with pytest.raises(LauncherError, match="nothing was written"):
        write("new", page)

    assert page.read_text() == text


def test_a_page_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(LauncherError, match="is not there"):
        write("new", tmp_path / "missing.md")


def test_the_page_of_the_docs_has_both_marks_once() -> None:
    text = PAGE.read_text()

    assert (text.count(BEGIN), text.count(END)) == (1, 1)
