"""The recipe of docs/architecture.md for a new message type, followed in a copy of the project."""

import asyncio
import json
import os
import re
import shutil
import socket
import sys
import textwrap
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
import pytest
from aiohttp import ClientConnectionError, ClientSession

from common.contracts.topology import EMAIL_NOTIFICATIONS, USER_REGISTRATION
from tests.amqp import depth, eventually, opened
from tests.backends import TestBroker
from tests.integration.queue_receiver.receivers import count_stored, is_ready

ROOT = Path(__file__).resolve().parents[3]
COPIED = ("common", "queue_receiver")
IMPORTED = "user.registration.imported.v1"

PRODUCE = """
import asyncio, sys
from types import SimpleNamespace
from uuid import UUID
from common.context import current
from common.contracts.registrations import RegistrationImported
from common.amqp.publisher import Publisher
from common.contracts.topology import USER_REGISTRATION

PUBLISHER = "publisher"


async def main(url, email, import_id):
    async with Publisher(url, service="frontend", exchanges=[USER_REGISTRATION.name]) as it:
        request = SimpleNamespace(app={PUBLISHER: it})
STEP

asyncio.run(main(sys.argv[1], sys.argv[2], UUID(sys.argv[3])))
"""


def steps() -> list[str]:
    """The code of each step, in order."""
    text = (ROOT / "docs/architecture.md").read_text()
    section = text.partition("\n## Adding a message type\n")[2].partition("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", section, re.DOTALL)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The project with the type added as the recipe says, each step in the file it names."""
    for package in COPIED:
        shutil.copytree(ROOT / package, tmp_path / package)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)  # says which version it is
    contract, handler, wiring, _ = steps()
    _append(tmp_path / "common/contracts/registrations.py", contract)
    handlers = tmp_path / "queue_receiver/handlers.py"
    _import(handlers, "from common.contracts.registrations import RegistrationImported")
    _append(handlers, handler)
    app = tmp_path / "queue_receiver/app.py"
    _import(app, "from common.contracts.registrations import RegistrationImported")
    _import(app, "from queue_receiver.handlers import store_imported")
    known = "RegistrationSubmitted: partial("
    text = app.read_text()
    assert text.count(known) == 1
    app.write_text(text.replace(known, f"{wiring.strip()}\n{' ' * 24}{known}"))
    return tmp_path


def _append(file: Path, code: str) -> None:
    file.write_text(f"{file.read_text()}\n\n{code}")


def _import(file: Path, line: str) -> None:
    docstring, end, rest = file.read_text().partition('"""\n\n')
    file.write_text(f"{docstring}{end}{line}\n{rest}")


@asynccontextmanager
async def running(
    copy: Path, broker: TestBroker, database_url: str
) -> AsyncIterator[ClientSession]:
    """The receiver of the copy, as a process of its own."""
    port = _free_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "queue_receiver"),
        cwd=copy,
        env={
            "PATH": os.environ["PATH"],
            "PORT": str(port),
            "QUEUE_URL": broker.url("queue_receiver"),
            "DATABASE_SERVICE_URL": database_url,
            "MAX_RETRY_ATTEMPTS": "0",
            "LEDGER_INTERVAL_SECONDS": "0",
        },
    )
    try:
        async with ClientSession(f"http://127.0.0.1:{port}") as client:

            async def ready() -> bool:
                assert process.returncode is None
                try:
                    return await is_ready(client)
                except ClientConnectionError:
                    return False

            await eventually(ready, "the receiver of the copy being ready")
            yield client
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


async def produce(copy: Path, broker: TestBroker, import_id: UUID) -> None:
    """Publish one as the last step says."""
    script = PRODUCE.replace("STEP", textwrap.indent(steps()[-1], " " * 8))
    email = f"ada-{import_id.hex}@example.org"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, broker.url("frontend"), email, str(import_id)), cwd=copy
    )
    assert await process.wait() == 0


async def publish(broker: TestBroker, message_id: UUID, type_: str | None, **body: str) -> None:
    """Publish one as another program would."""
    person = {"name": "Ada", "surname": "Lovelace", "email": f"ada-{message_id.hex}@example.org"}
    message = aio_pika.Message(
        json.dumps(person | body).encode(), message_id=str(message_id), type=type_
    )
    async with opened(broker.admin_url) as channel:
        exchange = await channel.get_exchange(USER_REGISTRATION.name, ensure=False)
        await exchange.publish(message, "any")


async def test_a_type_added_as_documented_works_and_can_be_repaired(
    copy: Path, fresh_broker: TestBroker, database_url: str, database_dsn: str
) -> None:
    produced, broken, untyped = uuid4(), uuid4(), uuid4()

    async def mails() -> int:
        return await depth(fresh_broker.admin_url, EMAIL_NOTIFICATIONS.queue)

    async def is_stored(*ids: UUID) -> None:
        async def stored() -> bool:
            return await count_stored(database_dsn, list(ids)) == len(ids)

        await eventually(stored, "storing")

    async with running(copy, fresh_broker, database_url) as receiver:
        await produce(copy, fresh_broker, produced)
        await is_stored(produced)
        assert await mails() == 0  # it went to its own handler, which mails nobody

        # One that is wrong becomes a dead letter, and is judged by its own contract.
        await publish(fresh_broker, broken, IMPORTED, source="")

        async def message() -> dict[str, str] | None:
            async with receiver.get("/api/dead-letters") as response:
                messages = (await response.json())["messages"]
            return messages[0] if messages else None

        dead = await eventually(message, "the dead letter")
        assert (dead["id"], dead["type"]) == (str(broken), IMPORTED)
        assert dead["detail"] == f"Not a valid {IMPORTED}: source."
        wish = {"ids": [str(broken)]}
        async with receiver.post("/api/dead-letters/dry-run", json=wish) as response:
            [tried] = (await response.json())["messages"]
        assert (tried["wouldSucceed"], tried["detail"]) == (False, dead["detail"])

        # Sent back with another body it is still of its type: without a source it is refused.
        url = f"/api/dead-letters/{broken}/resend"
        body = {"name": "Ada", "surname": "Lovelace", "email": f"ada-{broken.hex}@example.org"}
        async with receiver.post(url, json={"body": body}) as response:
            assert response.status == 422, await response.text()
            assert [e["pointer"] for e in (await response.json())["errors"]] == ["/body/source"]
        async with receiver.post(url, json={"body": {**body, "source": "paper"}}) as response:
            assert response.status == 200, await response.text()
        await is_stored(broken)
        assert await mails() == 0

        # What names no type is what it was before.
        await publish(fresh_broker, untyped, None)
        await is_stored(untyped)
        await eventually(mails, "the mail of a registration without a type")
