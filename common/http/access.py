"""Which names a service answers to, and what pages of other sites may ask of it.

Browsers keep pages apart by origin, and two things get around that. A name whose address changes
(DNS rebinding) makes another site's page one of ours: closed by the list of names. A form or a
plain ``fetch`` may be sent anywhere: closed by refusing what a foreign page sends, and by reading
JSON only where the request names it, which no page can do without being let first (CORS).
"""

import ipaddress
import re
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from common.errors import CrossSiteError, ExpectationError, HostNotAllowedError
from common.settings import split_list

UNMET_EXPECTATION = web.RequestKey("unmet_expectation", bool)
"""Set by the server where the header ``Expect`` asks for something other than ``100-continue``."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing (RFC 9110, 9.2.1)."""

ANY_HOST = "*"
"""In the list of names: do not look, something before the service does."""

REMEMBERED_HOSTS = 256
"""Values of ``Host`` that were allowed; each is parsed once."""

PREFLIGHT_SECONDS = 600
"""How long browsers keep what a preflight allowed."""

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::[0-9]{0,5})?")
_OUR_SITE = ("same-origin", "none")

_SHARED_PATH = re.compile(r"/api/.*|/registrations/[^/]+/events")
"""What pages of the listed origins may ask: the API and the live journey, not the pages."""

_REQUEST_HEADERS = "Content-Type, Idempotency-Key, traceparent, X-Correlation-Id, X-Request-Id"
_ANSWER_HEADERS = "Location, Retry-After, X-Request-Id"


class Access:
    """What is asked of every request before its handler is."""

    def __init__(
        self, *, allowed_hosts: str = "", public_url: object = None, cors_origins: str = ""
    ) -> None:
        """Take over the settings of the same names; lists are separated by commas."""
        self._names = {name.lower().rstrip(".") for name in split_list(allowed_hosts)}
        self._shared_origins = {_origin(text) for text in split_list(cors_origins)}
        self._trusted_origins = set(self._shared_origins)
        if public_url is not None:
            self._names.add((urlsplit(str(public_url)).hostname or "").rstrip("."))
            self._trusted_origins.add(_origin(str(public_url)))
        self._known_hosts: set[str] = set()

    def check(self, request: web.Request) -> None:
        """Refuse what was sent to another name, or by a page of another site.

        Raises:
            ExpectationError, HostNotAllowedError, CrossSiteError: Nothing was done.
        """
        if UNMET_EXPECTATION in request:
            raise ExpectationError("Leave out the header Expect, or send 100-continue.")
        self._check_host(request)
        if request.method not in SAFE_METHODS:
            self._check_origin(request)

    def preflight(self, request: web.Request, error: Exception) -> web.Response | None:
        """Say what a page of a listed origin may send (Fetch, 3.2.2), if that was asked.

        What does not exist stays a 404.
        """
        if not isinstance(error, web.HTTPMethodNotAllowed) or request.method != hdrs.METH_OPTIONS:
            return None
        if not (self._shares(request.path) and self._is_listed(request)):
            return None
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: ", ".join(sorted(error.allowed_methods)),
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _REQUEST_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: str(PREFLIGHT_SECONDS),
            },
        )

    def share(self, request: web.Request, response: web.StreamResponse) -> None:
        """Let pages of the listed origins read the answer; also refusals and streams."""
        if not self._shares(request.path):
            return
        vary(response, hdrs.ORIGIN)
        if self._is_listed(request):
            # Never "*", and never with credentials: there are none.
            response.headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = request.headers[hdrs.ORIGIN]
            response.headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _ANSWER_HEADERS

    def _check_host(self, request: web.Request) -> None:
        hosts = request.headers.getall(hdrs.HOST, ())
        if len(hosts) == 1 and hosts[0] in self._known_hosts and request.host == hosts[0]:
            return
        if ANY_HOST in self._names:
            return
        if len(hosts) > 1:
            raise HostNotAllowedError("The header Host comes more than once. Nothing was done.")
        # A request line with a whole URL overrides the header (RFC 9112, 3.2.2). Without either,
        # as HTTP/1.0 allows, there is no name, and no browser that could have sent it.
        for host in {*hosts, request.host} if hosts else ():
            if not self.allows(host):
                raise HostNotAllowedError(
                    "This service does not answer to the name in the header Host. Ask it as "
                    "localhost or by an IP address. If the name is right, add it to "
                    "ALLOWED_HOSTS and start the service again. Nothing was done."
                )
        if hosts and len(self._known_hosts) < REMEMBERED_HOSTS:
            self._known_hosts.add(hosts[0])

    def allows(self, host: str) -> bool:
        """Whether a value of ``Host`` names this service.

        Addresses always do: a page that was loaded from one cannot move to another, so there
        is nothing to rebind. Which address it is depends on how containers and forwarded ports
        are laid out, and a check would refuse scrapes and health checks for no gain.
        """
        if not (parts := _HOST.fullmatch(host)):
            return False
        name = parts[1].lower().rstrip(".")
        return (
            name == "localhost"
            or name.endswith(".localhost")  # never asked of a name server (RFC 6761, 6.3)
            or name in self._names
            or _is_address(name)
            or any(f"*.{end}" in self._names for end in _ends(name))
        )

    def _check_origin(self, request: web.Request) -> None:
        """Let through our own pages, those of the listed origins, and programs.

        Browsers say where a request comes from, and no page can change what they say: all that
        are in use send ``Sec-Fetch-Site`` to safe addresses, and ``Origin`` to all. Programs
        send neither.
        """
        origin = request.headers.get(hdrs.ORIGIN)
        if origin is not None and origin.lower() in self._trusted_origins:
            return
        site = request.headers.get("Sec-Fetch-Site")
        if site is None and (origin is None or _authority(origin) == request.host.lower()):
            return
        if site in _OUR_SITE:
            return
        raise CrossSiteError(
            "Another site's page sent this, and nothing was done. If it was you, do it on a page "
            "of ours, or with a program. Behind a proxy, PUBLIC_URL has to be set."
        )

    def _shares(self, path: str) -> bool:
        """Whether pages of listed origins may read what is there; of none where none is listed."""
        return bool(self._shared_origins and _SHARED_PATH.fullmatch(path))

    def _is_listed(self, request: web.Request) -> bool:
        """Whether a page of a listed origin asks."""
        return request.headers.get(hdrs.ORIGIN, "").lower() in self._shared_origins


def vary(response: web.StreamResponse, name: str) -> None:
    """Say that the answer depends on a request header, beside those that it names already."""
    named = response.headers.get(hdrs.VARY, "")
    if name.lower() not in named.lower():
        response.headers[hdrs.VARY] = f"{named}, {name}" if named else name


def _ends(name: str) -> list[str]:
    """Every domain that a name lies in: ``a.b.c`` in ``b.c`` and ``c``."""
    labels = name.split(".")
    return [".".join(labels[at:]) for at in range(1, len(labels))]


def _is_address(name: str) -> bool:
    """Whether it is an IP address as browsers write it."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _origin(url: str) -> str:
    """The origin of a URL as browsers write it: without the port that its scheme implies."""
    parts = urlsplit(url.lower())
    implied = ":443" if parts.scheme == "https" else ":80"
    return f"{parts.scheme}://{parts.netloc.removesuffix(implied)}"


def _authority(origin: str) -> str:
    """Host and port of an origin; nothing of ``null`` and of what is none."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""
