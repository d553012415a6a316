"""The health check of compose's broker: a confirm, and an end to one that confirms nothing."""

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.backends import TestBroker

HEALTH = Path(__file__).resolve().parents[2] / "rabbitmq" / "health"

FAILURES_TO_END = 6


class Broker(ThreadingHTTPServer):
    """A management API that says what it is told to."""

    publishes: str = '{"routed":true}'
    nodes: str = '[{"mem_alarm":false,"disk_free_alarm":false}]'


class Handler(BaseHTTPRequestHandler):
    def answer(self) -> None:
        assert isinstance(self.server, Broker)
        self.rfile.read(int(self.headers["Content-Length"]))
        texts = {"POST": self.server.publishes, "GET": self.server.nodes}
        self.send_response(200)
        self.end_headers()
        self.wfile.write(texts.get(self.command, "").encode())

    do_GET = do_POST = do_PUT = do_DELETE = answer  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture
def broker_said_to() -> Iterator[Broker]:
    with Broker(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def program() -> Iterator[subprocess.Popen[bytes]]:
    """Stands for the broker's process."""
    with subprocess.Popen(["sleep", "600"]) as running:
        yield running
        running.kill()


def look(port: int | None, state: Path, target: int, *, login: str = "any:thing") -> int:
    """Run the health check once; returns its exit code."""
    (state / "login").write_text(base64.b64encode(login.encode()).decode())
    done = subprocess.run(
        ["bash", HEALTH],
        env={
            "PATH": os.environ["PATH"],
            "HEALTH_PORT": str(port),
            "HEALTH_STATE": str(state),
            "HEALTH_LOGIN": str(state / "login"),
            "HEALTH_TARGET": str(target),
        },
        capture_output=True,
        check=False,
        timeout=60,
    )
    return done.returncode


def test_a_broker_that_confirms_is_healthy(
    broker: TestBroker, tmp_path: Path, program: subprocess.Popen[bytes]
) -> None:
    port = urlsplit(broker.management_url).port

    # The first look makes the queue that it publishes to.
    codes = [look(port, tmp_path, program.pid, login=":".join(broker.admin)) for _ in range(2)]

    [queue] = [
        queue
        for queue in broker.management("GET", "/api/queues")
        if queue["name"] == "health.probe"
    ]
    broker.management("DELETE", "/api/queues/%2F/health.probe")
    assert codes == [0, 0]
    assert queue["type"] == "quorum"
    assert program.poll() is None


def test_a_broker_that_stops_confirming_is_ended_once(
    broker_said_to: Broker, tmp_path: Path, program: subprocess.Popen[bytes]
) -> None:
    port = broker_said_to.server_port
    assert look(port, tmp_path, program.pid) == 0
    broker_said_to.publishes = "timeout"

    for _ in range(FAILURES_TO_END - 1):
        assert look(port, tmp_path, program.pid) == 1
    assert program.poll() is None
    assert look(port, tmp_path, program.pid) == 1

    assert program.wait(timeout=30) == -9


def test_failures_that_a_confirm_lies_between_are_not_added_up(
    broker_said_to: Broker, tmp_path: Path, program: subprocess.Popen[bytes]
) -> None:
    for _ in range(2):
        broker_said_to.publishes = '{"routed":true}'
        assert look(broker_said_to.server_port, tmp_path, program.pid) == 0
        broker_said_to.publishes = "timeout"
        for _ in range(FAILURES_TO_END - 1):
            assert look(broker_said_to.server_port, tmp_path, program.pid) == 1

    assert program.poll() is None


def test_a_broker_that_is_starting_is_left_alone(
    tmp_path: Path, program: subprocess.Popen[bytes]
) -> None:
    with Broker(("127.0.0.1", 0), Handler) as server:
        port = server.server_port

    codes = [look(port, tmp_path, program.pid) for _ in range(FAILURES_TO_END + 2)]

    assert set(codes) == {1}
    assert program.poll() is None


@pytest.mark.parametrize("alarm", ["mem_alarm", "disk_free_alarm"])
def test_a_broker_that_lacks_memory_or_disk_is_left_alone(
    broker_said_to: Broker, tmp_path: Path, program: subprocess.Popen[bytes], alarm: str
) -> None:
    assert look(broker_said_to.server_port, tmp_path, program.pid) == 0
    broker_said_to.publishes = "timeout"
    broker_said_to.nodes = f'[{{"{alarm}":true}}]'

    codes = [
        look(broker_said_to.server_port, tmp_path, program.pid) for _ in range(FAILURES_TO_END + 2)
    ]

    assert set(codes) == {1}
    assert program.poll() is None
