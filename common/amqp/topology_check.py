"""Compares a broker with ``common.contracts.topology``, in words, each with what to do about it.

Everything is compared as the management API shows it. ``differences`` names all that is not as it
should be; ``lacking`` that without which messages are lost or stay where they are, which a service
asks for every few seconds. It imports nothing but Python's own and ours.
"""

import json
import math
import re
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from common.amqp.management import ManagementApi
from common.contracts import topology
from common.errors import BrokerUnavailableError, TopologyMissingError

TOPOLOGY_SECONDS = 15.0
"""How long an answer is believed that nothing is lacking; the management API is not free."""

ALARM_SECONDS = 5.0
"""How long "no alarm" is believed."""

_COMPARED = {
    "exchanges": ("type", "durable", "auto_delete", "internal", "arguments"),
    "queues": ("durable", "auto_delete", "arguments"),
    "policies": ("pattern", "apply-to", "priority", "definition"),
}
"""The fields of each kind that have to be alike."""

IMPORT = "rabbitmqctl import_definitions rabbitmq/definitions.json"

_REMEDIES = {
    "missing": f"Import the topology: {IMPORT}",
    "exchanges": "Delete it, which keeps every message in the queues, and at once import the "
    f"topology: {IMPORT}",
    "queues": "A queue cannot be changed. Stop its consumer, move its messages away (shovel), "
    f"delete it and import the topology: {IMPORT}",
    "policies": f"Importing the topology replaces it: {IMPORT}",
    "users": "Make users and rights as rabbitmq/README.md says, step 2, and import users.json.",
}

Rows = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing that is not as it should be."""

    what: str
    remedy: str


def differences(present: Mapping[str, Rows]) -> list[Difference]:
    """How the kinds that are ``present`` differ from the topology; the other kinds are skipped."""
    wanted: Any = topology.definitions()
    found = [*lacking(present)]
    for kind in ("exchanges", "queues"):
        found += _changed(kind, wanted, present)
    found += _exchanges_with_a_policy(wanted["exchanges"], present.get("exchanges", ()))
    if "users" in present:
        found += _missing_users(present["users"])
    if "permissions" in present:
        found += _wrong_rights(present["permissions"])
    return found


def lacking(
    present: Mapping[str, Rows], routes: Sequence[topology.Route] = topology.ROUTES
) -> Iterator[Difference]:
    """What is missing for some routes, and the policies that are changed or not in force."""
    wanted: Any = topology.definitions(routes)
    for kind in _COMPARED:
        there = {row["name"] for row in present.get(kind, wanted[kind])}
        for row in wanted[kind]:
            if row["name"] not in there:
                yield Difference(f"{_words(kind, row)} is missing", _REMEDIES["missing"])
    bound = {_binding_key(binding) for binding in present.get("bindings", wanted["bindings"])}
    for binding in wanted["bindings"]:
        if _binding_key(binding) not in bound:
            yield Difference(f"{_binding_words(binding)} is missing", _REMEDIES["missing"])
    yield from _changed("policies", wanted, present)
    yield from _rules_in_force(wanted, present.get("queues", ()), present.get("policies"))


def unknown_bindings(present: Mapping[str, Rows]) -> list[str]:
    """Bindings into our queues that are not of the topology: another program's, or left over."""
    wanted: Any = topology.definitions()
    known = {_binding_key(binding) for binding in wanted["bindings"]}
    ours = {queue["name"] for queue in wanted["queues"]}
    return [
        f"{_binding_words(binding)} is not of the topology: another program feeds this queue"
        for binding in present.get("bindings", ())
        # Every queue is bound to the default exchange, whose name is empty.
        if binding["source"] and binding["destination"] in ours
        if _binding_key(binding) not in known
    ]


def _changed(kind: str, wanted: Any, present: Mapping[str, Rows]) -> Iterator[Difference]:
    there = {row["name"]: row for row in present.get(kind, ())}
    for row in wanted[kind]:
        for name in _COMPARED[kind] if row["name"] in there else ():
            value = there[row["name"]].get(name)
            if value != row[name]:
                words = f"{_words(kind, row)}: {name} is {_shown(value)}, not {_shown(row[name])}"
                yield Difference(words, _REMEDIES[kind])


def _words(kind: str, row: Mapping[str, Any]) -> str:
    return f"{_SINGULAR[kind]} {row['name']}"


_SINGULAR = {"exchanges": "exchange", "queues": "queue", "policies": "policy"}


def _binding_key(binding: Mapping[str, Any]) -> tuple[str, ...]:
    names = ("source", "destination_type", "destination", "routing_key")
    return (*(binding[name] for name in names), json.dumps(binding["arguments"], sort_keys=True))


def _binding_words(binding: Mapping[str, Any]) -> str:
    key = f" with {binding['routing_key']}" if binding["routing_key"] else ""
    return f"binding {binding['source']} to {binding['destination']}{key}"


