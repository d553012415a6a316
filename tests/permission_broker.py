"""A broker that only knows names and rights: it answers as RabbitMQ does, and keeps nothing.

It has the topology and the users of ``common.contracts.topology``, so that a right that a service
lacks is seen without a broker, and for every version's rules at once.
"""

import asyncio
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from pamqp import commands, frame
from pamqp.base import Frame
from pamqp.common import FieldTable
from pamqp.header import ContentHeader

from common.contracts.topology import definitions, permissions

HEADER_BYTES = 8
ACCESS_REFUSED, NOT_FOUND = 403, 404

CAPABILITIES: FieldTable = {"publisher_confirms": True, "basic.nack": True}

Rule = Callable[[dict[str, str], str], bool]
"""Whether a user with these rights may declare that name passively."""


def _may(rights: dict[str, str], right: str, name: str) -> bool:
    return re.search(rights[right], name) is not None


PASSIVE_RULES: dict[str, Rule] = {
    "3.10 to 4.2.5": lambda _rights, _name: True,
    "4.2.6 and 4.3.0": lambda rights, name: _may(rights, "configure", name),
    "4.2.7, 4.3.1 and later": lambda rights, name: any(
        _may(rights, right, name) for right in ("configure", "write", "read")
    ),
}
"""Versions of RabbitMQ to who may declare passively."""


@dataclass(slots=True)
class PermissionBroker:
    """What was asked of it, and what it refused, as ``user: operation name``."""

    rule: Rule
    port: int = 0
    asked: set[str] = field(default_factory=set)
    refused: set[str] = field(default_factory=set)
    _names: dict[str, set[str]] = field(default_factory=dict)

    def url(self, user: str) -> str:
        return f"amqp://{user}:any@127.0.0.1:{self.port}/%2F"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the client closes it."""
        topology: Any = definitions()
        self._names = {
            kind: {each["name"] for each in topology[f"{kind}s"]} for kind in ("exchange", "queue")
        }

        def send(number: int, *answers: Frame) -> None:
            for answer in answers:
                writer.write(frame.marshal(answer, number))

        try:
            await reader.readexactly(HEADER_BYTES)
            send(0, commands.Connection.Start(server_properties={"capabilities": CAPABILITIES}))
            rights = permissions("nobody")
            async for number, method in _frames(reader):
                if isinstance(method, commands.Connection.StartOk):
                    user = method.response.split("\0")[1]
                    rights = permissions(user)
                    send(0, commands.Connection.Tune())
                elif (answer := self._answer(rights, method)) is not None:  # an empty one is false
                    send(number, answer)
        except (OSError, asyncio.IncompleteReadError):
            pass  # the client has gone
        finally:
            writer.close()

    def _answer(self, rights: dict[str, str], method: object) -> Frame | None:
        match method:
            case commands.Exchange.Declare() | commands.Queue.Declare():
                return self._declared(rights, method)
            case commands.Basic.Consume(queue=queue, consumer_tag=tag):
                return self._allowed(rights, "read", queue) or commands.Basic.ConsumeOk(tag)
            case commands.Basic.Cancel(consumer_tag=tag):
                return commands.Basic.CancelOk(tag)
            case Frame() if method.synchronous:
                answer: Frame = frame_class(method.valid_responses[0])()
                return answer
        return None

    def _declared(
        self, rights: dict[str, str], method: commands.Exchange.Declare | commands.Queue.Declare
    ) -> Frame:
        kind = "exchange" if isinstance(method, commands.Exchange.Declare) else "queue"
        name = str(getattr(method, kind))
        may = self.rule(rights, name) if method.passive else _may(rights, "configure", name)
        if (refusal := self._noted(rights, "declare", name, may=may)) is not None:
            return refusal
        if name not in self._names[kind]:
            return commands.Channel.Close(NOT_FOUND, "NOT_FOUND", 0, 0)
        if kind == "exchange":
            return commands.Exchange.DeclareOk()
        return commands.Queue.DeclareOk(name, 0, 0)

    def _allowed(self, rights: dict[str, str], right: str, name: str) -> Frame | None:
        return self._noted(rights, right, name, may=_may(rights, right, name))

    def _noted(self, rights: dict[str, str], what: str, name: str, *, may: bool) -> Frame | None:
        said = f"{rights['user']}: {what} {name}"
        self.asked.add(said)
        if may:
            return None
        self.refused.add(said)
        return commands.Channel.Close(ACCESS_REFUSED, "ACCESS_REFUSED", 0, 0)


def frame_class(name: str) -> type[Frame]:
    """``Queue.BindOk`` to the class of that name."""
    group, _, method = name.partition(".")
    found: type[Frame] = getattr(getattr(commands, group), method)
    return found


async def _frames(reader: asyncio.StreamReader) -> AsyncIterator[tuple[int, object]]:
    """Channel and content of each frame but those of bodies."""
    data = b""
    while chunk := await reader.read(65_536):
        data += chunk
        while True:
            used, number, content = frame.unmarshal(data) if len(data) >= 8 else (0, 0, None)
            if not used:
                break
            data = data[used:]
            if not isinstance(content, ContentHeader):
                yield number, content


@asynccontextmanager
async def running_permission_broker(rule: Rule) -> AsyncIterator[PermissionBroker]:
    """The broker on a free port of the loopback interface."""
    broker = PermissionBroker(rule)
    server = await asyncio.start_server(broker.serve, "127.0.0.1", 0)
    broker.port = server.sockets[0].getsockname()[1]
    try:
        yield broker
    finally:
        server.close()
