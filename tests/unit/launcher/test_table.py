from pathlib import Path
from typing import Any

from launcher.table import overview, status_lines

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
    text = overview(CONNECTIONS, data=Path("/data"))

    for url in (*CONNECTIONS["services"].values(), "http://localhost:21080", "/data/logs"):
        assert url in text
    assert "user userstream, password pw" in text


def test_overview_leaves_out_parts_that_are_not_ours() -> None:
    text = overview(
        {**CONNECTIONS, "rabbitmq": None, "postgres": None, "mailbox": None}, data=Path("/data")
    )

    assert "RabbitMQ" not in text
    assert "mailbox" not in text


def test_status_names_what_is_not_ready() -> None:
    part = {"url": "http://localhost:3000", "pid": None, "ready": False, "restarts": 2}

    (line,) = status_lines({"services": {"frontend": part}, "parts": {}})

    assert line.split() == ["frontend", "NOT", "READY", part["url"], "down", "restarts", "2"]
