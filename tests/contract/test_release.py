"""A release is what the project file, the changelog and the services call it."""

import re
import tomllib
from datetime import date
from pathlib import Path

import pytest

from common.http.version import version
from tests.services import SERVICES, build, serving
from tools.launcher.__main__ import main

ROOT = Path(__file__).parents[2]

STATED = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]


def test_the_version_is_the_one_that_the_project_file_states() -> None:
    assert version() == STATED


def test_the_version_stands_nowhere_else() -> None:
    sources = [path for service in (*SERVICES, "common") for path in (ROOT / service).rglob("*.py")]

    assert [path.name for path in sources if f'"{STATED}"' in path.read_text("utf-8")] == []


@pytest.mark.parametrize("service", SERVICES)
async def test_a_service_shows_the_version(service: str) -> None:
    async with serving(build(service)) as client, client.get("/openapi.json") as answer:
        assert (await answer.json())["info"]["version"] == STATED


def test_the_launcher_shows_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"UserStream {STATED}\n"


def test_the_changelog_has_each_release_once_with_its_date_and_the_newest_first() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    releases = re.findall(r"^## (\d+\.\d+\.\d+) – (\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    headings = re.findall(r"^## (.+)$", text, re.MULTILINE)

    assert headings == ["Unreleased", *(f"{name} – {day}" for name, day in releases)]
    assert releases[0][0] == STATED
    days = [date.fromisoformat(day) for _, day in releases]
    assert days == sorted(days, reverse=True)
    assert len({name for name, _ in releases}) == len(releases)
