"""The real broker and the real database that tests run against: found, or started.

First choice is what the environment names (``USERSTREAM_TEST_AMQP_URL``,
``USERSTREAM_TEST_MANAGEMENT_URL``, ``USERSTREAM_TEST_PG_DSN``), second a container where a
Docker engine answers, third private processes. ``USERSTREAM_TEST_BACKEND`` (``external``,
``docker``, ``native``) forces one.
"""

import base64
import http.client
import json
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

import pytest
import yaml

from common.contracts.topology import (
    BROKER_USERS,
    MONITOR,
    ROUTES,
    VHOST,
    definitions,
    queues,
    user_definitions,
)
from rabbitmq.provision import ADMINISTRATOR, TAGS, password_hash
from tools.launcher import postgres_programs
from tools.launcher.broker import CONFIGURATION, Broker, BrokerPorts, speaks_amqp
from tools.launcher.environment import tools_directory
from tools.launcher.errors import LauncherError
from tools.launcher.ports import free_ports
from tools.launcher.postgres import UNSAFE_BUT_FAST, Postgres
from tools.launcher.rabbitmq_programs import find_or_fetch

PORTS_PER_WORKER = 200
FIRST_PORT = 23000
"""Ports of test backends: below the ephemeral ones, beside the launcher's own."""

START_ATTEMPTS = 3
"""Another program may take a port between the look and the start."""

Started = TypeVar("Started", Broker, Postgres)

LOOPBACK = ("127.0.0.1",)
"""Where an engine publishes a port, at one that is free: its own default is every interface."""


