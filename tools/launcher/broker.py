"""A private RabbitMQ node: own data, ports, cookie and epmd; the system's is left alone."""

import hashlib
import secrets
import shutil
import signal
import socket
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.amqp.management import ManagementApi
from common.amqp.topology_check import lacking
from common.contracts.topology import MONITOR, ROUTES, queues
from common.errors import BrokerUnavailableError
from rabbitmq.provision import ADMINISTRATOR, provision
from tools.launcher.confirming import Finding, examine_broker
from tools.launcher.errors import LauncherError
from tools.launcher.memory import available_memory
from tools.launcher.plain_paths import plain
from tools.launcher.ports import HOST
from tools.launcher.processes import Program, Running, run_briefly, start, tail
from tools.launcher.rabbitmq_programs import RabbitPrograms

CONFIGURATION = Path(__file__).resolve().parents[2] / "rabbitmq"
"""What compose and the launcher share: the broker's settings, plugins and definitions."""

PRIVATE_VARIABLES = """\
# This node's own: otherwise other machines can reach the port over which nodes talk.
SERVER_ADDITIONAL_ERL_ARGS="$SERVER_ADDITIONAL_ERL_ARGS -kernel inet_dist_use_interface {127,0,0,1}"
"""

AMQP_HEADER = b"AMQP\0\0\x09\x01"

SETTLE_SECONDS = 30.0
"""Longest wait for a broker that has just started to have all that it had, and to confirm."""

