"""The bases of all contracts: messages on the broker, bodies over HTTP."""

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict
from pydantic.alias_generators import to_camel

from common.contracts.topology import Route


class _Model(BaseModel):
    """camelCase in JSON, snake_case in Python; cannot be changed."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        frozen=True,
        defer_build=True,  # with its first use: a service uses a part of them
    )


class Body(_Model):
    """An HTTP body or query; unknown fields are refused."""

    sample: ClassVar[Mapping[str, Any] | None] = None
    """A body as another program would write it: shown in the documents, read in the tests."""

    model_config = ConfigDict(extra="forbid")


class Answer(Body):
    """An HTTP answer; a reader ignores fields it does not know."""

    model_config = ConfigDict(extra="ignore")


class Contract(_Model):
    """The data of a message, exactly the flat JSON object a person would write by hand.

    A contract changes by adding an optional field; anything else is a new class with the
    next version in its ``type_name``, read beside the old one until its queues are empty.
    """

    model_config = ConfigDict(extra="ignore")

    type_name: ClassVar[str]
    """AMQP ``type`` and routing key, such as ``user.registration.submitted.v1``."""

    route: ClassVar[Route]
    """Where its messages travel."""

    sample: ClassVar[Mapping[str, Any]]
    """A message as another program would write it; shown in the docs, read in the tests."""

    is_default: ClassVar[bool] = False
    """Whether messages of the route that name no type are read as this; so is one of each."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Register the class.

        Raises:
            ValueError: Another contract has the same ``type_name``.
        """
        known = _BY_TYPE.setdefault(cls.type_name, cls)
        if known is not cls:
            raise ValueError(f"{cls.type_name} is {known.__module__}.{known.__qualname__} already.")

    @staticmethod
    def by_type(name: object) -> "type[Contract] | None":
        """The contract that a message names as its ``type``, if there is one."""
        _import_all()
        return _BY_TYPE.get(name) if isinstance(name, str) else None

    @staticmethod
    def by_route(route: Route) -> "tuple[type[Contract], ...]":
        """All contracts of a route, its default first."""
        _import_all()
        found = [contract for contract in _BY_TYPE.values() if contract.route == route]
        return tuple(sorted(found, key=lambda contract: not contract.is_default))


_BY_TYPE: dict[str, type[Contract]] = {}


@cache
def _import_all() -> None:
    """Import every module of contracts, since a class is registered when it is imported."""
    package = import_module(__package__)
    for module in iter_modules(package.__path__):
        import_module(f"{__package__}.{module.name}")
