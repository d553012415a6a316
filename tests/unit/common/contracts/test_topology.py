import re
from typing import Any

import pytest

from common.contracts.topology import (
    BROKER_USERS,
    EMAIL_NOTIFICATIONS,
    MONITOR,
    REPORT_REQUESTS,
    ROUTES,
    USER_REGISTRATION,
    Route,
    definitions,
    queues,
    user_definitions,
)

DEFINITIONS: Any = definitions()
QUEUES = [name for route in ROUTES for name in queues(route)]
LOG = USER_REGISTRATION.log
EXCHANGES = [exchange["name"] for exchange in DEFINITIONS["exchanges"]]
NAMES = {*QUEUES, LOG, *EXCHANGES}


def policy_of(queue: str) -> dict[str, Any]:
    """The one policy that the broker would apply to a queue."""
    matching = [p for p in DEFINITIONS["policies"] if re.search(p["pattern"], queue)]
    assert len(matching) == 1, f"{queue}: {[policy['name'] for policy in matching]}"
    definition: dict[str, Any] = matching[0]["definition"]
    return definition


def republished(route: Route, steps: int) -> set[str]:
    return {f"{route.name}.dlx", *(f"{route.name}.retry.{n}" for n in range(1, steps + 1))}


def test_no_name_comes_twice() -> None:
    assert len(set(QUEUES)) == len(QUEUES)
    assert len(set(EXCHANGES)) == len(EXCHANGES)
    assert len({policy["name"] for policy in DEFINITIONS["policies"]}) == 3 * len(ROUTES) + 1


def test_a_queue_has_no_argument_but_its_type() -> None:
    # Arguments can never be changed; what may change is a policy.
    kinds = {queue["name"]: queue["arguments"] for queue in DEFINITIONS["queues"]}

    assert kinds.pop(LOG) == {"x-queue-type": "stream"}
    assert kinds == {queue: {"x-queue-type": "quorum"} for queue in QUEUES}
    assert all(queue["durable"] for queue in DEFINITIONS["queues"])


def test_the_stream_sees_each_publish_once_and_forgets_by_age_and_size() -> None:
    sources = [b["source"] for b in DEFINITIONS["bindings"] if b["destination"] == LOG]

    assert sources == [USER_REGISTRATION.name]  # not R.return: a retry is no second publish
    limits = policy_of(LOG)
    assert limits["max-age"] == "7D"
    assert limits["max-length-bytes"] > 4 * limits["stream-max-segment-size-bytes"]


def test_no_exchange_has_an_alternate() -> None:
    # With one, an unroutable message is confirmed: a 202 would be a lie.
    for exchange in DEFINITIONS["exchanges"]:
        assert exchange["arguments"] == {}
        assert exchange["durable"]
        assert not exchange["internal"]
    assert not any("alternate" in str(policy) for policy in DEFINITIONS["policies"])


@pytest.mark.parametrize("queue", QUEUES)
def test_every_queue_has_exactly_one_policy_and_never_drops(queue: str) -> None:
    policy = policy_of(queue)

    assert policy["overflow"] == "reject-publish"
    assert policy["delivery-limit"] >= 100
    assert not policy.keys() & {"max-length", "max-length-bytes", "message-ttl", "expires"}


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_what_leaves_a_queue_by_itself_goes_where_it_should(route: Route) -> None:
    work, dead = policy_of(route.queue), policy_of(route.dead_letter_queue)

    assert work["dead-letter-exchange"] == f"{route.name}.dlx"
    assert work["dead-letter-strategy"] == "at-least-once"
    for step in route.retries:
        assert policy_of(step)["dead-letter-exchange"] == f"{route.name}.return"
        assert policy_of(step)["dead-letter-strategy"] == "at-least-once"
    assert "dead-letter-exchange" not in dead  # never loops back by itself


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.name)
def test_every_queue_of_a_route_is_reached(route: Route) -> None:
    name = route.name
    bindings = {
        (binding["source"], binding["destination"], binding["routing_key"])
        for binding in DEFINITIONS["bindings"]
        if binding["destination"] in queues(route)
    }
    kinds = {exchange["name"]: exchange["type"] for exchange in DEFINITIONS["exchanges"]}

    assert bindings == {
        (name, name, "#"),
        (f"{name}.return", name, ""),
        (f"{name}.dlx", f"{name}.dlq", ""),
        *((step, step, "") for step in route.retries),
    }
    assert kinds[name] == "topic"
    assert {kinds[source] for source, _, _ in bindings - {(name, name, "#")}} == {"fanout"}


# What each service does at the broker, said a second time by hand. A right to write on a queue
# is for declaring it passively: nobody publishes to a queue.
RIGHTS: dict[str, tuple[set[str], set[str]]] = {
    "frontend": ({"user.registration", LOG}, set()),
    "queue_receiver": (
        {
            "email.notifications",
            *republished(USER_REGISTRATION, 3),
            *(f"{route.name}.return" for route in ROUTES),
        },
        {"user.registration", LOG, *(f"{route.name}.dlq" for route in ROUTES)},
    ),
    "sender": (
        {"email.notifications", "email.notifications.dlq", *republished(EMAIL_NOTIFICATIONS, 6)},
        {"email.notifications"},
    ),
    "report_generator": (
        {
            *("report.requests", "report.requests.dlq", "email.notifications"),
            *republished(REPORT_REQUESTS, 3),
        },
        {"report.requests"},
    ),
}


def permissions(*names: str) -> dict[str, dict[str, str]]:
    users: Any = user_definitions(dict.fromkeys(names, "hash"), {})
    return {row["user"]: row for row in users["permissions"]}


@pytest.mark.parametrize("service", BROKER_USERS)
def test_a_service_may_write_and_read_its_own_names_only(service: str) -> None:
    rights = permissions(service)[service]
    writes, reads = RIGHTS[service]
    # The broker searches the pattern in the name, so anchors matter.
    unknown_bindings = {f"x{name}" for name in NAMES} | {f"{name}x" for name in NAMES}
    unknown_bindings |= {name.replace(".", "_") for name in NAMES} | {
        "",
        "amq.default",
        "amq.topic",
    }

    def matched(pattern: str) -> set[str]:
        return {name for name in NAMES | unknown_bindings if re.search(pattern, name)}

    assert matched(rights["write"]) == writes
    assert matched(rights["read"]) - {""} == reads
    assert not matched(rights["configure"]) - {""}


def test_the_monitor_may_change_nothing_and_read_no_message() -> None:
    # Every service knows its password.
    rights = permissions(MONITOR)[MONITOR]

    assert (rights["configure"], rights["write"], rights["read"]) == ("^$", "^$", "^$")


def test_an_administrator_has_every_right_and_users_carry_their_hash_and_tag() -> None:
    users: Any = user_definitions({"admin": "h1", "sender": "h2"}, {"admin": "administrator"})

    assert permissions("admin")["admin"]["configure"] == ".*"
    assert [(row["name"], row["password_hash"], row["tags"]) for row in users["users"]] == [
        ("admin", "h1", "administrator"),
        ("sender", "h2", ""),
    ]
