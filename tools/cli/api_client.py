"""Asks a service over HTTP, in words for a person where it refuses.

The service is one of the stack that the launcher runs, or of any other that ``--url`` names.
"""

import json
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import OpenerDirector, ProxyHandler, Request, build_opener

from tools.launcher.errors import LauncherError
from tools.launcher.invocation import Invocation
from tools.launcher.ports import BASE_PORTS
from tools.launcher.services import SETTINGS
from tools.launcher.state import StateFile

ASK_SECONDS = 120.0
"""Longest wait for an answer: sending thousands of mails again takes some of it."""

HEALTH_SECONDS = 10.0

LOOPBACK = ("localhost", "127.0.0.1", "::1")

URL_HELP = (
    "ask this stack instead of the launcher's own: http://HOST for the usual ports, the address of"
    " any one service, or SERVICE=URL; may be repeated"
)


def add_url(command: ArgumentParser, default: object = None) -> None:
    """The option that names another stack than the launcher's own."""
    command.add_argument("--url", action="append", metavar="URL", default=default, help=URL_HELP)


def ask(given: Namespace, service: str, method: str, path: str, body: object = None) -> Any:
    """The answer of a service of the stack that the command line names; None where it is empty.

    Raises:
        LauncherError: Nothing runs there, or the service refused: what it said.
    """
    invocation = invocation_of(given)
    request = Request(  # noqa: S310 - http and https only, see Addresses
        f"{_address(service, invocation)}{path}",
        method=method,
        data=json.dumps(body).encode() if body is not None else None,
        headers={"Content-Type": "application/json"} if body is not None else {},
    )
    try:
        with _opener(request.full_url).open(request, timeout=ASK_SECONDS) as response:
            content = response.read()
    except HTTPError as error:
        raise LauncherError(_problem(service, error)) from error
    except (URLError, OSError) as error:
        raise LauncherError(
            f"{service} does not answer. Is it up? `{invocation.line('status')}` tells."
        ) from error
    return json.loads(content) if content else None


def invocation_of(given: Namespace) -> Invocation:
    """Which stack the command line means."""
    urls = getattr(given, "url", None) or ()
    return Invocation(offset=given.port_offset, data=given.data, urls=tuple(urls))


def nothing_runs(invocation: Invocation) -> str:
    """What to say where the launcher runs nothing."""
    return (
        f"Nothing runs with the data in {invocation.data}.\n"
        f"  {invocation.line('demo')}    starts it\n"
        "Another stack is named by --data, --port-offset or --url."
    )


def _address(service: str, invocation: Invocation) -> str:
    if invocation.urls:
        return Addresses.parse(invocation.urls, offset=invocation.offset).of(service)
    state = StateFile(invocation.data).read()
    if state is None:
        raise LauncherError(nothing_runs(invocation))
    return str(state["connections"]["services"][service])


@dataclass(slots=True, kw_only=True)
class Addresses:
    """Where the services of a stack are, as ``--url`` names it."""

    offset: int
    named: Mapping[str, str]
    """Service to its address."""
    bases: list[str]
    """Addresses of hosts, or of services that have to be asked which they are."""
    _who: dict[str, str | None] = field(default_factory=dict, init=False)

    @classmethod
    def parse(cls, urls: tuple[str, ...] | list[str] | Any, *, offset: int) -> "Addresses":
        """What the options say.

        Raises:
            LauncherError: One of them is no address, or names no service.
        """
        named: dict[str, str] = {}
        bases: list[str] = []
        for text in urls:
            name, equals, url = text.partition("=")
            if equals and "/" not in name and ":" not in name:
                if name not in SETTINGS:
                    raise LauncherError(
                        f"--url {text}: there is no service {name}; there are {', '.join(SETTINGS)}"
                    )
                named[name] = _checked(url)
            else:
                bases.append(_checked(text))
        return cls(offset=offset, named=named, bases=bases)

    def of(self, service: str) -> str:
        """The address of a service, without a slash at its end.

        Raises:
            LauncherError: It cannot be told; what to name.
        """
        if service in self.named:
            return self.named[service]
        for base in self.bases:
            if found := self._by(base, service):
                return found
        who = ", ".join(f"{base} is {self._who[base]}" for base in self.bases if self._who[base])
        raise LauncherError(
            f"Where is {service}? {who + '. ' if who else ''}Name it: --url {service}=http://HOST:PORT"
        )

    def _by(self, base: str, service: str) -> str | None:
        """The service's address, where that of a host or of another service tells it."""
        parts = urlsplit(base)
        if parts.port is None and parts.scheme == "http" and not parts.path:
            self._who.setdefault(base, None)
            return f"{base}:{BASE_PORTS[service] + self.offset}"
        who = self._asked(base)
        if who == service:
            return base
        if who is None or parts.port is None:
            return None
        port = BASE_PORTS[service] + parts.port - BASE_PORTS[who]
        host = f"[{parts.hostname}]" if ":" in str(parts.hostname) else parts.hostname
        return f"{parts.scheme}://{host}:{port}" if port > 0 else None

    def _asked(self, base: str) -> str | None:
        if base not in self._who:
            said = health(base)
            if said is None:
                raise LauncherError(f"{base} does not answer GET /health as a service of ours.")
            self._who[base] = said["service"]
        return self._who[base]


def health(base: str) -> dict[str, Any] | None:
    """What a service at this address says of itself; None where there is none of ours."""
    try:
        with _opener(base).open(f"{base}/health", timeout=HEALTH_SECONDS) as response:
            said = json.loads(response.read())
    except (OSError, ValueError):  # URLError and HTTPError are OSErrors
        return None
    return said if isinstance(said, dict) and said.get("service") in SETTINGS else None


def _checked(text: str) -> str:
    url = text if "://" in text else f"http://{text}"
    try:
        parts = urlsplit(url)
        known = parts.scheme in {"http", "https"} and parts.hostname and parts.port != 0
    except ValueError:
        known = False
    if not known:
        raise LauncherError(f"--url {text}: that is no address such as http://localhost:8081")
    return url.rstrip("/")


def _opener(url: str) -> OpenerDirector:
    """Without proxies on this machine; beyond it as the environment says."""
    if urlsplit(url).hostname in LOOPBACK:
        return build_opener(ProxyHandler({}))
    return build_opener()


def _problem(service: str, error: HTTPError) -> str:
    """What a problem document says (RFC 9457)."""
    try:
        problem = json.loads(error.read())
        wrong = [f"{item['pointer']}: {item['detail']}" for item in problem.get("errors", ())]
        return " ".join([problem["detail"], *wrong])
    except (ValueError, KeyError, TypeError):
        return f"{service} answered {error.code}."
