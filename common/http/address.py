"""Where a service is reached from its own machine, once it listens."""

import asyncio

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - looked for, not bound to
"""Of a socket that listens everywhere, the address on this machine alone."""


class OwnAddress:
    """The URL under which a process reaches itself, and no other process.

    Taken from the socket that it listens on: another process may have the port of the settings.
    """

    def __init__(self) -> None:
        self._url = ""
        self._known = asyncio.Event()

    def listens(self, host: str, port: int) -> None:
        """Keep the socket's address."""
        host = _LOOPBACK.get(host, host)
        self._url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        self._known.set()

    async def url(self) -> str:
        """Wait until the service listens; without a slash at the end."""
        await self._known.wait()
        return self._url
