"""The launcher's promises, through the real command and the real five services."""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import pytest

from tests.backends import TestPostgres
from tests.e2e.stack import PROJECT
from tools.launcher.ports import is_free, ports
from tools.testing.ephemeral_stack import free_offset

SERVICES = {"frontend", "queue_receiver", "sender", "database_service", "report_generator"}


@dataclass(frozen=True, kw_only=True)
class Launched:
    """One stack, commanded the way a person or a script does."""

    data: Path
    offset: int

    def run(self, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """Run ``./userstream`` with this stack's options and return what came of it."""
        return subprocess.run(
            self.command(*arguments),
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    def command(self, *arguments: str) -> list[str]:
        options = ["--port-offset", str(self.offset), "--data", str(self.data)]
        return [str(PROJECT / "userstream"), *options, *arguments]

    def up(self) -> dict[str, Any]:
        """Start it, unless it runs; where everything is, whoever may wait for whom just then."""
        where = self._json("up", "--detach", "--json")
        where.pop("waiting", None)
        return where

    def status(self) -> dict[str, Any]:
        return self._json("status", "--json")

    def down(self) -> None:
        """Stop it, if it runs."""
        done = self.run("down")
        assert done.returncode == 0, done.stderr

    def _json(self, *arguments: str) -> dict[str, Any]:
        done = self.run(*arguments)
        assert done.returncode == 0, done.stderr
        answer: dict[str, Any] = json.loads(done.stdout)
        return answer


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Launched]:
    """A stack of these tests' own, not started yet; stopped when they are done."""
    # A name that shell scripts and encodings have trouble with.
    launched = Launched(data=tmp_path_factory.mktemp("a stäck'"), offset=free_offset())
    yield launched
    launched.down()
    shutil.rmtree((launched.data / "postgres").resolve(), ignore_errors=True)


def test_up_prints_one_json_object_that_says_where_everything_is(stack: Launched) -> None:
    done = stack.run("up", "--detach", "--json")

    assert done.returncode == 0, done.stderr
    where = json.loads(done.stdout)
    assert set(where) == {"services", "rabbitmq", "postgres", "mailbox", "logs"}
    assert set(where["services"]) == SERVICES
    assert set(where["rabbitmq"]) == {"amqp", "management", "user", "password"}
    assert set(where["postgres"]) == {"dsn"}
    assert set(where["mailbox"]) == {"web", "smtpHost", "smtpPort"}
    assert where["services"]["frontend"] == f"http://localhost:{3000 + stack.offset}"
    assert Path(where["logs"], "frontend.log").exists()


def test_up_of_a_running_stack_answers_the_same(stack: Launched) -> None:
    assert stack.up() == stack.up()


def test_status_shows_every_part_ready(stack: Launched) -> None:
    stack.up()

    status = stack.status()

    assert set(status["services"]) == SERVICES
    assert set(status["parts"]) == {"rabbitmq", "postgres", "mailbox"}
    for part in (*status["services"].values(), *status["parts"].values()):
        assert part["ready"] is True
        assert _runs(part["pid"])


def test_every_address_of_the_start_table_answers(stack: Launched) -> None:
    where = stack.up()

    for url in (*where["services"].values(), where["mailbox"]["web"]):
        assert b"<html" in _page(url)


def test_data_and_logs_are_closed_to_other_users(stack: Launched) -> None:
    stack.up()

    assert stack.data.stat().st_mode & 0o777 == 0o700
    open_to_others = [
        path
        for path in (stack.data / "logs").iterdir()
        if path.stat().st_mode & 0o077 and path.is_file()
    ]
    assert open_to_others == []


def test_logs_of_all_parts_are_in_order_and_each_line_begins_with_its_time(
    stack: Launched,
) -> None:
    stack.up()

    lines = stack.run("logs").stdout.splitlines()

    assert lines == sorted(lines, key=lambda line: line[:23])
    assert {"sender", "rabbitmq", "launcher"} <= {line[24:].split()[0] for line in lines}


def test_a_command_asks_any_stack_by_url(stack: Launched) -> None:
    where = stack.up()["services"]
    elsewhere = stack.data / "none"

    def ask(*line: str) -> subprocess.CompletedProcess[str]:
        command = [str(PROJECT / "userstream"), *line, "--data", str(elsewhere)]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    status = ask("status", "--json", "--url", where["frontend"])
    ledger = ask("ledger", "--json", "--url", where["sender"])
    unknown = ask("mails", "show", "none", "--url", where["sender"])

    assert {
        name: part["ready"] for name, part in json.loads(status.stdout)["services"].items()
    } == (dict.fromkeys(SERVICES, True))
    assert ledger.returncode == 0, ledger.stderr
    assert "asOf" in json.loads(ledger.stdout)
    assert unknown.returncode == 1
    assert "Nothing runs" not in unknown.stderr


@pytest.mark.parametrize("part", ["sender", "database_service", "mailbox", "postgres", "rabbitmq"])
def test_part_that_is_killed_is_started_again(stack: Launched, part: str) -> None:
    stack.up()
    before = _parts(stack)[part]

    os.kill(before["pid"], signal.SIGKILL)

    def is_back() -> bool:
        now = _parts(stack)[part]
        return now["pid"] != before["pid"] and bool(now["ready"])

    _until(is_back, f"{part} is ready again")
    assert _parts(stack)[part]["restarts"] == before["restarts"] + 1
    log = stack.run("logs", "launcher").stdout
    assert f"{part} was ended by SIGKILL" in log
    assert f"{part} was started again" in log


def test_logs_of_an_unknown_part_names_the_known_ones(stack: Launched) -> None:
    stack.up()

    done = stack.run("logs", "reciever")

    assert done.returncode == 1
    assert "queue_receiver" in done.stderr


def test_offset_out_of_range_is_a_usage_error(stack: Launched) -> None:
    assert stack.run("--port-offset", "60000", "status").returncode == 2


def test_data_and_secrets_are_still_there_after_down_and_up(stack: Launched) -> None:
    where = stack.up()
    email = f"{uuid4().hex}@example.org"
    _request(
        "POST",
        where["services"]["database_service"] + "/api/users",
        {"name": "Ada", "surname": "Lovelace", "email": email},
    )

    stack.down()
    again = stack.up()

    for each in (where, again):  # who waited for what at that moment
        each.pop("waiting", None)
    assert again == where
    found = _request("GET", where["services"]["database_service"] + f"/api/users/email/{email}")
    assert found["name"] == "Ada"


def test_down_leaves_nothing_behind(stack: Launched) -> None:
    stack.up()
    status = stack.status()

    stack.down()

    assert _left(status, stack) == []
    assert json.loads(stack.run("status", "--json").stdout) == {"running": False}


def test_taken_port_is_named_with_what_wanted_it_before_anything_starts(stack: Launched) -> None:
    stack.down()
    wanted = ports(stack.offset)["rabbitmq management"]
    with socket.create_server(("127.0.0.1", wanted)):
        done = stack.run("up", "--detach", "--json")

    assert done.returncode == 1
    assert done.stdout == ""
    assert f"{wanted} (for rabbitmq management)" in done.stderr
    assert "--port-offset" in done.stderr
    assert "Starting" not in done.stderr


def test_database_named_in_the_environment_replaces_the_launchers_own(
    stack: Launched, postgres: TestPostgres
) -> None:
    stack.down()
    named = urlsplit(postgres.dsn)

    done = stack.run(
        *("up", "--detach", "--json"),
        DB_HOST=str(named.hostname),
        DB_PORT=str(named.port),
        DB_NAME=named.path.lstrip("/"),
        DB_USER=str(named.username),
        DB_PASSWORD=str(named.password),
    )

    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["postgres"] is None
    assert is_free(ports(stack.offset)["postgres"])
    stack.down()


def test_parts_of_others_that_are_away_stop_nobody_and_are_named(tmp_path: Path) -> None:
    stack = Launched(data=tmp_path / "new", offset=free_offset())
    nobody = "127.0.0.1:9"  # discard: nothing listens there

    try:
        done = stack.run(
            *("up", "--detach", "--json"),
            QUEUE_URL=f"amqp://guest:guest@{nobody}/%2F",
            DB_HOST="127.0.0.1",
            DB_PORT="9",
            SMTP_HOST="127.0.0.1",
            SMTP_PORT="9",
            SMTP_SECURE="none",
        )
        told = stack.run("status")

        assert done.returncode == 0, done.stderr
        where = json.loads(done.stdout)
        assert {part: where[part] for part in ("rabbitmq", "postgres", "mailbox")} == {
            "rabbitmq": None,
            "postgres": None,
            "mailbox": None,
        }
        assert set(where["waiting"]) == SERVICES
        assert "smtp" in where["waiting"]["sender"]
        for text in (done.stderr, told.stdout):
            assert "sender waits for smtp:" in text
            assert "database_service waits for postgres:" in text
        assert f"--port-offset {stack.offset} --data" in done.stderr
        assert b"<form" in _page(where["services"]["frontend"])
    finally:
        stack.down()


def test_interrupted_demo_stops_everything_in_order(stack: Launched) -> None:
    stack.down()
    with subprocess.Popen(
        stack.command("demo"), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as demo:
        assert demo.stdout is not None
        for line in demo.stdout:
            if "Ctrl-C stops everything" in line:
                break
        status = stack.status()
        demo.send_signal(signal.SIGINT)
        said = demo.stdout.read()

    assert demo.returncode == 0, said
    assert not any(line.startswith("  … ") for line in said.splitlines())
    stopped = [line.split("Stopping ")[1] for line in said.splitlines() if "✓ Stopping" in line]
    assert [line.split()[0].rstrip(",") for line in stopped] == [
        *("frontend", "queue_receiver", "database_service"),
        *("mailbox", "postgres", "rabbitmq", "epmd"),
    ]
    assert _left(status, stack) == []


def test_nothing_outlives_a_supervisor_that_is_killed(stack: Launched) -> None:
    stack.up()
    status = stack.status()

    os.kill(status["supervisor"], signal.SIGKILL)

    _until(lambda: not _left(status, stack), "every process is gone")
    assert stack.run("status").returncode == 1


def _page(url: str) -> bytes:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        connection.request("GET", "/", headers={"Accept": "text/html"})
        response = connection.getresponse()
        assert response.status == 200, url
        return response.read()
    finally:
        connection.close()


def _parts(stack: Launched) -> dict[str, Any]:
    status = stack.status()
    return {**status["services"], **status["parts"]}


def _left(status: dict[str, Any], stack: Launched) -> list[str]:
    """What is still there of a stack: processes and listeners."""
    parts = {**status["services"], **status["parts"]}
    processes = [name for name, part in parts.items() if _runs(part["pid"])]
    listeners = [name for name, port in ports(stack.offset).items() if not is_free(port)]
    return processes + listeners


def _runs(pid: int) -> bool:
    """Whether the process is there and not just waiting to be collected."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 90
    while not condition():
        assert time.monotonic() < deadline, f"not within 90 s: {what}"
        time.sleep(0.1)


def _request(method: str, url: str, body: object = None) -> Any:
    parts = urlsplit(url)
    assert parts.hostname is not None
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    try:
        content = None if body is None else json.dumps(body)
        connection.request(method, parts.path, content, {"Content-Type": "application/json"})
        response = connection.getresponse()
        answer = response.read()
    finally:
        connection.close()
    assert response.status < 400, answer
    return json.loads(answer)
