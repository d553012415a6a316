from typing import Any

import pytest

from common.amqp.topology_check import differences
from common.contracts.topology import ROUTES, USER_REGISTRATION, definitions, queues

Rows = list[dict[str, Any]]


def a_broker_as_it_should_be() -> tuple[Rows, Rows]:
    """What the management API says of it: queues, bindings."""
    wanted: Any = definitions()
    policies = {policy["name"]: policy["definition"] for policy in wanted["policies"]}
    names = {
        queue: policy
        for route in ROUTES
        for queue, policy in zip(
            queues(route),
            [route.name, *[f"{route.name}.retry"] * route.retry_steps, f"{route.name}.dlq"],
            strict=True,
        )
    }
    names[USER_REGISTRATION.log] = USER_REGISTRATION.log
    rows = [
        {"name": queue, "effective_policy_definition": policies[policy]}
        for queue, policy in names.items()
    ]
    # The default exchange is bound to everything, and others may bind their own queues.
    foreign = {"source": "user.registration", "destination": "audit", "routing_key": "#"}
    return rows, [*wanted["bindings"], foreign]


def test_a_broker_as_it_should_be_has_no_differences() -> None:
    rows, bindings = a_broker_as_it_should_be()

    assert differences([*rows, {"name": "audit"}], bindings) == []


@pytest.mark.parametrize(
    "queue",
    [
        *("user.registration", "user.registration.log"),
        *("email.notifications.retry.6", "report.requests.dlq"),
    ],
)
def test_a_queue_that_is_missing_or_lacks_its_policy_is_named(queue: str) -> None:
    rows, bindings = a_broker_as_it_should_be()
    others = [row for row in rows if row["name"] != queue]

    assert differences(others, bindings) == [f"queue {queue} is missing"]
    for policy in ({}, None, {"delivery-limit": 20}):
        bare = {"name": queue, "effective_policy_definition": policy}
        assert differences([*others, bare], bindings) == [f"queue {queue} lacks its policy"]


def test_a_queue_whose_policy_the_broker_has_not_said_yet_is_not_blamed() -> None:
    rows, bindings = a_broker_as_it_should_be()
    just_started = [{"name": row["name"]} for row in rows]

    assert differences(just_started, bindings) == []


def test_every_lost_binding_is_named() -> None:
    rows, bindings = a_broker_as_it_should_be()

    for lost in bindings[:-1]:
        rest = [binding for binding in bindings if binding is not lost]
        assert differences(rows, rest) == [
            f"binding {lost['source']} to {lost['destination']} is missing"
        ]


def test_a_binding_with_another_key_does_not_count() -> None:
    rows, bindings = a_broker_as_it_should_be()
    narrow = [{**binding, "routing_key": "user.#"} for binding in bindings]

    assert "binding user.registration to user.registration is missing" in differences(rows, narrow)


def test_an_empty_broker_lacks_a_broker_as_it_should_be() -> None:
    wanted: Any = definitions()

    assert len(differences([], [])) == len(wanted["queues"]) + len(wanted["bindings"])


def test_what_another_route_lacks_is_no_difference() -> None:
    rows, bindings = a_broker_as_it_should_be()
    own = [row for row in rows if row["name"].startswith("user.registration")]

    assert differences(own, bindings, (USER_REGISTRATION,)) == []
    assert differences([], bindings, (USER_REGISTRATION,)) == [
        f"queue {name} is missing" for name in (*queues(USER_REGISTRATION), USER_REGISTRATION.log)
    ]
