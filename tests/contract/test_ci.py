"""Other machines and hooks of git run what the launcher runs."""

import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.conftest import LONGEST_FIRST
from tests.contract.test_docker import program
from tools.launcher.arguments import parser
from tools.launcher.versions import PYTHONS

ROOT = Path(__file__).parents[2]

WORKFLOW = ROOT / ".github/workflows/ci.yml"
JOBS = yaml.safe_load(WORKFLOW.read_text("utf-8"))["jobs"]
HOOKS = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text("utf-8"))["repos"]


def test_the_workflow_follows_its_schema() -> None:
    command = [program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows"]
    done = subprocess.run([*command, WORKFLOW], capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_workflow_runs_the_script_on_every_supported_python() -> None:
    job = JOBS["test"]

    assert tuple(job["strategy"]["matrix"]["python"]) == PYTHONS
    (step,) = [step for step in job["steps"] if step.get("run") == ".ci/run"]
    assert step["env"] == {"USERSTREAM_PYTHON": "${{ steps.python.outputs.python-path }}"}


def test_the_script_ends_where_the_named_python_cannot_be_used() -> None:
    environment = {"PATH": "/usr/bin:/bin", "USERSTREAM_PYTHON": "/nonexistent/python"}
    # An environment in which all is there but that Python.
    script = (ROOT / ".ci/run").read_text("utf-8").replace('dirname "$0"', "echo .ci")
    present = "command() { true; }; " + script.replace("exec timeout 5000", "echo")
    done = subprocess.run(
        ["bash", "-c", present], cwd=ROOT, env=environment, capture_output=True, check=False
    )

    assert done.returncode != 0
    assert b"/nonexistent/python" in done.stderr


@pytest.mark.parametrize(
    "line",
    [
        *(hook["entry"] for repository in HOOKS for hook in repository["hooks"]),
        *(step["run"] for step in JOBS["coverage"]["steps"] if "run" in step),
    ],
)
def test_a_command_of_hooks_and_jobs_is_one_of_the_launcher(line: str) -> None:
    command, *arguments = shlex.split(line)

    assert command == "./userstream"
    parser().parse_args(arguments)


def test_hooks_fetch_nothing() -> None:
    assert [repository["repo"] for repository in HOOKS] == ["local"]
    hooks = [hook for repository in HOOKS for hook in repository["hooks"]]
    assert {hook["language"] for hook in hooks} == {"system"}


def test_the_files_that_begin_first_exist() -> None:
    assert [name for name in LONGEST_FIRST if not (ROOT / name).is_file()] == []
