"""Registers canaries by this process's own endpoint, as any other client would.

The endpoint knows a canary by its ``Idempotency-Key``, which is made for this one registration
and known to this process alone. No header, field or address marks a registration as a canary.
"""

import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Self
from uuid import UUID

import aiohttp

from common.context import outgoing_headers
from common.contracts.canary import canary_address
from common.contracts.registrations import RegistrationRequest
from common.errors import TransientError, UserStreamError
from common.http.address import OwnAddress
from common.http.idempotency import IDEMPOTENCY_KEY
from frontend.identity import Identities

ANSWER_SECONDS = 10.0
"""Longest wait for an answer; one that cannot publish says so within 6 s."""


class SelfRequestError(TransientError):
    """The own endpoint did not answer, or not as expected."""

    code = "self_request_failed"


class SelfClient:
    """Registers canaries over HTTP."""

    def __init__(
        self, session: aiohttp.ClientSession, *, address: OwnAddress, identities: Identities
    ) -> None:
        self._session = session
        self._address = address
        self._identities = identities

    @classmethod
    @asynccontextmanager
    async def open(cls, *, address: OwnAddress, identities: Identities) -> AsyncIterator[Self]:
        """A client that opens a connection for each canary, as people do."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            connector=aiohttp.TCPConnector(force_close=True),
        ) as session:
            yield cls(session, address=address, identities=identities)

    async def register(self, canary_id: UUID) -> None:
        """Return when the canary was accepted.

        Raises:
            UserStreamError: It was refused, with the endpoint's own reason.
            SelfRequestError: There was no answer, or another than expected.
        """
        url = await self._address.url()
        key = secrets.token_urlsafe(32)
        body = RegistrationRequest(
            name="Canary", surname="Canary", email=canary_address(canary_id)
        ).model_dump()
        headers = {IDEMPOTENCY_KEY: key, **outgoing_headers()}
        try:
            with self._identities.reserve(key, canary_id):
                async with self._session.post(
                    f"{url}/api/registrations", json=body, headers=headers
                ) as response:
                    answer = await response.json(content_type=None)
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise SelfRequestError(f"No answer ({type(error).__name__}).") from error
        _check(response.status, answer, canary_id)


def _check(status: int, answer: object, canary_id: UUID) -> None:
    said = answer if isinstance(answer, dict) else {}
    if status != 202:  # noqa: PLR2004
        kind = UserStreamError.by_code.get(str(said.get("code")), SelfRequestError)
        raise kind(str(said.get("detail") or f"answered {status}"))
    if said.get("registrationId") != str(canary_id):
        raise SelfRequestError("The response names another registration id.")
