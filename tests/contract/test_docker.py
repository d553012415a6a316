"""The recipes for containers, checked without an engine."""

import importlib
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml

from rabbitmq.distribute_secrets import DISTRIBUTED
from tools.launcher.services import LISTENING, PYTHON, SETTINGS

ROOT = Path(__file__).resolve().parents[2]
SERVICES = ("frontend", "queue_receiver", "sender", "database_service", "report_generator")

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
CONTAINERS: dict[str, dict[str, Any]] = COMPOSE["services"]

PUBLISHED = re.compile(r"127\.0\.0\.1:\$\{(?P<name>[A-Z_]+_PORT):-(?P<host>\d+)\}:(?P<inside>\d+)")
"""On the loopback interface alone, at a port of the host that can be set from outside."""

OF_COMPOSE_ITSELF = {
    *("QUEUE_URL", "QUEUE_MANAGEMENT_URL", "DATABASE_SERVICE_URL", "REGISTRATION_ID_SECRET"),
    *("DB_HOST", "DB_PORT", "DB_NAME", "DB_USER", "DB_PASSWORD", "DB_SSL", "DB_SSL_CA"),
    *("CRASH_MARKER_DIR", "REPORT_OUTPUT_DIR", "SMTP_CA_FILE", "BIND_ADDRESS"),
    "USERSTREAM_FAILPOINT",
}
"""What is no setting in compose: how its parts find each other, and what names files of the
host, which need a mount in an override file anyway."""


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
    matches = (re.fullmatch(r"COPY (?:--chmod=\d+ )?(\w\S*) \S+", line) for line in instructions)
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
        assert PUBLISHED.fullmatch(port), f"{port}: open to the network, or not to be moved"


def test_every_service_is_published_however_many_instances_it_has() -> None:
    published = {name: CONTAINERS[name].get("ports", []) for name in CONTAINERS}
    matches = [PUBLISHED.fullmatch(port) for port in published["gateway"]]
    inside = {match["inside"]: match for match in matches if match}
    ports = {name: environment(stages()[name])["PORT"] for name in SERVICES}

    # A port of the host is held by one container; a second instance would not start.
    assert not [name for name in SERVICES if published[name]]
    assert set(inside) == set(ports.values())
    for service, port in ports.items():
        assert inside[port]["host"] == port, "the address that the documents name"
        assert inside[port]["name"] == f"{service.upper()}_PORT"
        assert gateway_rules()[port] == f"{service}:{port}"


def gateway_rules() -> dict[str, str]:
    """Port of the gateway to where it leads."""
    text = (ROOT / "docker" / "haproxy.cfg").read_text()
    rules = re.findall(r"bind :(\d+)\n(?:.*\n)*?\s+server-template \w+ \d+ (\S+)", text)
    return dict(rules)


@pytest.mark.parametrize("name", CONTAINERS)
def test_what_runs_is_named_by_an_exact_version(name: str) -> None:
    if image := CONTAINERS[name].get("image"):
        assert re.fullmatch(r"[\w/]+:v?\d+\.\d+(\.\d+)?(-\w+)?", image)
        assert image.startswith("postgres:") or re.search(r"\d+\.\d+\.\d+", image)


def test_a_build_pulls_nothing_that_no_container_is_made_of() -> None:
    # Such a line makes the engine pull a program that reads the rest.
    assert not re.search(r"(?im)^#\s*syntax\s*=", (ROOT / "Dockerfile").read_text())


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_asks_for_no_more_files_than_small_engines_grant(name: str) -> None:
    assert CONTAINERS[name].get("ulimits", {}).get("nofile", 0) <= 16384


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_needs_no_permission_in_the_checkout(name: str) -> None:
    """Under umask 077 its files are their owner's alone, and SELinux refuses them altogether."""
    mounts = [mount.split(":")[0] for mount in CONTAINERS[name].get("volumes", [])]
    assert not [source for source in mounts if not re.fullmatch(r"[a-z-]+", source)]

    if "build" in CONTAINERS[name]:
        for line in stages()[CONTAINERS[name]["build"]["target"]]:
            from_the_checkout = line.startswith("COPY ") and "--from=" not in line
            assert not from_the_checkout or "--chmod=0" in line, line