@dataclass(slots=True, kw_only=True)
class TestBroker:
    """A broker with the project's topology and users."""

    __test__ = False

    admin_url: str
    """AMQP URL of a user with every right."""
    management_url: str
    """The management API, without a user."""
    admin: tuple[str, str]
    """User and password for the management API."""
    passwords: dict[str, str]
    """Broker user to password; one user per service, and the monitor."""
    native: Broker | None = None
    """The process behind it, where it is ours."""
    _address: str = field(init=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.admin_url)
        self._address = f"{parts.hostname}:{parts.port or 5672}"

    def url(self, service: str) -> str:
        """AMQP URL with the rights of one service."""
        return f"amqp://{service}:{self.passwords[service]}@{self._address}/%2F"

    @property
    def monitor_url(self) -> str:
        """What a service gets as ``QUEUE_MANAGEMENT_URL``."""
        host = self.management_url.removeprefix("http://")
        return f"http://{MONITOR}:{self.passwords[MONITOR]}@{host}"

    def management(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API; ``path`` begins with ``/api``."""
        parts = urlsplit(self.management_url)
        assert parts.hostname is not None
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        token = base64.b64encode(":".join(self.admin).encode()).decode()
        try:
            headers = {"Authorization": f"Basic {token}", "Content-Type": "application/json"}
            connection.request(method, path, json.dumps(body), headers)
            response = connection.getresponse()
            content = response.read()
        finally:
            connection.close()
        assert response.status < 400, f"{method} {path}: {response.status} {content!r}"
        return json.loads(content) if content else None

    def purge(self) -> None:
        """Empty every queue of the topology."""
        for name in queue_names():
            path = f"/api/queues/{quote(VHOST, safe='')}/{quote(name, safe='')}/contents"
            self.management("DELETE", path)

    def stop(self) -> None:
        """Stop the broker in good order; native only."""
        self._own().stop()

    def start(self) -> None:
        """Start it again with its data; native only."""
        self._own().start()

    def kill(self) -> None:
        """End it as a power cut would; native only."""
        self._own().kill()

    def freeze(self) -> None:
        """Make it hang without closing a connection; native only."""
        self._own().freeze()

    def thaw(self) -> None:
        """Let it go on after ``freeze``."""
        self._own().thaw()

    def _own(self) -> Broker:
        if self.native is None:
            pytest.skip("needs a broker that the tests may stop (USERSTREAM_TEST_BACKEND=native)")
        return self.native


@dataclass(slots=True, kw_only=True)
class TestPostgres:
    """A PostgreSQL server in which every test gets a database of its own."""

    __test__ = False

    dsn: str
    """A database to connect to for CREATE DATABASE; the role may do that."""
    native: Postgres | None = None
    """The process behind it, where it is ours."""

    def dsn_of(self, database: str) -> str:
        """The same server and role, another database."""
        parts = urlsplit(self.dsn)
        return parts._replace(path=f"/{database}").geturl()

    def stop(self) -> None:
        """Stop the server in good order; native only."""
        self._own().stop()

    def start(self) -> None:
        """Start it again with its data; native only."""
        self._own().start()

    def kill(self) -> None:
        """End it as a power cut would; native only."""
        self._own().kill()

    def _own(self) -> Postgres:
        if self.native is None:
            pytest.skip("needs a server that the tests may stop (USERSTREAM_TEST_BACKEND=native)")
        return self.native


def queue_names() -> list[str]:
    """Every queue of the topology that can be emptied: all but the stream."""
    return [name for route in ROUTES for name in queues(route)]


@contextmanager
def running_broker(directory: Path, *, worker: int = 0) -> Iterator[TestBroker]:
    """A broker for one test session (or one xdist worker)."""
    if url := os.environ.get("USERSTREAM_TEST_AMQP_URL"):
        management = os.environ["USERSTREAM_TEST_MANAGEMENT_URL"]
        yield _provisioned(url, management)
    elif _backend() == "docker":
        with _broker_in_docker() as broker:
            yield broker
    else:
        with _native_broker(directory, worker) as broker:
            yield broker


@contextmanager
def running_postgres(directory: Path, *, worker: int = 0) -> Iterator[TestPostgres]:
    """A PostgreSQL server for one test session (or one xdist worker)."""
    if dsn := os.environ.get("USERSTREAM_TEST_PG_DSN"):
        yield TestPostgres(dsn=dsn)
    elif _backend() == "docker":
        with _postgres_in_docker() as postgres:
            yield postgres
    else:
        with _native_postgres(directory, worker) as postgres:
            yield postgres


def _backend() -> str:
    forced = os.environ.get("USERSTREAM_TEST_BACKEND", "")
    if forced:
        return forced
    return "docker" if _docker_answers() else "native"


def _docker_answers() -> bool:
    """Whether an engine is really there: a client or a socket alone proves nothing."""
    address = urlsplit(os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock"))
    family = socket.AF_UNIX if address.scheme == "unix" else socket.AF_INET
    target = address.path if address.scheme == "unix" else (address.hostname, address.port or 2375)
    try:
        with socket.socket(family) as engine:
            engine.settimeout(1)
            engine.connect(target)
            engine.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
            return b" 200 " in engine.recv(64)
    except OSError:
        return False


@contextmanager
def _native_broker(directory: Path, worker: int) -> Iterator[TestBroker]:
    programs = find_or_fetch(tools_directory())

    def attempt(count: int) -> Broker:
        home = directory / f"broker-{count}"
        amqp, management, prometheus, distribution, epmd = _ports(5, worker, count)
        broker = Broker(
            directory=home,
            secrets_directory=home / "secrets",
            ports=BrokerPorts(
                amqp=amqp,
                management=management,
                prometheus=prometheus,
                distribution=distribution,
                epmd=epmd,
            ),
            programs=programs,
            log_directory=home / "log",
        )
        try:
            broker.start()
        except LauncherError:
            broker.stop()
            raise
        return broker

    broker = _first_success(attempt)
    try:
        yield TestBroker(
            admin_url=broker.url(),
            management_url=broker.management_url,
            admin=(ADMINISTRATOR, broker.password(ADMINISTRATOR)),
            passwords={user: broker.password(user) for user in (*BROKER_USERS, MONITOR)},
            native=broker,
        )
    finally:
        # Not in good order: nobody needs the data, and the good order takes six seconds.
        broker.kill()
        broker.stop()


@contextmanager
def _native_postgres(directory: Path, worker: int) -> Iterator[TestPostgres]:
    programs = postgres_programs.find_or_fetch(tools_directory())

    def attempt(count: int) -> Postgres:
        home = directory / f"postgres-{count}"
        (port,) = _ports(1, worker, count + START_ATTEMPTS)
        postgres = Postgres(
            directory=home,
            secrets_directory=directory / f"postgres-{count}-secrets",
            port=port,
            programs=programs,
            log_directory=directory / f"postgres-{count}-log",
            settings=UNSAFE_BUT_FAST,
        )
        try:
            postgres.start()
        except LauncherError:
            postgres.stop()
            raise
        return postgres

    postgres = _first_success(attempt)
    try:
        yield TestPostgres(dsn=postgres.dsn(), native=postgres)
    finally:
        postgres.stop()
        postgres.remove()


def _ports(count: int, worker: int, attempt: int) -> list[int]:
    """Ports that no other worker looks at, and another attempt of this one neither.

    Sessions that run side by side begin at different places, by process id.
    """
    session = os.getppid() if "PYTEST_XDIST_WORKER" in os.environ else os.getpid()
    first = FIRST_PORT + (session % 20) * 400 + worker * 60 + attempt * 10
    return free_ports(count, among=range(first, first + PORTS_PER_WORKER))


def _first_success(attempt: Callable[[int], Started]) -> Started:
    for count in range(START_ATTEMPTS - 1):
        with suppress(LauncherError):
            return attempt(count)
    return attempt(START_ATTEMPTS - 1)


def _provisioned(url: str, management_url: str) -> TestBroker:
    """A broker that is there already, given the project's topology and users."""
    parts = urlsplit(url)
    admin = (parts.username or "guest", parts.password or "guest")
    passwords = {user: "test-" + user for user in (*BROKER_USERS, MONITOR)}
    broker = TestBroker(
        admin_url=url, management_url=management_url.rstrip("/"), admin=admin, passwords=passwords
    )
    users = {user: password_hash(password) for user, password in passwords.items()}
    tags = {user: tag for user, tag in TAGS.items() if user in users}
    broker.management("POST", "/api/definitions", user_definitions(users, tags))
    broker.management("POST", "/api/definitions", definitions())
    return broker


def compose_image(name: str) -> str:
    """The image that compose takes for a part, so that tests run against the same."""
    compose = yaml.safe_load((CONFIGURATION.parent / "docker-compose.yml").read_text())
    image: str = compose["services"][name]["image"]
    return image


def _container(name: str, *ports: int) -> Any:
    """A part of compose in a container of its own, reached from this machine alone."""
    # Both need an engine.
    from testcontainers.core.config import testcontainers_config  # noqa: PLC0415
    from testcontainers.core.container import DockerContainer  # noqa: PLC0415

    # It would run beside the containers with the engine's socket, published to the network.
    testcontainers_config.ryuk_disabled = True
    container = DockerContainer(compose_image(name))
    # Its own methods know ports alone; the engine's client, which gets this, addresses too.
    bound: Any = {f"{port}/tcp": LOOPBACK for port in ports}
    container.ports = bound
    return container


@contextmanager
def _broker_in_docker() -> Iterator[TestBroker]:
    container = _container("rabbitmq", 5672, 15672)
    # Not mounted: the broker's user may not be allowed to read the checkout.
    container.with_env("PLUGINS", (CONFIGURATION / "enabled_plugins").read_text())
    write = 'printf %s "$PLUGINS" >/etc/rabbitmq/enabled_plugins'
    container.with_command(["bash", "-c", f"{write} && exec docker-entrypoint.sh rabbitmq-server"])
    with container:
        host = LOOPBACK[0]
        port = int(container.get_exposed_port(5672))
        management = f"http://{host}:{container.get_exposed_port(15672)}"
        deadline = time.monotonic() + 90
        while not speaks_amqp(port):
            assert time.monotonic() < deadline, "RabbitMQ in Docker was not ready after 90 s"
            time.sleep(0.1)
        yield _provisioned(f"amqp://guest:guest@{host}:{port}/", management)


@contextmanager
def _postgres_in_docker() -> Iterator[TestPostgres]:
    container = (
        _container("postgres", 5432)
        .with_env("POSTGRES_PASSWORD", "test")
        .with_command("postgres -c fsync=off")
    )
    with container:
        deadline = time.monotonic() + 90
        # Over TCP: while it initialises, the server answers on its socket alone.
        while container.exec(["pg_isready", "--host=127.0.0.1"]).exit_code != 0:
            assert time.monotonic() < deadline, "PostgreSQL in Docker was not ready after 90 s"
            time.sleep(0.1)
        address = f"{LOOPBACK[0]}:{container.get_exposed_port(5432)}"
        yield TestPostgres(dsn=f"postgresql://postgres:test@{address}/postgres")
