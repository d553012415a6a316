"""All parts of one running UserStream: which there are, and how they find each other."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launcher import postgres_programs
from launcher.broker import Broker, BrokerPorts
from launcher.environment import PROJECT, ensure_environment
from launcher.errors import LauncherError
from launcher.ports import HOST, ports
from launcher.postgres import DATABASE, Postgres
from launcher.processes import Program
from launcher.rabbitmq_programs import find_or_fetch
from launcher.services import SETTINGS, answers_ok, service_environment, service_program
from launcher.terminal import Terminal
from rabbitmq.provision import ADMINISTRATOR, keep_secret

RUN_DIRECTORY = PROJECT / ".run"
"""Everything the launcher makes, unless told otherwise: environments, programs, data."""

STOP_ORDER = (
    ("frontend",),
    ("queue_receiver", "sender", "report_generator"),
    ("database_service",),
    ("mailbox",),
    ("postgres",),
    ("rabbitmq",),
    ("epmd",),
)
"""Who stops together, first ones first: nobody loses a part it still needs."""


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
        return "SMTP_HOST" not in self.given

    @property
    def logs(self) -> Path:
        """Folder with one log per part."""
        return self.data / "logs"

    def listening(self) -> dict[str, int]:
        """The ports that must be free, by what wants them."""
        without = {
            "rabbitmq": self.broker is None,
            "epmd": self.broker is None,
            "postgres": self.postgres is None,
            "mailbox": not self.has_mailbox,
        }
        return {
            name: port
            for name, port in self.ports.items()
            if not without.get(name.split(maxsplit=1)[0], False)
        }

    def infrastructure(self) -> list[Program]:
        """What the services need, ready to be started (the broker needs epmd)."""
        programs = []
        if self.postgres:
            programs.append(self.postgres.server())
        if self.broker:
            programs.append(self.broker.node())
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
            "CRASH_NOTES_DIR": str(self.data / "notes"),
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
            argv=(str(self.python), "-m", "mailcatcher"),
            environment={
                "PATH": self.given.get("PATH", "/usr/bin:/bin"),
                "LANG": "C.UTF-8",
                "PYTHONUNBUFFERED": "1",
                "MAILCATCHER_SMTP_PORT": str(self.ports["mailbox smtp"]),
                "MAILCATCHER_WEB_PORT": str(web),
                "MAILCATCHER_DIR": str(self.data / "mailbox"),
            },
            directory=PROJECT,
            log=self.logs / "mailbox.log",
            is_ready=lambda: answers_ok(web, "/readyz"),
        )


def default_data(offset: int) -> Path:
    """Where a stack keeps its data if it is not told."""
    return RUN_DIRECTORY / f"offset-{offset}"


def build_stack(*, offset: int, data: Path, given: Mapping[str, str], terminal: Terminal) -> Stack:
    """Fetch what is missing on this machine and lay out the parts. Starts nothing.

    Raises:
        LauncherError: Something can not be had.
    """
    numbers = ports(offset)
    try:
        data.mkdir(parents=True, exist_ok=True)
        RUN_DIRECTORY.mkdir(exist_ok=True)
    except PermissionError as error:
        raise LauncherError(
            f"{error.filename} can not be written by this user. Take another folder with --data,"
            " or change its owner."
        ) from error
    environment = ensure_environment("demo", RUN_DIRECTORY, terminal)
    secrets, logs = data / "secrets", data / "logs"
    broker = postgres = None
    if "QUEUE_URL" not in given and "QUEUE_URL_FILE" not in given:
        with terminal.step("Looking for RabbitMQ, fetching it if it is missing"):
            programs = find_or_fetch(RUN_DIRECTORY / "tools")
        broker = Broker(
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
    if "DB_HOST" not in given:
        with terminal.step("Looking for PostgreSQL, fetching it if it is missing"):
            servers = postgres_programs.find_or_fetch(RUN_DIRECTORY / "tools")
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