@pytest.mark.parametrize("name", [name for name in CONTAINERS if name != "provision"])
def test_health_is_looked_at_seldom_cheaply_and_patiently(name: str) -> None:
    check = CONTAINERS[name]["healthcheck"]
    program = check["test"][1]

    # An interpreter or an Erlang that starts for each look takes more than all else when idle.
    assert program in {"health", "bash", "pg_isready", "/mailpit"}
    assert int(check["interval"].removesuffix("s")) >= 10
    # Another service that is away for some minutes comes back, and `up --wait` waits for it.
    assert int(check["interval"].removesuffix("s")) * check["retries"] >= 240


def test_services_wait_for_each_other_themselves() -> None:
    """Compose would give up all that depends on a service, for a minute's outage."""
    for name, container in CONTAINERS.items():
        assert set(container.get("depends_on", {})) <= {"provision"}, name


@pytest.mark.parametrize("path", ["ready", "live"])
@pytest.mark.parametrize("status", [200, 503])
def test_the_health_check_asks_the_service_and_no_proxy(status: int, path: str) -> None:
    requests: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:

        def answer() -> None:
            connection, _ = server.accept()
            with connection:
                with connection.makefile("rb") as lines:
                    requests.append(b"".join(iter(lines.readline, b"\r\n")))
                connection.sendall(b'HTTP/1.1 %d X\r\n\r\n{"ready": "?"}' % status)

        thread = threading.Thread(target=answer)
        thread.start()
        done = subprocess.run(
            [ROOT / "docker" / "health", path],
            env={
                "PATH": os.environ["PATH"],
                "PORT": str(server.getsockname()[1]),
                "http_proxy": "http://127.0.0.1:9",
                "HTTP_PROXY": "http://127.0.0.1:9",
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        thread.join()

    assert requests[0].startswith(f"GET /health/{path} HTTP/1.1\r\nHost: localhost\r\n".encode())
    assert done.returncode == (0 if status == 200 else 1)
    assert ('{"ready": "?"}' in done.stdout) == (status != 200), "what is wrong is kept by Docker"


def test_the_health_check_fails_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {"PATH": os.environ["PATH"], "PORT": str(port)}

    done = subprocess.run(
        [ROOT / "docker" / "health", "live"], env=environment, capture_output=True, check=False
    )

    assert done.returncode == 1


@pytest.mark.parametrize("service", SERVICES)
def test_every_setting_can_be_given_from_outside(service: str) -> None:
    names = {*SETTINGS[service], *LISTENING} - OF_COMPOSE_ITSELF
    given = CONTAINERS[service]["environment"]

    for name in names:
        assert name in given, f"{service}: {name} is set in the shell and has no effect"
        value = given[name]
        assert value is None or "${" in value, f"{service}: {name} is {value} for good"


def test_the_broker_is_told_how_much_memory_its_container_has() -> None:
    memory = CONTAINERS["rabbitmq"]["mem_limit"]

    assert CONTAINERS["provision"]["environment"]["BROKER_MEMORY"] == memory
    assert "broker:/etc/rabbitmq:ro" in CONTAINERS["rabbitmq"]["volumes"]
    assert "broker:/broker" in CONTAINERS["provision"]["volumes"]


def test_the_broker_gets_all_that_it_reads_at_start(tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "rabbitmq.provision", "--host", "rabbitmq"),
            *("--secrets", tmp_path / "secrets", "--configuration", tmp_path / "broker"),
            *("--definitions", tmp_path / "broker" / "definitions"),
        ],
        cwd=ROOT,
        env={**os.environ, "BROKER_MEMORY": "700m"},
        check=True,
    )

    files = [path for path in (tmp_path / "broker").rglob("*") if path.is_file()]
    assert {str(path.relative_to(tmp_path / "broker")) for path in files} == {
        *("rabbitmq.conf", "rabbitmq-env.conf", "advanced.config", "enabled_plugins"),
        *("health", "health_login"),
        *("definitions/users.json", "definitions/topology.json"),
    }
    # Read by another user, in another container.
    assert {path.stat().st_mode & 0o777 for path in files} == {0o644}
    conf = (tmp_path / "broker" / "rabbitmq.conf").read_text()
    assert conf.startswith((ROOT / "rabbitmq" / "rabbitmq.conf").read_text())
    assert "\ntotal_memory_available_override_value = 700m\n" in conf
    log_size = r"wal_max_size_bytes, 67108864\}"
    assert len(re.findall(log_size, (tmp_path / "broker" / "advanced.config").read_text())) == 2


