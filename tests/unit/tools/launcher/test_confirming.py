"""What an examination of a broker finds, by what its management API answers."""

import threading
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tools.launcher.broker import ask_management
from tools.launcher.confirming import QUEUE, examine_broker
from tools.launcher.errors import LauncherError


class Api:
    """Answers as the management API does."""

    def __init__(self) -> None:
        self.queues: set[str] = set()
        self.alarms: Any = {"mem_alarm": False, "disk_free_alarm": False}
        self.dead: set[str] = set()
        """Queues that confirm nothing."""
        self.answers = True
        self.confirms = True

    def __call__(self, method: str, path: str, body: Any) -> Any:
        if not self.answers:
            raise TimeoutError("timed out")
        path = path.partition("?")[0]
        match method, path:
            case "GET", "/api/nodes":
                return [self.alarms]
            case "GET", "/api/queues/%2F":
                return [{"name": name} for name in self.queues]
            case "PUT", _:
                assert body["arguments"]["x-queue-type"] == "quorum"  # only those need the log
                self.queues.add(path.rpartition("/")[2])
            case "DELETE", _:
                self.queues.remove(path.rpartition("/")[2])
                self.dead.discard(path.rpartition("/")[2])
            case "POST", "/api/exchanges/%2F/amq.default/publish":
                queue = body["routing_key"]
                if queue not in self.queues:
                    return {"routed": False}
                if queue in self.dead or not self.confirms:
                    raise TimeoutError("timed out")
                return {"routed": True}
        return None


def test_a_broker_that_confirms_is_well_with_and_without_the_queue() -> None:
    api = Api()

    assert examine_broker(api).problem == ""
    assert api.queues == {QUEUE}
    assert examine_broker(api).problem == ""


def test_a_broker_that_confirms_nothing_needs_a_restart() -> None:
    api = Api()
    examine_broker(api)
    api.confirms = False

    finding = examine_broker(api)

    assert finding.needs_restart
    assert "confirms no message" in finding.problem


def test_a_queue_that_is_broken_alone_is_made_anew() -> None:
    api = Api()
    examine_broker(api)
    api.dead = {QUEUE}

    assert examine_broker(api).problem == ""


def test_a_broker_that_has_no_statistics_yet_is_examined_all_the_same() -> None:
    api = Api()
    api.alarms = []  # as RabbitMQ writes an empty object

    assert examine_broker(api).problem == ""


@pytest.mark.parametrize(
    ("alarm", "word"), [("mem_alarm", "memory"), ("disk_free_alarm", "disk space")]
)
def test_an_alarm_is_a_problem_that_no_restart_cures(alarm: str, word: str) -> None:
    api = Api()
    api.alarms[alarm] = True
    api.confirms = False

    finding = examine_broker(api)

    assert word in finding.problem
    assert not finding.needs_restart


def test_a_broker_that_does_not_answer_at_all_needs_a_restart() -> None:
    api = Api()
    api.answers = False

    assert examine_broker(api).needs_restart


def test_a_refusal_is_told_in_its_words() -> None:
    def refuse(*_: object) -> Any:
        raise LauncherError("GET /api/nodes: 401 not_authorised")

    assert "401 not_authorised" in examine_broker(refuse).problem


class Nonsense(BaseHTTPRequestHandler):
    """Answers with something that is no JSON and no UTF-8."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>\xff")

    def log_message(self, *_arguments: object) -> None:
        pass


def test_an_answer_that_is_no_json_is_a_finding_and_ends_nobody() -> None:
    with HTTPServer(("127.0.0.1", 0), Nonsense) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        ask = partial(ask_management, port=server.server_port, user="a", password="b")

        finding = examine_broker(ask)

        server.shutdown()
    assert finding.needs_restart
    assert "no JSON" in finding.problem
