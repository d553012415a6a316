"""Certificates that sign themselves, for tests of TLS."""

import atexit
import os
import shutil
import ssl
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import pytest


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate that signs itself, for one name."""

    certificate: Path
    key: Path

    def for_server(self) -> ssl.SSLContext:
        """What a server needs to show it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.certificate, self.key)
        return context

    def for_client(self) -> ssl.SSLContext:
        """What a client needs to trust it."""
        return ssl.create_default_context(cafile=str(self.certificate))


@cache
def certificate(name: str = "IP:127.0.0.1", *, days: int = 30) -> Certificate:
    """Make a certificate for ``name`` (``IP:…`` or ``DNS:…``); needs the openssl program."""
    if shutil.which("openssl") is None:
        end = pytest.fail if os.environ.get("CI") else pytest.skip
        end("no openssl on this machine; to run the tests of TLS, type: apt-get install openssl")
    directory = Path(mkdtemp(prefix="userstream-certificate-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    key, pem = directory / "key.pem", directory / "certificate.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test "
        f"-keyout {key} -out {pem} -days {days} -addext subjectAltName={name}"
    )
    subprocess.run(command.split(), check=True, capture_output=True)
    return Certificate(pem, key)
