"""The rules that hold the five services apart, read from the code itself."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow  # parses every file; `./userstream check` runs it

ROOT = Path(__file__).parents[2]
SERVICES = ("frontend", "queue_receiver", "sender", "database_service", "report_generator")
OTHERS = ("common", "rabbitmq", "tools")
TOOLS = ("tools", "tests")


@cache
def nodes_of(path: Path) -> tuple[ast.AST, ...]:
    """Everything that stands in a file."""
    return tuple(ast.walk(ast.parse(path.read_text("utf-8"), str(path))))


@cache
def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found, f"there is nothing in {folders}"
    return found


def imported(path: Path) -> Iterator[str]:
    """Full names of all modules that a file imports, wherever in it."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


def importing(folders: tuple[str, ...], packages: tuple[str, ...]) -> list[str]:
    """Which files of ``folders`` import one of ``packages``, as "file imports module"."""
    return [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources(*folders)
        for module in imported(path)
        if module.partition(".")[0] in packages
    ]


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_imports_no_other_service(service: str) -> None:
    others = tuple(other for other in SERVICES if other != service)

    assert importing((service,), (*others, *TOOLS)) == []


def test_what_is_common_imports_no_service() -> None:
    assert importing(("common",), (*SERVICES, *TOOLS)) == []


LAYERS = {
    "common.contracts": (),
    "common.amqp": ("common.contracts",),
    "common.messaging": ("common.amqp", "common.contracts"),
    "common.http": ("common.contracts",),
    "common.database_client": ("common.contracts",),
}
"""Which package of ``common`` may import which; all of them, the modules beside them."""


def test_the_packages_of_what_is_common_stand_in_layers() -> None:
    folders = {path.parent for path in (ROOT / "common").glob("*/__init__.py")}
    beside = {"common", *(f"common.{path.stem}" for path in (ROOT / "common").glob("*.py"))}
    assert {f"common.{folder.name}" for folder in folders} == set(LAYERS)
    assert len(beside) <= 10

    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for path in sources("common")
        for module in imported(path)
        if module.startswith("common.") and (package := _package(module)) not in beside
        if (own := _package(_name(path))) != package and package not in LAYERS.get(own, ())
    ]
    assert wrong == []


def _name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _package(module: str) -> str:
    return ".".join(module.split(".")[:2])


def test_no_module_imports_itself_by_way_of_others() -> None:
    names = {_name(path).removesuffix(".__init__") for path in sources(*SERVICES, *OTHERS)}
    edges = {
        _name(path).removesuffix(".__init__"): {
            name for name in _imported_names(path) if name in names
        }
        for path in sources(*SERVICES, *OTHERS)
    }
    while leaves := {name for name, targets in edges.items() if not targets & edges.keys()}:
        for name in leaves:
            del edges[name]
    assert edges == {}


def _imported_names(path: Path) -> Iterator[str]:
    """Modules that a file imports, also those that it takes from their package."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_only_the_database_service_speaks_sql() -> None:
    others = (*(service for service in SERVICES if service != "database_service"), "common")

    assert importing(others, ("asyncpg", "psycopg", "psycopg2", "sqlalchemy", "sqlite3")) == []


def test_only_the_common_code_speaks_amqp() -> None:
    assert importing(SERVICES, ("aio_pika", "aiormq", "pamqp")) == []


SETTLING = {"ack", "nack", "reject", "basic_ack", "basic_nack", "basic_reject", "acknowledge"}


def test_only_the_consumer_settles_deliveries() -> None:
    settling = {
        f"{path.relative_to(ROOT)}: {node.attr}"
        for path in sources(*SERVICES, "common")
        for node in nodes_of(path)
        if isinstance(node, ast.Attribute) and node.attr in SETTLING
    }

    assert settling == {
        "common/messaging/consumer.py: acknowledge",
        "common/amqp/stream.py: acknowledge",  # takes nothing out: more may come
        "common/amqp/dead_letter_queue.py: acknowledge",  # what a person decided
    }


def test_only_settings_read_the_environment() -> None:
    reading = {
        str(path.relative_to(ROOT))
        for path in sources(*SERVICES, "common")
        for node in nodes_of(path)
        if (isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb"))
        or (isinstance(node, ast.alias) and node.name in ("environ", "getenv", "environb"))
    }

    assert {path for path in reading if not path.endswith("settings.py")} == set()


def test_only_the_edges_swallow_every_error() -> None:
    swallowing = {
        str(path.relative_to(ROOT))
        for path in sources(*SERVICES, "common")
        for node in nodes_of(path)
        if isinstance(node, ast.ExceptHandler)
        and (node.type is None or {"Exception", "BaseException"} & set(_names(node.type)))
        and not isinstance(node.body[-1], ast.Raise)  # cleans up and passes it on
    }

    assert swallowing == {
        "common/database_client/batching.py",  # hands it to every caller
        "common/messaging/consumer.py",  # leaves the message to redelivery on a new channel
        "common/messaging/dispatcher.py",
        "common/amqp/connection.py",  # opens the connection anew, whatever ended it
        "common/readiness.py",
        "common/http/app.py",  # answers it
    }


def _names(node: ast.expr) -> Iterator[str]:
    """The name that stands there, or those of a tuple."""
    yield from map(ast.unparse, node.elts if isinstance(node, ast.Tuple) else [node])


def test_only_the_wiring_of_a_service_builds_what_speaks_to_the_world() -> None:
    building = {
        str(path.relative_to(ROOT))
        for path in sources(*SERVICES)
        for node in nodes_of(path)
        if isinstance(node, ast.Call)
        and (
            (
                isinstance(node.func, ast.Name)
                and node.func.id
                in (
                    "handling",
                    "open_publisher",
                    "Consumer",
                    "BrokerCheck",
                    "Publisher",
                    "StreamReader",
                )
            )
            or ast.unparse(node.func) == "DatabaseClient.open"
        )
    }

    assert building <= {f"{service}/app.py" for service in SERVICES}


def test_nothing_is_left_to_do() -> None:
    mark = re.compile(r"#.*\b(TO[D]O|FIX[M]E|XX[X]|HAC[K])\b")

    found = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in sources(*SERVICES, *OTHERS, "tests")
        for number, line in enumerate(path.read_text("utf-8").splitlines(), start=1)
        if mark.search(line)
    ]

    assert found == []


IMPORT_EVERYTHING = """
import importlib, pathlib, socket, sys

def refuse(*_, **__):
    raise AssertionError("an import reaches for the network")

socket.socket.connect = socket.socket.bind = socket.getaddrinfo = refuse
for folder in sys.argv[1:]:
    for path in sorted(pathlib.Path(folder).rglob("*.py")):
        name = ".".join(path.with_suffix("").parts).removesuffix(".__init__")
        importlib.import_module(name)
"""


def test_every_module_can_be_imported_with_nothing_set_and_connects_nothing(
    tmp_path: Path,
) -> None:
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), "PYTHONPATH": str(ROOT)}

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", IMPORT_EVERYTHING, *SERVICES, "common"],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
