"""The compose file on a container engine, under a name and with ports of its own."""

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.e2e.stack import PROJECT, Stack
from tools.launcher.ports import free_ports

CANDIDATE_PORTS = range(19000, 20000)
"""Below the ephemeral ones, and away from those of the launcher's stacks."""

COMMAND_SECONDS = 1200
"""Longest that one command may take; the first build fetches all that images are made of."""

NOWHERE = "http://127.0.0.1:9"
"""A proxy that nobody gets through."""

UP = ("up", "--detach", "--wait")


def reason_to_skip() -> str:
    """Why the compose file cannot be run here; nothing if it can."""
    if os.environ.get("USERSTREAM_COMPOSE") != "1":
        return "runs with ./userstream test-compose"
    if not shutil.which("docker"):
        return "there is no container engine: docker is not on the path"
    for command in (["docker", "info"], ["docker", "compose", "version"]):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode != 0:
            return f"`{' '.join(command)}` says: {(done.stderr or done.stdout).strip()}"
    return ""


def private_checkout(target: Path) -> None:
    """Copy the project as a checkout under umask 077 has it: for its owner alone."""
    left_out = shutil.ignore_patterns(".git", ".run", "__pycache__", "node_modules", ".*_cache")
    shutil.copytree(PROJECT, target, ignore=left_out, symlinks=True)
    for path in (target, *target.rglob("*")):
        if not path.is_symlink():
            path.chmod(path.stat().st_mode & 0o700)


@dataclass(kw_only=True)
class ComposeSystem:
    """One project of compose."""

    checkout: Path
    name: str
    settings: Mapping[str, str]
    """What is given from outside, as in the shell."""
    ports: dict[str, int] = field(init=False)
    """Variable of the compose file to the port it sets."""

    def __post_init__(self) -> None:
        containers = yaml.safe_load((self.checkout / "docker-compose.yml").read_text())["services"]
        published = [port for each in containers.values() for port in each.get("ports", ())]
        names = [port.partition("${")[2].partition(":")[0] for port in published]
        self.ports = dict(zip(names, free_ports(len(names), among=CANDIDATE_PORTS), strict=True))
        behind_a_proxy = {
            f"{scheme}_proxy": NOWHERE for scheme in ("http", "https", "HTTP", "HTTPS")
        }
        override = {"services": {each: {"environment": behind_a_proxy} for each in containers}}
        (self.checkout / "proxy.yml").write_text(yaml.safe_dump(override))

    def compose(self, *command: str) -> str:
        """Run a command of compose; returns what it printed.

        Raises:
            AssertionError: It failed; with what it said.
        """
        done = self.start(*command)
        try:
            printed, said = done.communicate(timeout=COMMAND_SECONDS)
        finally:
            done.kill()
        assert done.returncode == 0, f"{' '.join(command)}: {said[-3000:]}"
        return printed

    def start(self, *command: str) -> subprocess.Popen[str]:
        """Start a command of compose and do not wait for it."""
        files = ("--file", "docker-compose.yml", "--file", "proxy.yml")
        return subprocess.Popen(
            ["docker", "compose", "--project-name", self.name, *files, *command],
            cwd=self.checkout,
            env={
                **os.environ,
                **self.settings,
                **{name: str(port) for name, port in self.ports.items()},
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def shell(self, container: str, command: str) -> str:
        """Run a command inside a container."""
        return self.compose("exec", "-T", container, "sh", "-c", command)

    def inspect(self, container: str) -> dict[str, Any]:
        """What the engine knows of the first instance of a container."""
        ids = self.compose("ps", "--all", "--quiet", container).split()
        printed = subprocess.run(
            ["docker", "inspect", ids[0]], capture_output=True, text=True, check=True
        ).stdout
        [found] = json.loads(printed)
        assert isinstance(found, dict)
        return found

    def containers(self) -> list[str]:
        """The ids of all containers that the engine has of it, also of those that ended."""
        label = f"label=com.docker.compose.project={self.name}"
        command = ["docker", "ps", "--all", "--quiet", "--filter", label]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.split()

    def restarts(self, container: str) -> int:
        """How often the engine has restarted it."""
        count: int = self.inspect(container)["RestartCount"]
        return count

    def failed_checks(self, container: str) -> int:
        """How often its health check has failed in a row; 0 where it is only being made."""
        ids = self.compose("ps", "--all", "--quiet", container).split()
        shown = ["docker", "inspect", "--format", "{{json .State.Health}}", *ids]
        done = subprocess.run(shown, capture_output=True, text=True, check=False)
        # While it is made anew there are two for a moment, and the new one has no health yet.
        found = [json.loads(line) for line in done.stdout.splitlines() if line]
        return max((int(health["FailingStreak"]) for health in found if health), default=0)

    def is_healthy(self, container: str) -> bool:
        """Whether its health check got through at last."""
        state = self.inspect(container)["State"]
        return bool(state["Running"]) and state["Health"]["Status"] == "healthy"

    def url(self, variable: str) -> str:
        """Where a published port answers."""
        return f"http://127.0.0.1:{self.ports[variable]}"

    def stack(self) -> Stack:
        """The system as the end-to-end tests know one."""
        services = ("frontend", "queue_receiver", "sender", "database_service", "report_generator")
        return Stack(
            options=[],
            services={name: self.url(f"{name.upper()}_PORT") for name in services},
            rabbitmq={
                "management": self.url("RABBITMQ_MANAGEMENT_PORT"),
                "user": "userstream",
                "password": self.password(),
            },
            postgres={},
            mailbox={"web": self.url("MAILPIT_PORT")},
            logs="",
        )

    def password(self) -> str:
        """The administrator's at the broker, by the command that the documents name."""
        show = ("run", "--rm", "-T", "provision", "cat", "/secrets/userstream.password")
        return self.compose(*show).strip()

    def stored(self) -> dict[str, tuple[str, str]]:
        """Registration id to the address of its user and the state of its mail."""
        query = """
            SELECT json_object_agg(r.registration_id, json_build_array(lower(u.email), n.status))
              FROM registrations AS r
              JOIN users AS u ON u.id = r.user_id
              LEFT JOIN notification_logs AS n USING (registration_id)
        """
        printed = self.shell(
            "postgres",
            'PGPASSWORD=$(cat /secrets/db_password) psql -h 127.0.0.1 -U userstream -At -c "'
            f'{query}" userstream',
        )
        rows: dict[str, list[str]] = json.loads(printed.strip() or "{}")
        return {registration_id: (email, mail) for registration_id, (email, mail) in rows.items()}
