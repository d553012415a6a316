"""The client of a request: its address, also behind trusted proxies."""

import ipaddress
import re

from aiohttp import web

from common.settings import split_list

X_FORWARDED_FOR = "X-Forwarded-For"

PREFIX_BITS = 64
"""Of an IPv6 address what names a client: the rest it may choose anew for each connection."""

_PORT = re.compile(r"^(\[[^\]]*\]|[^:]*):[0-9]+$")


class Clients:
    """Names the client of a request."""

    def __init__(self, trusted_proxies: str) -> None:
        self._proxies = [ipaddress.ip_network(text) for text in split_list(trusted_proxies)]

    def name(self, request: web.Request) -> str:
        """The peer's address; where that is a trusted proxy's, the one that the proxy names.

        Of several in ``X-Forwarded-For`` the last one counts that is no trusted proxy's: the
        client may have written the ones before it.
        """
        client = _address(request.remote or "")
        given = ",".join(request.headers.getall(X_FORWARDED_FOR, ()))
        for hop in reversed(split_list(given)):
            if client is None or not self._is_trusted(client):
                break
            client = _address(hop) or client
        if client is None:
            return ""
        if client.version == 6:  # noqa: PLR2004
            return str(ipaddress.ip_network((client, PREFIX_BITS), strict=False))
        return str(client)

    def _is_trusted(self, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
        return any(address in network for network in self._proxies)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    bare = _PORT.sub(r"\1", text).strip("[]")
    try:
        address = ipaddress.ip_address(bare.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
