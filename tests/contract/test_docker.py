"""The recipes for containers, checked without an engine."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.services import PYTHON
from rabbitmq.hand_out import HANDED_OUT
from tests.backends import IMAGE

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("frontend", "queue_receiver", "sender", "database_service", "report_generator")

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]


def program(name: str) -> str:
    """A program that came with the test environment."""
    return str(Path(sys.executable).with_name(name))


def stages() -> dict[str, list[str]]:
    """Name of each stage of the Dockerfile to its instructions, those of its base first."""
    text = (ROOT / "Dockerfile").read_text()
    text = re.sub(r"^#.*\n", "", text, flags=re.MULTILINE)
    lines = re.sub(r"\\\n\s*", " ", text).splitlines()
    found: dict[str, list[str]] = {}
    for line in filter(None, lines):
        if match := re.fullmatch(r"FROM (\S+) AS (\S+)", line):
            current = found[match[2]] = list(found.get(match[1], []))
        elif found:
            current.append(line)
    return found


def copied(instructions: list[str]) -> list[str]:
    """What a stage takes from the project."""
    matches = (re.fullmatch(r"COPY (?!--)(\S+) \S+", line) for line in instructions)
    return [match[1] for match in matches if match]


def environment(instructions: list[str]) -> dict[str, str]:
    """What a stage sets."""
    lines = " ".join(line for line in instructions if line.startswith("ENV "))
    return dict(re.findall(r"(\w+)=(\S+)", lines))


def test_the_compose_file_follows_the_specification() -> None:
    done = subprocess.run(
        [
            program("check-jsonschema"),
            "--builtin-schema",
            "vendor.compose-spec",
            str(ROOT / "docker-compose.yml"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_has_no_known_fault() -> None:
    done = subprocess.run(
        [program("hadolint"), str(ROOT / "Dockerfile")], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr


def test_every_service_has_a_target_and_a_container() -> None:
    for service in SERVICES:
        assert CONTAINERS[service]["build"]["target"] == service
        assert service in stages()


def test_every_target_that_is_built_exists() -> None:
    targets = {each["build"]["target"] for each in CONTAINERS.values() if "build" in each}

    assert targets <= set(stages())


@pytest.mark.parametrize("name", CONTAINERS)
def test_start_order_names_what_exists_and_can_tell_its_health(name: str) -> None:
    for target, dependency in CONTAINERS[name].get("depends_on", {}).items():
        assert target in CONTAINERS
        if dependency["condition"] == "service_healthy":
            assert "healthcheck" in CONTAINERS[target]


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_are_confined(name: str) -> None:
    container = CONTAINERS[name]

    assert "container_name" not in container, "a fixed name allows one instance only"
    assert container["cap_drop"] == ["ALL"]
    assert container["security_opt"] == ["no-new-privileges:true"]
    assert container["read_only"] is True
    assert container["pids_limit"] > 0
    assert container["mem_limit"]
    assert "build" in container or container["user"] not in {"root", "0"}
    for port in container.get("ports", []):
        assert re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port), "open to the network"


def test_services_that_are_scaled_hold_no_port_of_the_host() -> None:
    published = {name for name in SERVICES if CONTAINERS[name].get("ports")}

    assert published == {"frontend", "report_generator"}


def test_every_volume_is_declared_and_every_mounted_file_exists() -> None:
    mounts = [mount for each in CONTAINERS.values() for mount in each.get("volumes", [])]
    for source in (mount.split(":")[0] for mount in mounts):
        if source.startswith("."):
            assert (ROOT / source).is_file()
        else:
            assert source in COMPOSE["volumes"]


@pytest.mark.parametrize("service", SERVICES)
def test_only_settings_that_exist_are_given(service: str) -> None:
    known = importlib.import_module(f"{service}.settings").Settings.model_fields
    given = [*CONTAINERS[service]["environment"], *environment(stages()[service])]
    python = {"PATH", "PYTHONDONTWRITEBYTECODE", *PYTHON}

    unknown = {name for name in given if name.removesuffix("_FILE").lower() not in known} - python

    assert not unknown


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_tells_its_interpreter_what_the_launcher_does(service: str) -> None:
    # The language is the official image's own to set.
    told = {name: value for name, value in PYTHON.items() if name != "LANG"}

    assert told.items() <= environment(stages()[service]).items()


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_listens_on_the_service_s_own_port_where_the_engine_reaches_it(
    service: str,
) -> None:
    settings = importlib.import_module(f"{service}.settings").Settings.model_fields

    assert environment(stages()[service])["PORT"] == str(settings["port"].default)
    assert f"EXPOSE {settings['port'].default}" in stages()[service]
    assert environment(stages()[service])["BIND_ADDRESS"] == "0.0.0.0"  # noqa: S104


@pytest.mark.parametrize("name", [*SERVICES, "provision"])
def test_images_run_as_nobody_in_particular(name: str) -> None:
    instructions = stages()[name]

    assert [line for line in instructions if line.startswith("USER ")][-1] == "USER 10001:10001"
    assert instructions[-1].startswith('CMD ["python", "-m", ')
    assert "STOPSIGNAL SIGTERM" in instructions


@pytest.mark.parametrize("name", [*SERVICES, "provision"])
def test_an_image_holds_every_module_it_imports(name: str, tmp_path: Path) -> None:
    sources = copied(stages()[name])
    for source in sources:
        shutil.copytree(ROOT / source, tmp_path / source)
    module = "rabbitmq.provision" if name == "provision" else f"{name}.app"

    done = subprocess.run(
        [sys.executable, "-c", f"import {module}"],
        cwd=tmp_path,
        env={"PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stderr


def test_what_is_copied_is_not_ignored() -> None:
    allowed = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }

    for instructions in stages().values():
        assert set(copied(instructions)) <= allowed


@pytest.mark.parametrize("reader", HANDED_OUT)
def test_a_container_gets_its_own_secrets_and_no_other_s(reader: str) -> None:
    volume = f"{reader.replace('_', '-')}-secrets"
    mounts = CONTAINERS[reader]["volumes"]
    files = {
        Path(value).name
        for name, value in CONTAINERS[reader]["environment"].items()
        if name.endswith("_FILE")
    }

    assert f"{volume}:/hand-out/{reader}" in CONTAINERS["provision"]["volumes"]
    assert [mount for mount in mounts if "secrets" in mount] == [f"{volume}:/secrets:ro"]
    assert files == set(HANDED_OUT[reader])


def test_no_secret_is_written_into_the_recipes() -> None:
    for name, container in CONTAINERS.items():
        for variable in container.get("environment", {}):
            secret = re.search(r"PASSWORD|SECRET|QUEUE_URL", variable)
            assert not secret or variable.endswith("_FILE"), f"{name}: {variable}"


def test_secrets_are_made_once_and_handed_out_again(tmp_path: Path) -> None:
    def provision() -> dict[str, str]:
        subprocess.run(
            [
                *(sys.executable, "-m", "rabbitmq.provision", "--host", "rabbitmq"),
                *("--definitions", tmp_path / "definitions", "--secrets", tmp_path / "secrets"),
                *("--hand-out", tmp_path / "out"),
            ],
            cwd=ROOT,
            check=True,
        )
        files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
        assert {path.stat().st_mode & 0o777 for path in files} == {0o444}
        return {str(path.relative_to(tmp_path / "out")): path.read_text() for path in files}

    first = provision()

    assert provision() == first
    assert set(first) == {
        f"{reader}/{name}" for reader in HANDED_OUT for name in HANDED_OUT[reader]
    }
    assert first["postgres/db_password"] == first["database_service/db_password"]
    assert first["sender/queue_url"].startswith("amqp://sender:")
    assert "@rabbitmq:5672/" in first["sender/queue_url"]
    topology = (tmp_path / "definitions" / "topology.json").read_text()
    assert topology.strip() == (ROOT / "rabbitmq" / "definitions.json").read_text().strip()


def test_the_broker_is_named_by_its_exact_version_and_tests_take_the_same() -> None:
    # A floating tag would bring a broker one day that nobody has tried.
    image = CONTAINERS["rabbitmq"]["image"]

    assert re.fullmatch(r"rabbitmq:\d+\.\d+\.\d+-management", image)
    assert image == IMAGE
