"""Which part listens where, and whether it can."""

import socket
from collections.abc import Iterable, Mapping

from tools.launcher.errors import LauncherError
from tools.launcher.invocation import Invocation

HOST = "127.0.0.1"
"""Everything listens here, and nothing beyond this machine."""

BASE_PORTS = {
    "frontend": 3000,
    "queue_receiver": 8081,
    "sender": 8082,
    "database_service": 8083,
    "report_generator": 8084,
    "mailbox smtp": 21025,
    "mailbox web": 21080,
    "postgres": 21432,
    "rabbitmq amqp": 21672,
    "rabbitmq management": 21673,
    "rabbitmq prometheus": 21674,
    "rabbitmq distribution": 21675,
    "epmd": 21676,
}
"""Name of the listener to its port without an offset."""

FIRST_EPHEMERAL = 32768
"""Linux takes the ports of outgoing connections from here on; one of them may sit on ours."""

LARGEST_OFFSET = FIRST_EPHEMERAL - 1 - max(BASE_PORTS.values())


def ports(offset: int) -> dict[str, int]:
    """The ports of one stack.

    Raises:
        LauncherError: The offset leads out of the usable range.
    """
    if not 0 <= offset <= LARGEST_OFFSET:
        raise LauncherError(
            f"--port-offset {offset} does not work: it can be 0 to {LARGEST_OFFSET}. Beyond, ports"
            f" of {FIRST_EPHEMERAL} and more come up, which the system gives to outgoing"
            " connections at random."
        )
    return {name: port + offset for name, port in BASE_PORTS.items()}


def require_free(wanted: Mapping[str, int], *, invocation: Invocation) -> None:
    """Return if every port can be listened on.

    Raises:
        LauncherError: Names each taken port and what wanted it.
    """
    taken = [f"  {port} (for {name})" for name, port in wanted.items() if not is_free(port)]
    if taken:
        other = invocation.offset + 100
        if other > LARGEST_OFFSET:
            other = 0
        raise LauncherError(
            "These ports are in use by another program:\n"
            + "\n".join(taken)
            + "\nEither end that program (is another UserStream running?"
            f" `{invocation.line('down')}` ends it),"
            f"\nor take other ports for all parts: --port-offset {other}"
        )


def is_free(port: int) -> bool:
    """Whether a program could listen on this port right now."""
    with socket.socket() as probe:
        # As servers do; without it a port that was closed a minute ago counts as taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def free_ports(count: int, *, among: Iterable[int]) -> list[int]:
    """The first ``count`` ports that are free at this moment.

    Raises:
        LauncherError: There are not that many.
    """
    found: list[int] = []
    for port in among:
        if is_free(port):
            found.append(port)
        if len(found) == count:
            return found
    raise LauncherError(f"{count} free ports were wanted, {len(found)} found.")