def _rules_in_force(wanted: Any, present: Rows, policies: Rows | None) -> Iterator[Difference]:
    """Whether the right policy applies: another one of higher priority would push it aside."""
    names = {queue["name"] for queue in wanted["queues"]}
    for queue in present:
        # Shown with the queue's first statistics, some seconds after the broker started.
        if queue["name"] not in names or "effective_policy_definition" not in queue:
            continue
        effective = queue["effective_policy_definition"] or {}
        expected = _policy_for(queue["name"], wanted["policies"])
        if effective == expected["definition"]:
            continue
        matching = expected if policies is None else _policy_for(queue["name"], policies)
        if effective == matching["definition"] and matching["name"] in ("", expected["name"]):
            continue  # named already: the policy itself is missing or differs
        yield Difference(
            f"queue {queue['name']}: in force is {_shown(effective)} of the policy "
            f"{queue.get('policy') or 'none'}, not {_shown(expected['definition'])}",
            "Look for a policy or operator policy that matches the queue: rabbitmqctl "
            f"list_policies -p {topology.VHOST}; delete it, or import the topology: {IMPORT}",
        )


def _policy_for(queue: str, policies: Rows) -> Mapping[str, Any]:
    matching = [policy for policy in policies if re.search(policy["pattern"], queue)]
    none = {"name": "", "definition": {}}
    return max(matching, key=lambda policy: int(policy["priority"]), default=none)


def _exchanges_with_a_policy(wanted: Rows, present: Rows) -> Iterator[Difference]:
    """An alternate exchange, for one, would make the broker confirm what it cannot route."""
    names = {exchange["name"] for exchange in wanted}
    for exchange in present:
        if exchange["name"] in names and exchange.get("policy"):
            yield Difference(
                f"exchange {exchange['name']}: the policy {exchange['policy']} applies to it, and "
                "none should",
                f"rabbitmqctl clear_policy -p {topology.VHOST} {exchange['policy']}",
            )


def _missing_users(present: Rows) -> Iterator[Difference]:
    there = {user["name"]: user for user in present}
    for name in (*topology.BROKER_USERS, topology.MONITOR):
        if name not in there:
            yield Difference(f"user {name} is missing", _REMEDIES["users"])
        elif name in topology.BROKER_USERS and (tags := _tags(there[name]["tags"])):
            yield Difference(
                f"user {name} may more than a service should: its tags are {', '.join(tags)}",
                f"rabbitmqctl set_user_tags {name}",
            )


def _tags(value: Any) -> list[str]:
    """A list by the API of 3.9 and later; older ones and some exports have a text with commas."""
    return [tag for tag in (value if isinstance(value, list) else value.split(",")) if tag]


def _wrong_rights(present: Rows) -> Iterator[Difference]:
    there = {row["user"]: row for row in present if row["vhost"] == topology.VHOST}
    for name in (*topology.BROKER_USERS, topology.MONITOR):
        wanted = topology.permissions(name)
        given = there.get(name, {})
        wrong = [
            f"{right} is {_shown(given.get(right))}, not {_shown(wanted[right])}"
            for right in ("configure", "write", "read")
            if given.get(right) != wanted[right]
        ]
        if wrong:
            rights = " ".join(
                shlex.quote(wanted[right]) for right in ("configure", "write", "read")
            )
            yield Difference(
                f"rights of user {name}: {'; '.join(wrong)}",
                f"rabbitmqctl set_permissions -p {topology.VHOST} {name} {rights}",
            )


def _shown(value: object) -> str:
    return "not there" if value is None else json.dumps(value, sort_keys=True)


# -- readiness ------------------------------------------------------------------------------


class BrokerCheck:
    """Asks the management API whether bindings and policies are as they should be.

    A lost binding or policy shows nowhere else: a message that a queue's policy fails to
    dead-letter is just gone. Only the service's own routes: what others lack stops nothing here.
    """

    def __init__(self, management: ManagementApi, service: str) -> None:
        self._routes = topology.BROKER_USERS[service].routes
        self._management = management
        self._checked_at = -math.inf
        self._lacking: list[Difference] = []

    async def check(self) -> None:
        """Raise TopologyMissingError naming what is lacking."""
        if time.monotonic() - self._checked_at > TOPOLOGY_SECONDS or self._lacking:
            queues, bindings = await self._management.select("queues", "bindings")
            self._lacking = [*lacking({"queues": queues, "bindings": bindings}, self._routes)]
            self._checked_at = time.monotonic()
        if self._lacking:
            raise TopologyMissingError(
                "The broker differs from rabbitmq/definitions.json: "
                f"{'; '.join(each.what for each in self._lacking[:5])}. Import that file."
            )


class AlarmCheck:
    """Asks the management API whether the broker takes messages at all.

    A connection is told of an alarm when it publishes: one that does not would call itself able
    until its first message is refused.
    """

    def __init__(self, management: ManagementApi) -> None:
        self._management = management
        self._checked_at = -math.inf
        self._alarms: list[str] = []

    async def check(self) -> None:
        """Raise BrokerUnavailableError naming what it is short of; not if it does not answer."""
        if time.monotonic() - self._checked_at > ALARM_SECONDS or self._alarms:
            with suppress(BrokerUnavailableError):
                self._alarms = await self._management.select_alarms()
            self._checked_at = time.monotonic()
        if self._alarms:
            raise BrokerUnavailableError(
                f"The broker takes no messages: {'; '.join(self._alarms)}."
            )
