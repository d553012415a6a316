"""The bases of all contracts: messages on the broker, bodies over HTTP."""

from collections.abc import Mapping
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from common.topology import Route


class Body(BaseModel):
    """An HTTP body or query: camelCase at the edge, unknown fields refused."""

    sample: ClassVar[Mapping[str, Any] | None] = None
    """A body as another program would write it: shown in the documents, read in the tests."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        defer_build=True,  # with its first use: a service uses a part of them
    )


class Answer(Body):
    """An HTTP answer; a reader ignores fields it does not know."""

    model_config = ConfigDict(extra="ignore")


class Contract(BaseModel):
    """The data of a message, exactly the flat JSON object a person would write by hand.

    A contract changes by adding an optional field; anything else is a new class with the
    next version in its ``type_name``, read beside the old one until its queues are empty.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="ignore",
        frozen=True,
        defer_build=True,  # with its first use: a service uses a part of them
    )

    type_name: ClassVar[str]
    """AMQP ``type`` and routing key, such as ``user.registration.submitted.v1``."""

    route: ClassVar[Route]
    """Where its messages travel."""

    sample: ClassVar[Mapping[str, Any]]
    """A message as another program would write it; shown in the docs, read in the tests."""
