"""``./userstream mails``, against a service that only listens."""

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tools.launcher.__main__ import main
from tools.launcher.arguments import parser
from tools.launcher.state import StateFile

MAIL = {
    "notificationId": "0192f7a4-5b7c-5c3e-9f10-2b6d1c3a4e5f",
    "template": "welcome",
    "status": "bounced",
    "reason": "5.1.1 no such user",
    "recipient": "ada@example.org",
    "createdAt": "2026-11-21T10:00:00Z",
    "sentAt": "2026-11-21T10:00:02Z",
    "attempts": [
        {
            "attempt": 1,
            "status": "failed",
            "replyCode": 550,
            "replyText": "5.7.1 no",
            "at": "2026-11-21T10:00:01Z",
        },
    ],
    "resends": [
        {
            "askedAt": "2026-11-21T10:00:02Z",
            "askedBy": "ops",
            "reason": "repaired",
            "statusBefore": "failed",
            "forced": False,
        }
    ],
    "bounces": [
        {
            "reportedAt": "2026-11-21T11:00:00Z",
            "action": "failed",
            "status": "5.1.1",
            "diagnostic": "no such user",
        }
    ],
}


class Service:
    """Answers what it is told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str, Any]] = []
        self.answers: list[tuple[int, Any]] = []

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        self.asked.append((handler.command, handler.path, json.loads(body) if body else None))
        status, answer = self.answers.pop(0)
        content = json.dumps(answer).encode() if answer is not None else b""
        handler.send_response(status)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        handler.wfile.write(content)


@pytest.fixture
def service() -> Iterator[tuple[Service, str]]:
    service = Service()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            service.answer(self)

        do_POST = do_DELETE = do_GET  # noqa: N815 - what the library calls

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield service, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(service: tuple[Service, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """The launcher on a stack that is nothing but that service; exit code and what it printed."""
    _, url = service
    state = StateFile(tmp_path)
    assert state.claim()
    state.write({"connections": {"services": {"sender": url, "database_service": url}}})

    def call(*line: str) -> tuple[int, str]:
        code = main(["mails", *line, "--data", str(tmp_path)])
        return code, capsys.readouterr().out

    return call


def test_a_mail_is_shown_with_all_that_became_of_it(run: Run, service: tuple[Service, str]) -> None:
    service[0].answers = [(200, MAIL)]

    code, text = run("show", MAIL["notificationId"])

    assert code == 0
    assert "status     bounced 5.1.1 no such user" in text
    assert "attempt 1  2026-11-21T10:00:01Z  failed  550 5.7.1 no" in text
    assert "ops had it sent again when it was failed: repaired" in text
    assert "report     2026-11-21T11:00:00Z  failed  5.1.1  no such user" in text
    assert service[0].asked == [("GET", f"/api/notifications/{MAIL['notificationId']}", None)]


def test_what_the_service_says_against_it_is_said(
    run: Run, service: tuple[Service, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("tools.launcher.terminal.Terminal.fail", lambda _, text: said.append(text))
    service[0].answers = [(409, {"detail": "A sender is sending this mail.", "code": "conflict"})]

    code, text = run("resend", "an/odd id")

    assert (code, text, said) == (1, "", ["A sender is sending this mail."])
    assert service[0].asked[0][1] == "/api/notifications/an%2Fodd%20id/resend"


def test_a_day_is_sent_again_page_by_page(run: Run, service: tuple[Service, str]) -> None:
    page = {"found": 1000, "resent": 990, "suppressed": 10, "unwritable": 0, "changed": 0}
    last = {"found": 5, "resent": 4, "suppressed": 0, "unwritable": 0, "changed": 1}
    service[0].answers = [
        (200, {**page, "dryRun": False, "nextAfter": 17}),
        (200, {**last, "dryRun": False, "nextAfter": None}),
    ]

    code, text = run("resend", "--failed", "--day", "2026-11-21", "--reason", "repaired", "--json")

    assert code == 0
    assert json.loads(text) == {
        "dryRun": False,
        "found": 1005,
        "resent": 994,
        "suppressed": 10,
        "unwritable": 0,
        "changed": 1,
        "nextAfter": None,
    }
    bodies = [body for _, _, body in service[0].asked]
    assert [body["after"] for body in bodies] == [None, 17]
    assert {body["status"] for body in bodies} == {"failed"}
    assert {body["reason"] for body in bodies} == {"repaired"}
    assert {body["dryRun"] for body in bodies} == {False}


def test_a_limit_is_kept_and_the_rest_told_of(run: Run, service: tuple[Service, str]) -> None:
    page = {"found": 3, "resent": 3, "suppressed": 0, "unwritable": 0, "changed": 0}
    service[0].answers = [(200, {**page, "dryRun": True, "nextAfter": 17})]

    _, text = run("resend", "--unsure", "--day", "2026-11-21", "--limit", "3", "--dry-run")

    assert "3  would be sent again" in text
    assert "There are more" in text
    assert service[0].asked[0][2]["limit"] == 3


def test_an_address_is_taken_off_the_list(run: Run, service: tuple[Service, str]) -> None:
    service[0].answers = [(204, None)]

    code, text = run("suppressed", "ada+1@example.org", "--remove")

    assert (code, text) == (0, "It gets mails again.\n")
    assert service[0].asked == [("DELETE", "/api/suppressions/ada%2B1%40example.org", None)]


def test_the_whole_list_is_shown(run: Run, service: tuple[Service, str]) -> None:
    entry = {"suppressedAt": "2026-11-21T10:00:00Z", "status": "5.1.1", "diagnostic": "no"}
    service[0].answers = [
        (200, {"addresses": [{"address": "a@example.org", **entry}], "nextAfter": "a@example.org"}),
        (200, {"addresses": [{"address": "b@example.org", **entry}], "nextAfter": None}),
    ]

    _, text = run("suppressed")

    assert [line.split()[1] for line in text.splitlines()] == ["a@example.org", "b@example.org"]
    assert service[0].asked[1][1] == "/api/suppressions?limit=500&after=a%40example.org"


@pytest.mark.parametrize(
    "line",
    [
        "resend --failed",
        "resend --failed --day 2026-11-21 --force",
        "resend ID --day 2026-11-21",
        "suppressed --remove",
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_is_asked(
    run: Run, service: tuple[Service, str], line: str
) -> None:
    code, _ = run(*line.split())

    assert (code, service[0].asked) == (1, [])


@pytest.mark.parametrize("line", ["mails", "mails resend", "mails resend ID --failed", "mails eat"])
def test_a_line_without_meaning_ends_with_exit_code_2(line: str) -> None:
    with pytest.raises(SystemExit) as ended:
        parser().parse_args(line.split())

    assert ended.value.code == 2


def test_nothing_is_asked_where_nothing_runs(tmp_path: Path) -> None:
    assert main(["mails", "show", "ID", "--data", str(tmp_path)]) == 1
