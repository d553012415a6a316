"""``--url``: which address of which service it stands for."""

from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from tools.cli import api_client as asking
from tools.cli.api_client import Addresses
from tools.launcher.errors import LauncherError
from tools.launcher.ports import BASE_PORTS
from tools.launcher.services import SETTINGS


def addresses(*urls: str, offset: int = 0) -> Addresses:
    return Addresses.parse(urls, offset=offset)


@pytest.fixture
def knows(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Address to the service that says it is there."""
    known: dict[str, str] = {}

    def health(base: str) -> dict[str, str] | None:
        return {"service": known[base]} if base in known else None

    monkeypatch.setattr(asking, "health", health)
    return known


@pytest.mark.parametrize("text", ["http://localhost", "localhost", "http://localhost/"])
@pytest.mark.parametrize("service", SETTINGS)
def test_a_host_stands_for_all_services_at_their_usual_ports(text: str, service: str) -> None:
    assert addresses(text).of(service) == f"http://localhost:{BASE_PORTS[service]}"
    assert addresses(text, offset=7).of(service) == f"http://localhost:{BASE_PORTS[service] + 7}"


@pytest.mark.parametrize("who", SETTINGS)
@pytest.mark.parametrize("service", SETTINGS)
def test_one_service_tells_where_the_others_are(
    who: str, service: str, knows: dict[str, str]
) -> None:
    base = f"http://[::1]:{BASE_PORTS[who] + 100}"
    knows[base] = who

    assert addresses(base).of(service) == f"http://[::1]:{BASE_PORTS[service] + 100}"


def test_a_service_behind_a_name_of_its_own_stands_for_itself(knows: dict[str, str]) -> None:
    knows["https://receiver.example.org/inner"] = "queue_receiver"
    found = addresses("https://receiver.example.org/inner/")

    assert found.of("queue_receiver") == "https://receiver.example.org/inner"
    with pytest.raises(LauncherError, match="--url sender=http://HOST:PORT"):
        found.of("sender")


def test_a_service_can_be_named(knows: dict[str, str]) -> None:
    knows["http://a:8081"] = "queue_receiver"
    found = addresses("http://a:8081", "sender=https://mail.example.org")

    assert found.of("sender") == "https://mail.example.org"
    assert found.of("queue_receiver") == "http://a:8081"


@pytest.mark.parametrize(
    "text", ["", "ftp://localhost", "http://", "http://a:b", "mailer=http://a", "http://a:99999"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(LauncherError, match="--url"):
        addresses(text).of("sender")


@pytest.mark.usefixtures("knows")
def test_where_nobody_of_ours_answers_it_says_so() -> None:
    with pytest.raises(LauncherError, match="http://localhost:9999 does not answer"):
        addresses("http://localhost:9999").of("sender")


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(self.server.said)  # type: ignore[attr-defined]

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Health)
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("said", "who"),
    [
        (b'{"service": "sender"}', "sender"),
        (b'{"service": "grafana"}', None),
        (b"<html>", None),
        (b"[]", None),
    ],
)
def test_only_a_service_of_ours_counts(
    server: ThreadingHTTPServer, said: bytes, who: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")  # this machine is asked without it
    server.said = said  # type: ignore[attr-defined]

    found = asking.health(f"http://127.0.0.1:{server.server_port}")

    assert (found and found["service"]) == who


def test_without_anything_the_addresses_are_not_known() -> None:
    empty: Sequence[str] = ()

    with pytest.raises(LauncherError, match="Where is sender"):
        addresses(*empty).of("sender")
