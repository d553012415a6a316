import copy
import re
from collections.abc import Callable
from typing import Any

import pytest

from common.amqp.topology_check import differences, lacking, unknown_bindings
from common.contracts.topology import (
    BROKER_USERS,
    MONITOR,
    ROUTES,
    USER_REGISTRATION,
    Route,
    definitions,
    queues,
    user_definitions,
)
from rabbitmq.provision import ADMINISTRATOR, TAGS

Rows = dict[str, list[dict[str, Any]]]

WORK = USER_REGISTRATION.queue


@pytest.fixture
def present() -> Rows:
    """What the management API of a broker says after both definitions files were imported."""
    topology: Any = definitions()
    users: Any = user_definitions(dict.fromkeys((*BROKER_USERS, *TAGS), "hash"), TAGS)
    rows: Rows = copy.deepcopy(
        {kind: topology[kind] for kind in ("exchanges", "queues", "bindings", "policies")}
        | {"users": users["users"], "permissions": users["permissions"]}
    )
    for queue in rows["queues"]:
        policy = next(p for p in rows["policies"] if re.search(p["pattern"], queue["name"]))
        queue |= {"policy": policy["name"], "effective_policy_definition": policy["definition"]}
        rows["bindings"].append(
            {
                "source": "",
                "vhost": "/",
                "destination": queue["name"],
                "destination_type": "queue",
                "routing_key": queue["name"],
                "arguments": {},
            }
        )
    for exchange in rows["exchanges"]:
        exchange["policy"] = None
    for user in rows["users"]:
        user["tags"] = [tag for tag in user["tags"].split(",") if tag]
    return rows


def row(rows: Rows, kind: str, name: str) -> dict[str, Any]:
    key = "user" if kind == "permissions" else "name"
    return next(row for row in rows[kind] if row[key] == name)


def without(rows: Rows, kind: str, name: str) -> None:
    rows[kind].remove(row(rows, kind, name))


def test_a_broker_with_both_files_imported_differs_in_nothing(present: Rows) -> None:
    assert differences(present) == []
    assert unknown_bindings(present) == []


def loose(rows: Rows) -> None:
    whole = (USER_REGISTRATION.name, WORK)
    rows["bindings"] = [b for b in rows["bindings"] if (b["source"], b["destination"]) != whole]


def pushed_aside(rows: Rows) -> None:
    definition = {"max-length": 10}
    policy = {"name": "mine", "pattern": "registration$", "priority": 9, "definition": definition}
    rows["policies"].append(policy)
    row(rows, "queues", WORK).update(policy="mine", effective_policy_definition=definition)


def operated(rows: Rows) -> None:
    queue = row(rows, "queues", WORK)
    queue["effective_policy_definition"] = {
        **queue["effective_policy_definition"],
        "message-ttl": 60_000,
    }


