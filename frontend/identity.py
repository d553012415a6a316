"""The id of a registration: the same key and body always give the same one.

The last four bytes seal the others, so an id that was given out is recognised without a request.
The seal is no protection: any holder of an id may follow its journey, which shows nothing personal.
"""

import hashlib
import hmac
import json
import secrets
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from common.contracts.registrations import RegistrationRequest
from common.errors import IdempotencyKeyReusedError

SEAL_BYTES = 4
"""One made-up id in four thousand million looks like one of ours."""

REMEMBERED_KEYS = 100_000
"""Keys of which this process knows the body, some 20 MB; the oldest are dropped first."""


class Identities:
    """Makes registration ids; an id cannot be guessed without ``secret``."""

    def __init__(self, secret: str) -> None:
        self._secret = secret.encode()
        self._bodies: OrderedDict[bytes, bytes] = OrderedDict()
        self._canary: tuple[bytes, UUID] | None = None

    @contextmanager
    def reserve(self, key: str, canary_id: UUID) -> Iterator[None]:
        """Let the request that comes with ``key`` meanwhile be the canary; no other is one."""
        self._canary = key.encode(), canary_id
        try:
            yield
        finally:
            self._canary = None

    def identify(self, request: RegistrationRequest, key: str | None) -> UUID:
        """The id of a registration.

        Args:
            request: What is registered.
            key: Chosen by the client, so that sending again is no second registration;
                without one, every request is a registration of its own.
        """
        if key is None:
            return self._sealed(secrets.token_bytes(16))
        if self._canary is not None and hmac.compare_digest(key.encode(), self._canary[0]):
            return self._canary[1]
        return self._sealed(self._digest(key.encode() + b"\0" + _canonical(request)))

    def is_ours(self, registration_id: UUID) -> bool:
        """Whether the id was made with this secret; those of other AMQP publishers were not."""
        content = registration_id.bytes
        return hmac.compare_digest(content[-SEAL_BYTES:], self._seal(content[:-SEAL_BYTES]))

    def _sealed(self, content: bytes) -> UUID:
        # The version stands in front of the seal, so it is sealed too.
        head = UUID(bytes=content, version=4).bytes[:-SEAL_BYTES]
        return UUID(bytes=head + self._seal(head))

    def _seal(self, head: bytes) -> bytes:
        # No key begins with a zero byte, so no digest of a key is a seal.
        return self._digest(b"\0" + head)[:SEAL_BYTES]

    def check_reuse(self, request: RegistrationRequest, key: str) -> None:
        """Raise IdempotencyKeyReusedError if ``key`` was accepted here with another body.

        Best effort: other instances, and this one after a restart, do not know the key.
        Then it is a second registration; never a lost one.
        """
        known = self._bodies.get(self._digest(key.encode()))
        if known is not None and known != self._digest(_canonical(request)):
            raise IdempotencyKeyReusedError(
                "A registration with this key was accepted before; use a new key for this one."
            )

    def remember(self, request: RegistrationRequest, key: str) -> None:
        """Keep which body ``key`` was accepted with."""
        self._bodies[self._digest(key.encode())] = self._digest(_canonical(request))
        if len(self._bodies) > REMEMBERED_KEYS:
            self._bodies.popitem(last=False)

    def _digest(self, data: bytes) -> bytes:
        return hmac.digest(self._secret, data, hashlib.sha256)[:16]


def _canonical(request: RegistrationRequest) -> bytes:
    """The body without what does not matter: order, spaces, the case of the address."""
    return json.dumps([request.name, request.surname, request.email.lower()]).encode()
