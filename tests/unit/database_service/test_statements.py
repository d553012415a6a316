import ast
import re
from pathlib import Path

import pytest

import database_service
from common.contracts.reports import Column
from database_service.repositories.users import FORMULA_STARTS, select_report

SOURCES = sorted(Path(database_service.__file__).parent.rglob("*.py"))
EXECUTES = {"execute", "executemany", "fetch", "fetchrow", "fetchval", "copy_from_query"}


def test_a_report_selects_only_the_chosen_columns() -> None:
    cells = select_report([Column.EMAIL, Column.ID]).partition("FROM")[0]

    assert cells.index("email") < cells.index("id\n")
    assert "surname" not in cells
    assert "created" not in cells


@pytest.mark.parametrize("column", [Column.NAME, Column.SURNAME, Column.EMAIL])
def test_every_text_of_a_report_is_made_harmless(column: Column) -> None:
    statement = select_report([column])

    for start in FORMULA_STARTS:
        assert str(ord(start)) in statement


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_statements_are_never_glued_from_values(path: Path) -> None:
    """What is executed is a constant, or comes from ``select_report``, which knows its parts."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in EXECUTES
        ):
            statement = node.args[0]
            if isinstance(statement, ast.Call):
                assert ast.unparse(statement.func) == "select_report"
            else:
                assert isinstance(statement, ast.Constant | ast.Name | ast.Attribute), (
                    f"{path.name}:{node.lineno}"
                )


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_columns_are_enumerated(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not re.search(r"(SELECT|RETURNING)\s+([a-z]+\.)?\*", node.value), node.lineno
