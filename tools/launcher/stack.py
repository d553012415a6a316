"""All parts of one running UserStream: which there are, and how they find each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rabbitmq.provision import ADMINISTRATOR, keep_secret
from tools.launcher import postgres_programs
from tools.launcher.broker import Broker, BrokerPorts
from tools.launcher.cache import PROJECT
from tools.launcher.environment import ensure_environment, tools_directory
from tools.launcher.folders import open_data
from tools.launcher.given import drop_unused, is_given
from tools.launcher.ports import HOST, ports
from tools.launcher.postgres import DATABASE, Postgres
from tools.launcher.processes import Program
from tools.launcher.rabbitmq_programs import RabbitPrograms, find_or_fetch
from tools.launcher.services import SETTINGS, answers_ok, service_environment, service_program
from tools.launcher.side_by_side import side_by_side
from tools.launcher.terminal import Terminal

STOP_ORDER = (
    ("frontend",),
    ("queue_receiver", "sender", "report_generator"),
    ("database_service",),
    ("mailbox",),
    ("postgres",),
    ("rabbitmq",),
    ("epmd",),
)
"""Parts that stop together, first ones first: none loses a part it still needs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stack:
    """The parts that are to run, given what the environment already provides."""

    data: Path
    ports: Mapping[str, int]
    given: Mapping[str, str]
    """The launcher's environment: what it names is used instead of a part of our own."""
    environment: Path
    """The Python environment of the services and the mailbox."""
    broker: Broker | None
    postgres: Postgres | None

    @property
    def has_mailbox(self) -> bool:
        """Whether mails go to the mailbox, and not to a server that was named."""
        return not is_given(self.given, "SMTP_HOST")

    @property
    def logs(self) -> Path:
        """Folder with one log per part."""
        return self.data / "logs"

    def others(self) -> list[Program]:
        """What the services need besides the broker, ready to be started."""
        programs = []
        if self.postgres:
            programs.append(self.postgres.server())
        if self.has_mailbox:
            programs.append(self._mailbox())
        return programs

    def services(self) -> list[Program]:
        """The five services."""
        defaults = self._defaults()
        programs = []
        for service in SETTINGS:
            own = dict(defaults)
            if self.broker and service in {
                "frontend",
                "queue_receiver",
                "sender",
                "report_generator",
            }:
                own["QUEUE_URL"] = self.broker.url(service)
            port = self.ports[service]
            programs.append(
                service_program(
                    service,
                    python=self.python,
                    environment=service_environment(
                        service, defaults=own, given=self.given, port=port
                    ),
                    port=port,
                    log=self.logs / f"{service}.log",
                )
            )
        return programs

    @property
    def python(self) -> Path:
        """The interpreter of the environment."""
        return self.environment / "bin" / "python"

    def connections(self) -> dict[str, Any]:
        """How to reach everything; what ``up --json`` prints."""
        return {
            "services": {name: self._url(name) for name in SETTINGS},
            "rabbitmq": self.broker
            and {
                "amqp": self.broker.url(),
                "management": self._url("rabbitmq management"),
                "user": ADMINISTRATOR,
                "password": self.broker.password(ADMINISTRATOR),
            },
            "postgres": self.postgres and {"dsn": self.postgres.dsn()},
            "mailbox": {
                "web": self._url("mailbox web"),
                "smtpHost": HOST,
                "smtpPort": self.ports["mailbox smtp"],
            }
            if self.has_mailbox
            else None,
            "logs": str(self.logs),
        }

    def _url(self, listener: str) -> str:
        return f"http://localhost:{self.ports[listener]}"

    def _defaults(self) -> dict[str, str]:
        """What the services are told unless the environment says otherwise."""
        secret = keep_secret(self.data / "secrets" / "registration_id_secret")
        settings = {
            "LOG_FORMAT": "json",
            "DATABASE_SERVICE_URL": f"http://{HOST}:{self.ports['database_service']}",
            "REGISTRATION_ID_SECRET": secret,
            "REPORT_OUTPUT_DIR": str(self.data / "reports"),
            "CRASH_MARKER_DIR": str(self.data / "notes"),
            "FROM_EMAIL": "userstream@example.org",
            "FROM_NAME": "UserStream",
        }
        if self.broker:
            settings["QUEUE_MANAGEMENT_URL"] = self.broker.monitor_url
        if self.postgres:
            settings |= {
                "DB_HOST": HOST,
                "DB_PORT": str(self.postgres.port),
                "DB_NAME": DATABASE,
                "DB_USER": DATABASE,
                "DB_PASSWORD": self.postgres.password,
            }
        if self.has_mailbox:
            port = str(self.ports["mailbox smtp"])
            settings |= {"SMTP_HOST": HOST, "SMTP_PORT": port, "SMTP_SECURE": "none"}
        return settings

    def _mailbox(self) -> Program:
        web = self.ports["mailbox web"]
        return Program(
            name="mailbox",
            argv=(str(self.python), "-m", "tools.mailcatcher"),
            environment={
                "PATH": self.given.get("PATH", "/usr/bin:/bin"),
                "LANG": "C.UTF-8",
                "TZ": "UTC0",  # its log has no zone
                "PYTHONUNBUFFERED": "1",
                "MAILCATCHER_SMTP_PORT": str(self.ports["mailbox smtp"]),
                "MAILCATCHER_WEB_PORT": str(web),
                "MAILCATCHER_DIR": str(self.data / "mailbox"),
            },
            directory=PROJECT,
            log=self.logs / "mailbox.log",
            is_ready=lambda: answers_ok(web, "/readyz"),
        )