def test_every_volume_is_declared() -> None:
    mounts = [mount for each in CONTAINERS.values() for mount in each.get("volumes", [])]

    assert {mount.split(":")[0] for mount in mounts} == set(COMPOSE["volumes"])


def test_mails_outlive_their_container_and_do_not_fill_its_memory() -> None:
    mailpit = CONTAINERS["mailpit"]
    folder = str(Path(mailpit["environment"]["MP_DATABASE"]).parent)

    assert f"mails:{folder}" in mailpit["volumes"]
    assert not [mount for mount in mailpit["tmpfs"] if mount.startswith(folder)]
    # An empty volume takes over its owner from the first image that it is mounted in.
    assert f"mails:{folder}" in CONTAINERS["provision"]["volumes"]
    assert any(folder in line for line in stages()["provision"] if "install --directory" in line)


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
        if (ROOT / source).is_dir():
            shutil.copytree(ROOT / source, tmp_path / source)
        else:
            (tmp_path / source).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / source, tmp_path / source)
    module = "rabbitmq.provision" if name == "provision" else f"{name}.app"

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            f"import {module}, common.http.version; common.http.version.version()",
        ],
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
        assert {source.split("/")[0] for source in copied(instructions)} <= allowed | {
            "requirements"
        }


@pytest.mark.parametrize("reader", DISTRIBUTED)
def test_a_container_gets_its_own_secrets_and_no_other_s(reader: str) -> None:
    volume = f"{reader.replace('_', '-')}-secrets"
    mounts = CONTAINERS[reader]["volumes"]
    files = {
        Path(value).name
        for name, value in CONTAINERS[reader]["environment"].items()
        if name.endswith("_FILE")
    }

    assert f"{volume}:/distributed/{reader}" in CONTAINERS["provision"]["volumes"]
    assert [mount for mount in mounts if "secrets" in mount] == [f"{volume}:/secrets:ro"]
    assert files == set(DISTRIBUTED[reader])


def test_no_secret_is_written_into_the_recipes() -> None:
    for name, container in CONTAINERS.items():
        for variable, value in container.get("environment", {}).items():
            secret = re.search(r"PASSWORD|SECRET|QUEUE_URL", variable)
            # Without a value it is passed on from outside.
            assert not secret or variable.endswith("_FILE") or value is None, f"{name}: {variable}"


def test_secrets_are_made_once_and_handed_out_again(tmp_path: Path) -> None:
    def provision() -> dict[str, str]:
        subprocess.run(
            [
                *(sys.executable, "-m", "rabbitmq.provision", "--host", "rabbitmq"),
                *("--definitions", tmp_path / "definitions", "--secrets", tmp_path / "secrets"),
                *("--distribute", tmp_path / "out"),
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
        f"{reader}/{name}" for reader in DISTRIBUTED for name in DISTRIBUTED[reader]
    }
    assert first["postgres/db_password"] == first["database_service/db_password"]
    assert first["sender/queue_url"].startswith("amqp://sender:")
    assert "@rabbitmq:5672/" in first["sender/queue_url"]
    topology = (tmp_path / "definitions" / "topology.json").read_text()
    assert topology.strip() == (ROOT / "rabbitmq" / "definitions.json").read_text().strip()