DAMAGE: dict[str, tuple[Callable[[Rows], object], str]] = {
    "a lost exchange": (
        lambda rows: without(rows, "exchanges", "user.registration.dlx"),
        "exchange user.registration.dlx is missing",
    ),
    "an exchange of another type": (
        lambda rows: row(rows, "exchanges", USER_REGISTRATION.name).update(type="direct"),
        'exchange user.registration: type is "direct", not "topic"',
    ),
    "an alternate exchange": (
        lambda rows: row(rows, "exchanges", USER_REGISTRATION.name).update(
            arguments={"alternate-exchange": "strays"}
        ),
        'arguments is {"alternate-exchange": "strays"}, not {}',
    ),
    "a policy on an exchange": (
        lambda rows: row(rows, "exchanges", USER_REGISTRATION.name).update(policy="strays"),
        "the policy strays applies to it, and none should",
    ),
    "a lost queue": (
        lambda rows: without(rows, "queues", "report.requests.retry.2"),
        "queue report.requests.retry.2 is missing",
    ),
    "a classic queue": (
        lambda rows: row(rows, "queues", WORK).update(arguments={}),
        'queue user.registration: arguments is {}, not {"x-queue-type": "quorum"}',
    ),
    "a lost binding": (loose, "binding user.registration to user.registration with # is missing"),
    "a changed policy": (
        lambda rows: row(rows, "policies", "user.registration.dlq").update(definition={}),
        "policy user.registration.dlq: definition is {}",
    ),
    "a policy that pushes ours aside": (
        pushed_aside,
        'queue user.registration: in force is {"max-length": 10} of the policy mine',
    ),
    "an operator policy": (operated, '"message-ttl": 60000'),
    "a lost user": (lambda rows: without(rows, "users", "sender"), "user sender is missing"),
    "a service that may do anything": (
        lambda rows: row(rows, "users", "sender").update(tags=["administrator"]),
        "its tags are administrator",
    ),
    "a right too many": (
        lambda rows: row(rows, "permissions", "frontend").update(configure=".*"),
        'rights of user frontend: configure is ".*", not "^$"',
    ),
    "a right too few": (
        lambda rows: without(rows, "permissions", MONITOR),
        "rights of user monitor: configure is not there",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_one_damage_is_one_difference_with_a_remedy(kind: str, present: Rows) -> None:
    damage, words = DAMAGE[kind]

    damage(present)

    (found,) = differences(present)
    assert words in found.what
    assert found.remedy


def test_a_policy_that_is_gone_is_named_once(present: Rows) -> None:
    without(present, "policies", WORK)
    row(present, "queues", WORK).update(policy=None, effective_policy_definition={})

    assert [found.what for found in differences(present)] == [f"policy {WORK} is missing"]


def test_an_empty_broker_lacks_everything(present: Rows) -> None:
    lost: Rows = {kind: [] for kind in present}

    found = {difference.what for difference in differences(lost)}

    assert {f"queue {WORK} is missing", "user sender is missing"} <= found
    named = sum(len(present[kind]) for kind in ("exchanges", "queues", "policies"))
    assert len(found) > named


def test_what_may_not_be_seen_is_not_called_missing(present: Rows) -> None:
    seen = {kind: present[kind] for kind in ("exchanges", "queues", "bindings")}

    assert differences(seen) == []
    row(seen, "queues", WORK)["effective_policy_definition"] = {}
    assert "in force is {}" in differences(seen)[0].what


def test_the_administrators_rights_are_not_compared(present: Rows) -> None:
    without(present, "permissions", ADMINISTRATOR)
    without(present, "users", ADMINISTRATOR)

    assert differences(present) == []


def test_another_program_that_feeds_a_queue_is_named(present: Rows) -> None:
    present["bindings"].append(
        {
            "source": "partner",
            "destination": WORK,
            "destination_type": "queue",
            "routing_key": "",
            "arguments": {},
        }
    )

    assert differences(present) == []
    assert unknown_bindings(present) == [
        f"binding partner to {WORK} is not of the topology: another program feeds this queue"
    ]


# -- what a service sees of its own routes --------------------------------------------------


def lacks(
    queue_rows: list[dict[str, Any]],
    bindings: list[dict[str, Any]],
    routes: tuple[Route, ...] = ROUTES,
) -> list[str]:
    seen = {"queues": queue_rows, "bindings": bindings}
    return [difference.what for difference in lacking(seen, routes)]


def test_a_broker_as_it_should_be_lacks_nothing_whatever_else_it_holds(present: Rows) -> None:
    assert lacks([*present["queues"], {"name": "audit"}], present["bindings"]) == []


@pytest.mark.parametrize(
    "queue",
    [
        *("user.registration", "user.registration.log"),
        *("email.notifications.retry.6", "report.requests.dlq"),
    ],
)
def test_a_queue_that_is_missing_or_lacks_its_policy_is_named(queue: str, present: Rows) -> None:
    others = [each for each in present["queues"] if each["name"] != queue]

    assert lacks(others, present["bindings"]) == [f"queue {queue} is missing"]
    for policy in ({}, None, {"delivery-limit": 20}):
        bare = {"name": queue, "effective_policy_definition": policy}
        (what,) = lacks([*others, bare], present["bindings"])
        assert what.startswith(f"queue {queue}: in force is ")


def test_a_queue_whose_policy_the_broker_has_not_told_yet_lacks_nothing(present: Rows) -> None:
    just_started = [{"name": each["name"]} for each in present["queues"]]

    assert lacks(just_started, present["bindings"]) == []


def test_every_lost_binding_is_named(present: Rows) -> None:
    ours = [binding for binding in present["bindings"] if binding["source"]]
    assert len(ours) > len(present["queues"])

    for lost in ours:
        rest = [binding for binding in ours if binding is not lost]
        (what,) = lacks(present["queues"], rest)
        assert what.startswith(f"binding {lost['source']} to {lost['destination']}")
        assert what.endswith(" is missing")


def test_a_binding_with_another_key_does_not_count(present: Rows) -> None:
    narrow = [{**binding, "routing_key": "user.#"} for binding in present["bindings"]]

    assert f"binding {WORK} to {WORK} with # is missing" in lacks(present["queues"], narrow)


def test_an_empty_broker_lacks_all_queues_and_bindings() -> None:
    wanted: Any = definitions()

    assert len(lacks([], [])) == len(wanted["queues"]) + len(wanted["bindings"])


def test_what_another_route_lacks_is_not_named(present: Rows) -> None:
    own = [each for each in present["queues"] if each["name"].startswith(WORK)]

    assert lacks(own, present["bindings"], (USER_REGISTRATION,)) == []
    assert lacks([], present["bindings"], (USER_REGISTRATION,)) == [
        f"queue {name} is missing" for name in (*queues(USER_REGISTRATION), USER_REGISTRATION.log)
    ]
