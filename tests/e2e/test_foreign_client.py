"""A program in another language registers somebody, knowing the broker and one JSON object."""

import json
import os
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from yarl import URL

from tests.amqp import eventually
from tests.e2e.stack import Stack

CLIENT = Path(__file__).with_name("foreign_client")

USER, PASSWORD = "partner", "made-for-one-test"

LEAST_RIGHTS = {"configure": "^$", "write": r"^user\.registration$", "read": "^$"}
"""What a program needs that registers people and does nothing else."""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program with the packages of its lock, in a folder of its own."""
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("Node.js is missing. Type: sudo apt-get install nodejs npm")
    folder = tmp_path_factory.mktemp("foreign") / "client"
    shutil.copytree(CLIENT, folder, ignore=shutil.ignore_patterns("node_modules"))
    installed = subprocess.run(
        ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert installed.returncode == 0, installed.stderr
    return folder / "publish.js"


@pytest.fixture
async def partner(stack: Stack) -> AsyncIterator[str]:
    """AMQP URL of a broker user that may publish registrations and nothing else."""
    login = aiohttp.encode_basic_auth(stack.rabbitmq["user"], stack.rabbitmq["password"])
    user = URL(f"{stack.rabbitmq['management']}/api/users/{USER}")
    rights = URL(f"{stack.rabbitmq['management']}/api/permissions/%2F/{USER}", encoded=True)
    async with aiohttp.ClientSession(
        headers={"Authorization": login}, raise_for_status=True
    ) as management:
        await management.put(user, json={"password": PASSWORD, "tags": ""})
        await management.put(rights, json=LEAST_RIGHTS)
        yield str(URL(stack.rabbitmq["amqp"]).with_user(USER).with_password(PASSWORD))
        await management.delete(user)


def publish(program: Path, url: str, body: str) -> subprocess.CompletedProcess[str]:
    """Run the program; the URL holds a password, so it is no argument."""
    return subprocess.run(
        ["node", str(program), body],
        env={**os.environ, "QUEUE_URL": url},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


async def test_program_in_another_language_registers_a_person(
    stack: Stack, program: Path, partner: str
) -> None:
    email = f"grace-{uuid4().hex}@example.org"
    person = {"name": "Grace", "surname": "Hopper", "email": email}

    done = publish(program, partner, json.dumps(person | {"timestamp": "2026-01-31T09:30:00.000Z"}))

    assert done.returncode == 0, done.stderr
    async with aiohttp.ClientSession() as session:
        users = f"{stack.services['database_service']}/api/users/email/{email}"
        inbox = f"{stack.mailbox['web']}/api/v1/search?query=to:{email}"

        async def registered() -> bool:
            async with session.get(users) as answer:
                return answer.status == 200 and person.items() <= (await answer.json()).items()

        async def mailed() -> bool:
            async with session.get(inbox) as answer:
                return len((await answer.json())["messages"]) == 1

        await eventually(registered, "being registered")
        await eventually(mailed, "being mailed")


async def test_the_same_bytes_again_are_the_same_registration(
    stack: Stack, program: Path, partner: str
) -> None:
    email = f"grace-{uuid4().hex}@example.org"
    body = json.dumps({"name": "Grace", "surname": "Hopper", "email": email})

    handled_before = await _handled(stack)

    for _ in range(3):
        assert publish(program, partner, body).returncode == 0

    async def all_handled() -> bool:
        return await _handled(stack) >= handled_before + 3

    await eventually(all_handled, "handling all three")
    assert await _stored(stack, email) == ["stored"]


def test_rights_of_such_a_program_end_at_its_exchange(
    program: Path, partner: str, tmp_path: Path
) -> None:
    other = tmp_path / "publish.js"
    other.write_text(program.read_text().replace('"user.registration"', '"email.notifications"'))
    (tmp_path / "node_modules").symlink_to(program.parent / "node_modules")

    done = publish(other, partner, "{}")

    assert done.returncode == 1
    assert "ACCESS_REFUSED" in done.stderr or "403" in done.stderr, done.stderr


async def _handled(stack: Stack) -> float:
    """Registrations that the receiver has handled since it was started."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{stack.services['queue_receiver']}/metrics") as answer,
    ):
        families = text_string_to_metric_families(await answer.text())
    return sum(
        sample.value
        for family in families
        for sample in family.samples
        if sample.name == "userstream_deliveries_total" and sample.labels["outcome"] == "handled"
    )


async def _stored(stack: Stack, email: str) -> list[str]:
    rows = await stack.rows(
        """
        SELECT outcome
          FROM registrations
          JOIN users ON users.id = user_id
         WHERE lower(email) = $1
        """,
        email,
    )
    return [row["outcome"] for row in rows]