FLUSH_TABLES = "[dets:sync(T) || T <- dets:all()]."
"""Erlang: write to disk which queue lives in which directory.

RabbitMQ does it some seconds later by itself; a node that is killed before loses the
queue with everything in it (observed on 3.10 to 4.3).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPorts:
    """Where one node and its epmd listen."""

    amqp: int
    management: int
    prometheus: int
    distribution: int
    epmd: int


@dataclass(slots=True, kw_only=True)
class Broker:
    """A RabbitMQ node with the project's topology and users, kept below one folder."""

    directory: Path
    secrets_directory: Path
    ports: BrokerPorts
    programs: RabbitPrograms
    log_directory: Path
    _epmd: Running | None = field(default=None, init=False)
    _node: Running | None = field(default=None, init=False)

    def prepare(self) -> None:
        """Write what the node reads at start. Data and secrets that exist are kept."""
        imported = self.directory / "definitions"
        provision(
            definitions=imported,
            secrets_directory=self.secrets_directory,
            host=HOST,
            port=self.ports.amqp,
            management_port=self.ports.management,
        )
        shutil.copyfile(CONFIGURATION / "definitions.json", imported / "topology.json")
        for name in ("enabled_plugins", "advanced.config"):
            shutil.copyfile(CONFIGURATION / name, self.directory / name)
        shared = (CONFIGURATION / "rabbitmq.conf").read_text("utf-8")
        (self.directory / "rabbitmq.conf").write_text(
            f"{shared}\n{self._private_settings()}", "utf-8"
        )
        variables = (CONFIGURATION / "rabbitmq-env.conf").read_text("utf-8")
        (self.directory / "rabbitmq-env.conf").write_text(
            f"{variables}\n{PRIVATE_VARIABLES}", "utf-8"
        )
        cookie = self.directory / ".erlang.cookie"
        if not cookie.exists():
            cookie.touch(mode=0o600)
            cookie.write_text(secrets.token_hex(20), "utf-8")

    def epmd(self) -> Program:
        """Erlang's port mapper; the node's own, or one that is never stopped would stay behind."""
        argv = (str(self.programs.epmd), "-port", str(self.ports.epmd), "-address", HOST)
        return Program(
            name="epmd",
            argv=argv,
            environment=self._environment(),
            directory=self.directory,
            log=self.log_directory / "epmd.log",
            is_ready=lambda: _accepts(self.ports.epmd),
        )

    def node(self) -> Program:
        """The broker itself; ready once it talks AMQP, which is after the import."""
        return Program(
            name="rabbitmq",
            argv=(str(self.programs.scripts / "rabbitmq-server"),),
            environment=self._environment(),
            directory=self.directory,
            log=self.log_directory / "rabbitmq.log",
            is_ready=lambda: speaks_amqp(self.ports.amqp),
            works=lambda: not self.examine().needs_restart,
            ready_within=120,
            stop_within=60,
        )

    def settle(self) -> None:
        """Return when the topology is there and survives a crash. To be called before use.

        Raises:
            LauncherError: The broker left out something, which it does without a word; or it
                confirms no message.
        """
        self._wait_for_management()
        deadline = time.monotonic() + SETTLE_SECONDS
        # A stream comes some moments after the queues, also to a broker that has had it before.
        while (missing := self.missing()) and time.monotonic() < deadline:
            time.sleep(0.1)
        if missing:
            raise LauncherError(
                "RabbitMQ started without a part of its definitions (it ignores in silence what it"
                " cannot import): " + ", ".join(missing) + f".\nSee {self.node().log}"
            )
        self._wait_for_a_confirm()
        marker = self.directory / "flushed"
        imported = (self.directory / "definitions" / "topology.json").read_bytes()
        digest = hashlib.sha256(imported).hexdigest()
        if not marker.exists() or marker.read_text("utf-8") != digest:
            self.ctl("eval", FLUSH_TABLES)
            marker.write_text(digest, "utf-8")

    def examine(self) -> Finding:
        """Publish a message and wait for its confirm."""
        return examine_broker(self._management_api)

    def missing(self) -> list[str]:
        """What ``common/contracts/topology.py`` has and the broker has not."""
        exported = self.management("GET", "/api/definitions")
        return [difference.what for difference in lacking(exported)]

    def start(self) -> None:
        """Start epmd and the node, and return when they can be used."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self.prepare()
        if self._epmd is None or self._epmd.exit_code is not None:
            self._epmd = start(self.epmd())
            self._epmd.wait_until_ready()
        self._node = start(self.node())
        self._node.wait_until_ready()
        self.settle()

    def stop(self) -> None:
        """Stop the node and epmd in good order."""
        for running in (self._node, self._epmd):
            if running is not None:
                running.stop()
        self._node = self._epmd = None

    def kill(self) -> None:
        """End the node as a power cut would; ``start`` brings it back with its data."""
        if self._node is not None:
            self._node.kill()
            self._node = None

    def freeze(self) -> None:
        """Make the node hang without closing anything (SIGSTOP)."""
        if self._node is not None:
            self._node.send(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let a frozen node go on."""
        if self._node is not None:
            self._node.send(signal.SIGCONT)

    def password(self, user: str) -> str:
        """The password of a broker user."""
        return (self.secrets_directory / f"{user}.password").read_text("utf-8")

    def url(self, user: str = ADMINISTRATOR) -> str:
        """AMQP URL with the rights of a service, or of the administrator."""
        return f"amqp://{user}:{self.password(user)}@{HOST}:{self.ports.amqp}/%2F"

    @property
    def management_url(self) -> str:
        """The management API and page, without a user."""
        return f"http://{HOST}:{self.ports.management}"

    @property
    def monitor_url(self) -> str:
        """The management API with the user that can only look."""
        return f"http://{MONITOR}:{self.password(MONITOR)}@{HOST}:{self.ports.management}"

    @property
    def _management_api(self) -> ManagementApi:
        password = self.password(ADMINISTRATOR)
        return ManagementApi(f"http://{ADMINISTRATOR}:{password}@{HOST}:{self.ports.management}")

    def management(self, method: str, path: str, body: object = None) -> Any:
        """Call the management API as administrator.

        Raises:
            LauncherError: It does not answer, or with an error.
        """
        try:
            return self._management_api.call(method, path, body)
        except BrokerUnavailableError as error:
            raise LauncherError(error.detail) from error

    def ctl(self, *arguments: str) -> str:
        """Run ``rabbitmqctl`` on this node and return what it prints (0.4 s and more)."""
        argv = [str(self.programs.scripts / "rabbitmqctl"), *arguments]
        return run_briefly(argv, environment=self._environment(), directory=self.directory)

    def purge(self) -> None:
        """Empty every queue of the topology; a stream forgets by age alone."""
        for queue in (name for route in ROUTES for name in queues(route)):
            self.management("DELETE", f"/api/queues/%2F/{queue}/contents")

    def _wait_for_management(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                self.management("GET", "/api/overview")
            except LauncherError as error:
                if time.monotonic() > deadline:
                    raise LauncherError(
                        f"RabbitMQ's management API cannot be used: {error}\nA failed login means"
                        " that it did not import its users; it ignores in silence what it can"
                        f" not import.\n{tail(self.node().log)}"
                    ) from error
                time.sleep(0.1)
            else:
                return

    def _wait_for_a_confirm(self) -> None:
        """Return when a message is confirmed, or when an alarm keeps it from that."""
        deadline = time.monotonic() + SETTLE_SECONDS
        while (finding := self.examine()).needs_restart:
            if time.monotonic() > deadline:
                raise LauncherError(
                    f"RabbitMQ is of no use: {finding.problem}\n{tail(self.node().log)}"
                )
            time.sleep(0.1)

    @property
    def _home(self) -> Path:
        """The folder as the node is told of it."""
        return plain(self.directory)

    def _environment(self) -> dict[str, str]:
        """All that the node and rabbitmqctl get; enough to keep the system's files out."""
        return {
            "LANG": "C.UTF-8",
            "HOME": str(self._home),
            **self.programs.environment,
            "RABBITMQ_CONF_ENV_FILE": str(self._home / "rabbitmq-env.conf"),
            # The data belongs to this name; each node has its own epmd, so names may repeat.
            "RABBITMQ_NODENAME": "userstream@localhost",
            "RABBITMQ_DIST_PORT": str(self.ports.distribution),
            "ERL_EPMD_PORT": str(self.ports.epmd),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_CONFIG_FILE": str(self._home / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self._home / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self._home / "enabled_plugins"),
            "RABBITMQ_MNESIA_BASE": str(self._home / "data"),
            "RABBITMQ_LOG_BASE": str(plain(self.log_directory)),
            "ERL_CRASH_DUMP": str(self._home / "erl_crash.dump"),
            # The wrapper script becomes the node instead of waiting for it, so that the
            # process id and the exit code are the node's.
            "detached": "1",
        }

    def _private_settings(self) -> str:
        return f"""# This node's own.
definitions.local.path = {self._home / "definitions"}
listeners.tcp.1 = {HOST}:{self.ports.amqp}
management.tcp.ip = {HOST}
management.tcp.port = {self.ports.management}
prometheus.tcp.ip = {HOST}
prometheus.tcp.port = {self.ports.prometheus}
total_memory_available_override_value = {available_memory()}
log.console = true
log.console.use_colors = off
log.file = false
"""


def speaks_amqp(port: int) -> bool:
    """Whether a broker there is open for business: it answers the protocol's greeting."""
    try:
        with socket.create_connection((HOST, port), timeout=1) as connection:
            connection.sendall(AMQP_HEADER)
            return connection.recv(1) == b"\x01"  # a method frame: connection.start
    except OSError:
        return False


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection((HOST, port), timeout=1):
            return True
    except OSError:
        return False
