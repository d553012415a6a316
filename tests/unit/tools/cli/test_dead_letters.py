import io
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

from tools.cli import dead_letters
from tools.launcher.arguments import parser
from tools.launcher.errors import LauncherError
from tools.launcher.terminal import Terminal

MESSAGE: dict[str, Any] = {
    "id": "0192f7a4-5b7c-7c3e-9f10-2b6d1c3a4e5f",
    "route": "user.registration",
    "code": "malformed\x1b[2J",
    "detail": "Not a valid one.",
    "meaning": "Not the contract.",
    "advice": "Correct it.",
    "attempts": 1,
    "firstSeen": "",
    "failedService": "queue_receiver",
    "type": "",
    "sizeBytes": 2,
    "headers": {"x": "\x07"},
    "body": "{\n}",
}


class FakeService:
    """Stands for ``tools.cli.api_client``: answers one by one, and keeps what it was asked."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[tuple[str, str, Any]] = []

    def __call__(self, _data: Path, service: str, method: str, path: str, body: Any = None) -> Any:
        assert service == "queue_receiver"
        self.asked.append((method, path.removeprefix("/api/dead-letters"), body))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer


def said(line: str, service: FakeService, monkeypatch: pytest.MonkeyPatch) -> tuple[bool, str]:
    monkeypatch.setattr(dead_letters, "ask", service)
    monkeypatch.setattr(dead_letters, "POLL_SECONDS", 0)
    stream = io.StringIO()
    monkeypatch.setattr(dead_letters, "STDERR", Terminal(io.StringIO()))
    given: Namespace = parser().parse_args(["dead-letters", *line.split()])
    return dead_letters.run(given, Terminal(stream)), stream.getvalue()


def a_page(*messages: dict[str, Any], after: str | None = None) -> dict[str, Any]:
    said = ("route", "code", "meaning", "advice")
    groups = [{name: x[name] for name in said} | {"count": 1} for x in messages]
    return {"queues": [], "groups": groups, "messages": list(messages), "nextAfter": after}


def test_all_pages_are_listed_and_nothing_moves_the_cursor(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService(a_page(MESSAGE, after="a"), a_page(MESSAGE))

    good, text = said("--code malformed", service, monkeypatch)

    assert good
    assert text.count(MESSAGE["id"]) == 2
    assert "Not the contract. Correct it." in text
    assert "\x1b" not in text
    assert service.asked[1][1] == "?code=malformed&limit=500&after=a"


def test_nothing_there_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "No message waits" in said("", FakeService(a_page()), monkeypatch)[1]


def test_where_only_others_wait_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    others = a_page(MESSAGE) | {"messages": []}

    _, text = said("--code too_large", FakeService(others), monkeypatch)

    assert text.splitlines()[-1] == "None of these has that route and code."


def test_the_body_alone_can_be_kept_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService(MESSAGE)

    assert said("show x --unmask --body", service, monkeypatch)[1] == "{\n}\n"
    assert service.asked == [("GET", "/x?unmask=true", None)]


def test_one_is_shown_as_a_person_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    text = said("show x", FakeService(MESSAGE), monkeypatch)[1]

    assert "given up by   queue_receiver" in text
    assert not {"\x1b", "\x07"} & set(text)


def a_redrive(state: str) -> dict[str, Any]:
    return {
        "redriveId": "r", "state": state, "total": 3, "sent": 2, "handled": 1, "failed": 1,
        "detail": "Said by the service.",
    }  # fmt: skip


@pytest.mark.parametrize("state", ["done", "failed"])
def test_a_redrive_is_followed_to_its_end(state: str, monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService(a_redrive("running"), a_redrive("running"), a_redrive(state))

    done, text = said("redrive --code c --rate 5 --json", service, monkeypatch)

    assert done is (state == "done")
    assert json.loads(text)["state"] == state
    wish = {"code": "c", "rate": 5, "waitSeconds": 60}
    assert service.asked[0] == ("POST", "/redrive", wish)


def test_ctrl_c_stops_the_redrive(monkeypatch: pytest.MonkeyPatch) -> None:
    running, stopped = a_redrive("running"), a_redrive("stopped")
    service = FakeService(running, KeyboardInterrupt(), running, stopped)

    done, text = said("redrive --all", service, monkeypatch)

    assert not done
    assert ("POST", "/redrives/r/stop", None) in service.asked
    assert "stopped" in text


def test_nothing_is_sent_back_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LauncherError, match="Which messages"):
        said("redrive", FakeService(), monkeypatch)


def test_a_file_that_is_no_json_is_not_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LauncherError, match="cannot be read as JSON"):
        said("resend x --body README.md", FakeService(), monkeypatch)


def test_a_reason_goes_with_who_gave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService({})
    monkeypatch.setattr(dead_letters, "person", lambda: "ada")

    said("discard x --reason nonsense", service, monkeypatch)

    assert service.asked == [("POST", "/x/discard", {"reason": "nonsense", "discardedBy": "ada"})]


def test_a_kind_is_discarded_with_one_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    service = FakeService({"discarded": 12})
    monkeypatch.setattr(dead_letters, "person", lambda: "ada")

    _, text = said("discard --code malformed --reason nonsense", service, monkeypatch)

    wish = {"code": "malformed", "reason": "nonsense", "discardedBy": "ada"}
    assert service.asked == [("POST", "/discard", wish)]
    assert "12 discarded" in text


def test_nothing_is_discarded_by_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(LauncherError, match=r"Name ids, --route, --code\."):
        said("discard --reason nonsense", FakeService(), monkeypatch)
