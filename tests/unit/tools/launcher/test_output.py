from pathlib import Path
from typing import Any

from tools.launcher.invocation import Invocation
from tools.launcher.output import overview, status_lines

HERE = Invocation(offset=0, data=Path("/data"))

CONNECTIONS: dict[str, Any] = {
    "services": {
        name: f"http://localhost:{port}"
        for name, port in {
            "frontend": 3000,
            "queue_receiver": 8081,
            "sender": 8082,
            "database_service": 8083,
            "report_generator": 8084,
        }.items()
    },
    "rabbitmq": {
        "amqp": "amqp://userstream:pw@127.0.0.1:21672/%2F",
        "management": "http://localhost:21673",
        "user": "userstream",
        "password": "pw",
    },
    "postgres": {"dsn": "postgresql://userstream:pw@127.0.0.1:21432/userstream"},
    "mailbox": {"web": "http://localhost:21080", "smtpHost": "127.0.0.1", "smtpPort": 21025},
    "logs": "/data/logs",
}


def test_overview_shows_where_to_go_and_how_to_log_in() -> None:
    text = overview(CONNECTIONS, HERE)

    for url in (*CONNECTIONS["services"].values(), "http://localhost:21080", "/data/logs"):
        assert url in text
    assert "the queues; user userstream" in text
    assert text.count("password pw") == 2


def test_overview_fits_a_terminal_and_takes_one_line_for_each_thing() -> None:
    password = "f" * 48
    connections = {
        **CONNECTIONS,
        "rabbitmq": {**CONNECTIONS["rabbitmq"], "password": password},
        "postgres": {"dsn": f"postgresql://userstream:{password}@127.0.0.1:21432/userstream"},
    }

    lines = overview(connections, HERE).splitlines()

    assert max(map(len, lines)) <= 80
    assert sum("http://" in line for line in lines) == 7


def test_what_the_overview_tells_to_type_is_for_this_stack() -> None:
    text = overview(CONNECTIONS, Invocation(offset=100, data=Path("/my data")))

    assert "./userstream status --port-offset 100 --data '/my data'" in text


def test_overview_leaves_out_parts_that_are_not_ours() -> None:
    text = overview(
        {**CONNECTIONS, "rabbitmq": None, "postgres": None, "mailbox": None},
        HERE,
    )

    assert "RabbitMQ" not in text
    assert "mailbox" not in text


def test_status_names_what_is_not_ready() -> None:
    part = {"url": "http://localhost:3000", "pid": None, "ready": False, "restarts": 2}

    (line,) = status_lines({"services": {"frontend": part}, "parts": {}})

    assert line.split() == ["frontend", "NOT", "READY", part["url"], "down", "restarts", "2"]


def test_status_says_why_something_is_not_ready() -> None:
    part = {"url": "http://localhost:8082", "pid": 1, "ready": False, "restarts": 0}
    waits = {"smtp": "The mail server does not answer."}

    _, *reasons = status_lines({"services": {"sender": {**part, "waitsFor": waits}}, "parts": {}})

    assert reasons == ["  sender waits for smtp: The mail server does not answer."]


def test_status_shows_what_services_note_and_marks_what_wants_attention() -> None:
    part = {"url": "http://localhost:3000", "pid": 1, "ready": True, "restarts": 0}
    canary = {"warning": False, "detail": "last full round trip 12 s ago, 340 ms"}
    ledger = {"warning": True, "detail": "2 registrations are lost"}

    _, _, *notes = status_lines(
        {
            "services": {
                "frontend": {**part, "notes": {"canary": canary}},
                "queue_receiver": {**part, "notes": {"ledger": ledger}},
            },
            "parts": {},
        }
    )

    assert notes == [
        "  frontend, canary: last full round trip 12 s ago, 340 ms",
        "  queue_receiver, ledger: WARNING: 2 registrations are lost",
    ]
