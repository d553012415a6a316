"""The way in for a canary: the form's endpoint of this very process, as anybody would call it.

The endpoint knows it by its ``Idempotency-Key``, which is made for this one registration and
known to nobody else. So there is no header, field or address by which others could mark theirs.
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


class OwnDoorError(TransientError):
    """This process does not answer itself as it should."""

    code = "self_client"


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
        """A way in that opens a connection for each canary, as people do."""
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ANSWER_SECONDS),
            connector=aiohttp.TCPConnector(force_close=True),
        ) as session:
            yield cls(session, address=address, identities=identities)

    async def register(self, canary_id: UUID) -> None:
        """Return when the canary was accepted.

        Raises:
            UserStreamError: It was refused, with the endpoint's own reason.
            OwnDoorError: There was no answer, or another than expected.
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
            raise OwnDoorError(f"No answer ({type(error).__name__}).") from error
        _check(response.status, answer, canary_id)


def _check(status: int, answer: object, canary_id: UUID) -> None:
    said = answer if isinstance(answer, dict) else {}
    if status != 202:  # noqa: PLR2004
        kind = UserStreamError.by_code.get(str(said.get("code")), OwnDoorError)
        raise kind(str(said.get("detail") or f"answered {status}"))
    if said.get("registrationId") != str(canary_id):
        raise OwnDoorError("It was registered as somebody else.")
