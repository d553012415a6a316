"""What an examination of a broker finds, by what its management API answers."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from common.amqp.management import ManagementApi
from common.errors import BrokerUnavailableError
from tools.launcher.confirming import QUEUE, examine_broker


class Api(ManagementApi):
    """Answers as the management API does."""

    def __init__(self) -> None:
        self.queues: set[str] = set()
        self.node: dict[str, Any] = {"name": "rabbit@here"}
        self.dead: set[str] = set()
        """Queues that confirm nothing."""
        self.answers = True
        self.confirms = True

    def call(self, method: str, path: str, body: Any = None, **_: object) -> Any:
        if not self.answers:
            raise BrokerUnavailableError("timed out")
        path = path.partition("?")[0]
        match method, path:
            case "GET", "/api/nodes":
                return [self.node]
            case "PUT", _:
                assert body["arguments"]["x-queue-type"] == "quorum"  # only those need the log
                self.queues.add(path.rpartition("/")[2])
            case "DELETE", _:
                self.queues.discard(path.rpartition("/")[2])
                self.dead.discard(path.rpartition("/")[2])
            case "POST", "/api/exchanges/%2F/amq.default/publish":
                queue = body["routing_key"]
                if queue not in self.queues:
                    return {"routed": False}
                if queue in self.dead or not self.confirms:
                    raise BrokerUnavailableError("timed out")
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
    assert api.node.keys() == {"name"}

    assert examine_broker(api).problem == ""


@pytest.mark.parametrize(
    ("alarm", "word"), [("mem_alarm", "memory"), ("disk_free_alarm", "disk space")]
)
def test_an_alarm_is_a_problem_that_no_restart_cures(alarm: str, word: str) -> None:
    api = Api()
    api.node = {"name": "rabbit@here", "mem_alarm": False, "disk_free_alarm": False, alarm: True}
    api.confirms = False

    finding = examine_broker(api)

    assert word in finding.problem
    assert not finding.needs_restart


def test_a_broker_that_does_not_answer_at_all_needs_a_restart() -> None:
    api = Api()
    api.answers = False

    assert examine_broker(api).needs_restart


def test_a_refusal_is_told_in_its_words() -> None:
    class Refusing(Api):
        def call(self, *_: object, **__: object) -> Any:
            raise BrokerUnavailableError("127.0.0.1 refuses the user")

    assert "refuses the user" in examine_broker(Refusing()).problem


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
        finding = examine_broker(ManagementApi(f"http://a:b@127.0.0.1:{server.server_port}"))

        server.shutdown()
    assert finding.needs_restart
    assert "no JSON" in finding.problem
