import base64
import hashlib
import json
from pathlib import Path

import pytest

from common.contracts.topology import BROKER_USERS
from rabbitmq.provision import password_hash, provision


def run(folder: Path) -> None:
    provision(
        definitions=folder / "definitions",
        secrets_directory=folder / "secrets",
        host="rabbitmq",
        port=5672,
        management_port=15672,
    )


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_password_hash_is_what_rabbitmq_computes() -> None:
    decoded = base64.b64decode(password_hash("secret"))

    salt, digest = decoded[:4], decoded[4:]
    assert digest == hashlib.sha256(salt + b"secret").digest()


def test_provision_gives_each_service_a_user_of_its_own(tmp_path: Path) -> None:
    run(tmp_path)

    users = json.loads((tmp_path / "definitions/users.json").read_text())["users"]
    assert {user["name"] for user in users} == {*BROKER_USERS, "monitor", "userstream"}
    assert len({user["password_hash"] for user in users}) == len(users)
    for service in BROKER_USERS:
        url = (tmp_path / f"secrets/{service}.queue_url").read_text()
        assert url.startswith(f"amqp://{service}:")
        assert url.endswith("@rabbitmq:5672/%2F")


def test_provision_lets_services_configure_nothing(tmp_path: Path) -> None:
    run(tmp_path)

    permissions = json.loads((tmp_path / "definitions/users.json").read_text())["permissions"]
    configure = {each["user"]: each["configure"] for each in permissions}
    assert configure.pop("userstream") == ".*"
    assert set(configure.values()) == {"^$"}


def test_provision_writes_no_password_where_the_broker_reads(tmp_path: Path) -> None:
    run(tmp_path)

    read_by_broker = (tmp_path / "definitions/users.json").read_text()
    for secret in (tmp_path / "secrets").glob("*.password"):
        assert secret.read_text() not in read_by_broker


def test_provision_keeps_every_secret_when_it_runs_again(tmp_path: Path) -> None:
    run(tmp_path)
    before = contents(tmp_path)

    run(tmp_path)

    assert contents(tmp_path) == before


def test_provision_lets_nobody_else_read_the_secrets(tmp_path: Path) -> None:
    run(tmp_path)

    for secret in (tmp_path / "secrets").iterdir():
        assert secret.stat().st_mode & 0o077 == 0, secret.name


@pytest.mark.parametrize("name", ["registration_id_secret", "db_password"])
def test_provision_makes_the_other_secrets_too(tmp_path: Path, name: str) -> None:
    run(tmp_path)

    assert len((tmp_path / "secrets" / name).read_text()) == 48
