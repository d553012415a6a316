"""Makes the secrets at first start, and the broker's users from them.

``python -m rabbitmq.provision --definitions DIR --secrets DIR --host rabbitmq`` does in a
container what the launcher does by calling :func:`provision`. Running it again keeps every
secret and rewrites only what follows from them.
"""

import argparse
import base64
import hashlib
import json
import os
import secrets
from pathlib import Path

from common.contracts.topology import BROKER_USERS, MONITOR, user_definitions
from common.contracts.topology import definitions as topology_definitions
from rabbitmq.distribute_secrets import distribute_secrets

ADMINISTRATOR = "userstream"
"""The person at the management page; no service uses it."""

TAGS = {ADMINISTRATOR: "administrator", MONITOR: "monitoring"}

CONFIGURATION = Path(__file__).resolve().parent
"""What compose and the launcher share: rabbitmq.conf, advanced.config, enabled_plugins."""

SECRET_BYTES = 24
"""192 random bits per secret."""


def provision(
    *,
    definitions: Path,
    secrets_directory: Path,
    host: str,
    port: int,
    management_port: int,
) -> None:
    """Write ``users.json`` for the broker and one file per secret for everyone else.

    ``<service>.queue_url`` for each service that speaks AMQP, ``management_url`` of the
    read-only monitoring user, ``<user>.password``, ``db_password`` and
    ``registration_id_secret``. A secret that exists is kept.
    """
    secrets_directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    definitions.mkdir(parents=True, exist_ok=True)
    users = [*BROKER_USERS, *TAGS]
    passwords = {user: keep_secret(secrets_directory / f"{user}.password") for user in users}
    for service in BROKER_USERS:
        url = f"amqp://{service}:{passwords[service]}@{host}:{port}/%2F"
        _write(secrets_directory / f"{service}.queue_url", url)
    management = f"http://{MONITOR}:{passwords[MONITOR]}@{host}:{management_port}"
    _write(secrets_directory / "management_url", management)
    keep_secret(secrets_directory / "db_password")
    keep_secret(secrets_directory / "registration_id_secret")
    hashes = {user: password_hash(password) for user, password in passwords.items()}
    content = json.dumps(user_definitions(hashes, TAGS), indent=2)
    # Only hashes: the broker, another user in another container, must be able to read it.
    _write(definitions / "users.json", content, mode=0o644)


def keep_secret(path: Path) -> str:
    """The secret in this file, made and written there if there is none yet."""
    if not path.exists():
        # Hexadecimal, so that it needs no escaping in a URL.
        _write(path, secrets.token_hex(SECRET_BYTES))
    return path.read_text("utf-8").strip()


def password_hash(password: str) -> str:
    """RabbitMQ's ``rabbit_password_hashing_sha256``: base64 of salt and salted hash.

    The salt comes from the password, so that the file stays the same from start to start
    and the broker need not import it again. Salts hide that two people chose the same
    password; these are random.
    """
    salt = hashlib.sha256(password.encode()).digest()[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def _write(path: Path, text: str, *, mode: int = 0o600) -> None:
    """Replace the file in one step: a reader sees the old or the new text, never half."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(
        os.open(fresh, os.O_CREAT | os.O_WRONLY | os.O_EXCL, mode), "w", encoding="utf-8"
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    fresh.chmod(mode)
    fresh.replace(path)


def configure(directory: Path, *, memory: str, password: str) -> None:
    """Write what a broker in a container of its own reads from its ``/etc/rabbitmq``.

    Args:
        directory: Is mounted there.
        memory: How much the container may use, as in ``1g``; by itself RabbitMQ takes that of
            the machine, and is killed before it thinks that its memory is short.
        password: The administrator's, for the health check beside the broker.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shared = (CONFIGURATION / "rabbitmq.conf").read_text("utf-8")
    own = f"log.console = true\ntotal_memory_available_override_value = {memory}\n"
    _write(directory / "rabbitmq.conf", f"{shared}\n# In a container:\n{own}", mode=0o644)
    for name in ("advanced.config", "enabled_plugins", "rabbitmq-env.conf", "health"):
        _write(directory / name, (CONFIGURATION / name).read_text("utf-8"), mode=0o644)
    login = base64.b64encode(f"{ADMINISTRATOR}:{password}".encode()).decode()
    # Readable whatever user the image runs as; the volume is the broker's alone.
    _write(directory / "health_login", login, mode=0o644)


def main() -> None:
    """Read the command line and provision."""
    parser = argparse.ArgumentParser(prog="rabbitmq.provision", description=__doc__)
    parser.add_argument("--definitions", type=Path, required=True, help="for the broker")
    parser.add_argument("--secrets", type=Path, required=True, help="for the services")
    parser.add_argument("--host", required=True, help="the broker's name as services see it")
    parser.add_argument("--port", type=int, default=5672)
    parser.add_argument("--management-port", type=int, default=15672)
    parser.add_argument("--distribute", type=Path, help="where each container has its own volume")
    parser.add_argument("--configuration", type=Path, help="the broker's /etc/rabbitmq")
    parser.add_argument(
        "--memory",
        default=os.environ.get("BROKER_MEMORY", "1g"),
        help="what the broker may use (with --configuration; default: BROKER_MEMORY, or 1g)",
    )
    given = parser.parse_args()
    provision(
        definitions=given.definitions,
        secrets_directory=given.secrets,
        host=given.host,
        port=given.port,
        management_port=given.management_port,
    )
    _write(
        given.definitions / "topology.json",
        json.dumps(topology_definitions(), indent=2),
        mode=0o644,
    )
    if given.configuration:
        password = keep_secret(given.secrets / f"{ADMINISTRATOR}.password")
        configure(given.configuration, memory=given.memory, password=password)
    if given.distribute:
        distribute_secrets(given.secrets, given.distribute)


if __name__ == "__main__":
    main()
