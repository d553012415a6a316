"""What is not as ``common.contracts.topology`` says, in words, each with what to do about it.

Everything is compared as the management API shows it; nothing here asks anybody.
"""

import json
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.contracts import topology

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
    found: list[Difference] = []
    for kind, fields in _COMPARED.items():
        if kind in present:
            found += _compare(kind, wanted[kind], present[kind], fields)
    if "bindings" in present:
        found += _missing_bindings(wanted["bindings"], present["bindings"])
    if "queues" in present:
        found += _rules_in_force(wanted, present["queues"], present.get("policies"))
    if "exchanges" in present:
        found += _exchanges_with_a_policy(wanted["exchanges"], present["exchanges"])
    if "users" in present:
        found += _missing_users(present["users"])
    if "permissions" in present:
        found += _wrong_rights(present["permissions"])
    return found


def unknown_bindings(present: Mapping[str, Rows]) -> list[str]:
    """Bindings into our queues that the topology does not know: somebody else's, or left over."""
    wanted: Any = topology.definitions()
    known = {_binding_key(binding) for binding in wanted["bindings"]}
    ours = {queue["name"] for queue in wanted["queues"]}
    return [
        f"{_binding_words(binding)} is not of the topology: somebody else feeds this queue"
        for binding in present.get("bindings", ())
        # Every queue is bound to the default exchange, whose name is empty.
        if binding["source"] and binding["destination"] in ours
        if _binding_key(binding) not in known
    ]


def _compare(kind: str, wanted: Rows, present: Rows, fields: Iterable[str]) -> Iterator[Difference]:
    there = {row["name"]: row for row in present}
    for row in wanted:
        what = f"{_SINGULAR[kind]} {row['name']}"
        if row["name"] not in there:
            yield Difference(f"{what} is missing", _REMEDIES["missing"])
            continue
        for name in fields:
            value = there[row["name"]].get(name)
            if value != row[name]:
                said = f"{what}: {name} is {_shown(value)}, not {_shown(row[name])}"
                yield Difference(said, _REMEDIES[kind])


_SINGULAR = {"exchanges": "exchange", "queues": "queue", "policies": "policy"}


def _missing_bindings(wanted: Rows, present: Rows) -> Iterator[Difference]:
    there = {_binding_key(binding) for binding in present}
    for binding in wanted:
        if _binding_key(binding) not in there:
            yield Difference(f"{_binding_words(binding)} is missing", _REMEDIES["missing"])


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
        # Said with the queue's first statistics, some seconds after the broker started.
        if queue["name"] not in names or "effective_policy_definition" not in queue:
            continue
        effective = queue["effective_policy_definition"] or {}
        expected = _policy_for(queue["name"], wanted["policies"])
        if effective == expected["definition"]:
            continue
        matching = expected if policies is None else _policy_for(queue["name"], policies)
        if effective == matching["definition"] and matching["name"] in ("", expected["name"]):
            continue  # told already: the policy itself is missing or differs
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
    """A list by the API of 3.9 and later; older ones and some exports say a text with commas."""
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