def listening_ports(given: Mapping[str, str], offset: int) -> dict[str, int]:
    """The ports that must be free for what the environment leaves to us, by what wants them."""
    others = {
        "rabbitmq": is_given(given, "QUEUE_URL"),
        "epmd": is_given(given, "QUEUE_URL"),
        "postgres": is_given(given, "DB_HOST"),
        "mailbox": is_given(given, "SMTP_HOST"),
    }
    return {
        name: port
        for name, port in ports(offset).items()
        if not others.get(name.split(maxsplit=1)[0], False)
    }


def build_stack(*, offset: int, data: Path, given: Mapping[str, str], terminal: Terminal) -> Stack:
    """Fetch what is missing on this machine and lay out the parts. Starts nothing.

    Raises:
        LauncherError: Something cannot be had, or the environment names half of something.
    """
    numbers = ports(offset)
    open_data(data)
    given = drop_unused(given, terminal.say)
    secrets, logs = data / "secrets", data / "logs"

    def fetch_rabbitmq() -> RabbitPrograms | None:
        if is_given(given, "QUEUE_URL"):
            return None
        with terminal.step("Looking for RabbitMQ, fetching it if it is missing"):
            return find_or_fetch(tools_directory())

    def fetch_postgres() -> dict[int, Path] | None:
        if is_given(given, "DB_HOST"):
            return None
        with terminal.step("Looking for PostgreSQL, fetching it if it is missing"):
            return postgres_programs.find_or_fetch(tools_directory())

    environment: Path
    programs: RabbitPrograms | None
    servers: dict[int, Path] | None
    environment, programs, servers = side_by_side(
        lambda: ensure_environment("demo", terminal), fetch_rabbitmq, fetch_postgres
    )
    broker = (
        None
        if programs is None
        else Broker(
            directory=data / "rabbitmq",
            secrets_directory=secrets,
            ports=BrokerPorts(
                amqp=numbers["rabbitmq amqp"],
                management=numbers["rabbitmq management"],
                prometheus=numbers["rabbitmq prometheus"],
                distribution=numbers["rabbitmq distribution"],
                epmd=numbers["epmd"],
            ),
            programs=programs,
            log_directory=logs,
        )
    )
    postgres = None
    if servers is not None:
        postgres = Postgres(
            directory=data / "postgres",
            secrets_directory=secrets,
            port=numbers["postgres"],
            programs=servers,
            log_directory=logs,
        )
    return Stack(
        data=data,
        ports=numbers,
        given=given,
        environment=environment,
        broker=broker,
        postgres=postgres,
    )
