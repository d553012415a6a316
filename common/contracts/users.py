"""Users as database_service shows them."""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import Field

from common.contracts.base import Answer, Body
from common.contracts.registrations import PERSON, Person
from common.contracts.rules import MAX_BIGINT, EmailAddress, Instant, PersonName


class UserRequest(Person, Body):
    """What creates a user."""

    sample: ClassVar[Mapping[str, Any]] = PERSON


class UserUpdate(Body):
    """What replaces a user's values."""

    sample: ClassVar[Mapping[str, Any]] = UserRequest.sample

    name: PersonName
    surname: PersonName
    email: EmailAddress | None = None
    """Without it, the address stays as it is."""


class User(Answer):
    """One user."""

    id: int
    name: str
    surname: str
    email: str
    created_at: Instant
    updated_at: Instant


class UserList(Answer):
    """One page of users, by id."""

    users: list[User]
    next_after: int | None
    """Pass it as ``after`` for the next page; also as ``Link: rel="next"``."""


class UserListQuery(Body):
    """The page that is asked for: by keyset (``after``), or by number (``page``)."""

    after: Annotated[int, Field(ge=0, le=MAX_BIGINT)] | None = None
    """The last id of the page before. Any page costs as much as the first."""

    page: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Number of the page from 1; the further, the slower."""

    limit: Annotated[int, Field(ge=1, le=500)] = 50
