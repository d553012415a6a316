import ast
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from common import failpoints
from tests.services import REQUIRED, SERVICES, settings_class

ROOT = Path(__file__).parents[3]

PASSES = """
import sys
from common.failpoints import arm, failpoint

arm(sys.argv[1])
for n in range(5):
    failpoint("w14")
    print(n)
"""


def run(armed: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-u", "-c", PASSES, armed]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("armed", ["", "w13:nth=1", "w14:nth=6"])
def test_a_failpoint_that_is_not_reached_does_nothing(armed: str) -> None:
    done = run(armed)

    assert done.returncode == 0
    assert done.stdout.split() == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize(("armed", "before"), [("w14", 0), ("w14:nth=1", 0), ("w14:nth=3", 2)])
def test_the_process_ends_at_the_pass_that_was_named(armed: str, before: int) -> None:
    done = run(armed)

    assert done.returncode == failpoints.KILLED
    assert len(done.stdout.split()) == before


@pytest.mark.parametrize("service", SERVICES)
@pytest.mark.parametrize("text", ["w", "w15", "w13:nth=0", "w13:nth=x", "13", "w13:nth=3 "])
def test_a_window_that_does_not_exist_stops_the_service(service: str, text: str) -> None:
    with pytest.raises(ValueError, match="say it as w13:nth=3"):
        settings_class(service)(**REQUIRED[service], userstream_failpoint=text)


def test_every_window_is_one_place_in_the_code() -> None:
    places = Counter(
        ast.literal_eval(node.args[0])
        for folder in (*SERVICES, "common")
        for path in (ROOT / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "failpoint"
    )

    assert places == dict.fromkeys(failpoints.WINDOWS, 1)
